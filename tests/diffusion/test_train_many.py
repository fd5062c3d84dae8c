"""Many networks in the same launches: each ends as it would alone."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from flashpoint.diffusion import ClassicRecipe, Points, Recipe, Schedule, Trainer, UserError
from flashpoint.diffusion.training import (
    CosineDecay,
    ManyTrainer,
    PlateauDecay,
    Task,
    engine,
    train_many,
)
from flashpoint.diffusion.training.engine import Engine

# Smooth: where the slope of PReLU jumps, rounding can decide which side a row is on.
FAST = Recipe(steps=20, hidden_layers=(16, 16), batch_size=64, lr=1e-2, activation="silu")
PRELU = replace(FAST, activation="prelu")
CONDITIONAL = replace(FAST, class_embedding="sinusoidal")
CLASSIC = ClassicRecipe(
    4, hidden_layers=(16,), batch_size=64, lr=1e-2, refresh=2, activation="silu"
)


def points(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Points(torch.randn(n, 2, generator=generator), torch.arange(n) % 3, name=f"set {n}")


# Of one kind each: data, schedules, rates, steps, decays and seeds differ.
GROUPS = {
    "fast": [
        Task(points(50), Schedule(20), FAST, seed=1),
        Task(points(70, 1), Schedule(30, "cosine"), replace(FAST, lr=3e-3, steps=12), seed=2),
        Task(points(40, 2), Schedule(9), replace(FAST, low_noise=0.0, weight_decay=0.1), seed=2),
        Task(points(50), Schedule(20), replace(FAST, ema_decay=0.9), seed=3),
    ],
    "classic": [
        Task(points(30), Schedule(10), CLASSIC, seed=1),
        Task(points(41), Schedule(7), replace(CLASSIC, decay=PlateauDecay(0.5, 0)), seed=2),
        Task(points(30), Schedule(10), replace(CLASSIC, decay=CosineDecay(1e-4), epochs=3)),
    ],
    "classifiers": [
        Task(points(50, seed), Schedule(20), FAST, classify=True, seed=seed) for seed in range(3)
    ],
    "conditional": [
        Task(points(50), Schedule(20), replace(CONDITIONAL, p_uncond=0.1), seed=1),
        Task(points(60), Schedule(30), replace(CONDITIONAL, p_uncond=0.5, steps=10), seed=2),
    ],
    "clipped": [
        Task(points(50), Schedule(20), replace(FAST, clip_norm=clip), seed=1)
        for clip in (0.05, 100.0)
    ],
    "PReLU": [
        Task(points(50), Schedule(20), PRELU, seed=1),
        Task(points(70, 1), Schedule(30), replace(PRELU, lr=3e-3), seed=2),
    ],
}  # fmt: skip


# One row of 64 on the other side of a kink turns an update of 1e-2 of some weights by 1/64; all
# weights together are 3.4 to 3.7 long.
TOLERANCE = {"silu": 1e-6, "prelu": 1e-3}


def alone(task):
    trainer = Trainer(
        task.points, task.schedule, task.recipe, classify=task.classify, seed=task.seed,
        device="cpu",
    )  # fmt: skip
    trainer.run(20)
    return trainer


@pytest.mark.parametrize("name", GROUPS)
def test_each_ends_as_it_would_alone(name):
    tasks = GROUPS[name]
    together = Engine(tasks, device="cpu")
    together.run(20)
    for model, task in enumerate(tasks):
        trainer = alone(task)
        for actual, expected in (
            (together.parameters[model], trainer.parameters),
            (together.state.ema[model], trainer.engine.state.ema[0]),
            (together.losses.until(model, trainer.step), trainer.losses),
        ):
            difference = (actual - expected).norm() / expected.norm()
            assert difference < TOLERANCE[task.recipe.activation], (task, difference)
    assert (together.parameters[0] - together.parameters[1]).norm() > 0.01


def test_networks_of_different_kinds_are_grouped():
    tasks = [
        task
        for pair in zip(*(GROUPS[name][:2] for name in GROUPS if name != "PReLU"), strict=True)
        for task in pair
    ]
    trainer = ManyTrainer(tasks, device="cpu")
    assert len(trainer._engines) == 5
    done = []
    trainer.run(10**6, done.append)
    assert done == list(range(1, trainer.total_steps + 1))
    for task, model in zip(tasks, trainer.models(), strict=True):
        own = Trainer(task.points, task.schedule, task.recipe, classify=task.classify,
                      seed=task.seed, device="cpu")  # fmt: skip
        own.run(own.total_steps)
        expected = own.model()
        assert type(model) is type(expected)
        assert model.state_dict().keys() == expected.state_dict().keys()
        actual = torch.nn.utils.parameters_to_vector(model.parameters())
        wanted = torch.nn.utils.parameters_to_vector(expected.parameters())
        assert (actual - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize(("name", "chunk"), [("classic", 40), ("clipped", None), ("PReLU", None)])
def test_the_kernels_train_as_the_reference_does(monkeypatch, device, name, chunk):
    tasks = [
        replace(task, recipe=replace(task.recipe, chunk_rows=chunk)) for task in GROUPS[name][:2]
    ]
    expected = Engine(tasks, device=device)
    expected.run(3)
    for function in (engine.workspace_of, engine.reduce_grad, engine.adamw_):
        monkeypatch.setattr(engine, function.__name__, partial(function, backend="triton"))
    actual = Engine(tasks, device=device, precision="fp32")
    assert actual.workspace.shadow is not None
    actual.run(2)
    actual.run(1)
    for one, other in (
        (actual.parameters, expected.parameters),
        (actual.state.ema, expected.state.ema),
        (actual.course.losses, expected.course.losses),
    ):
        assert (one - other).norm() <= 1e-3 * other.norm()
    assert actual.course.losses[:, 2].all()


def test_what_all_share_is_there_once():
    shared = points(50)
    shared = replace(shared, data=shared.data.T.contiguous().T)
    tasks = [Task(shared, Schedule(20), FAST, seed=seed) for seed in range(3)]
    data = Engine(tasks, device="cpu").data
    assert len(data.points) == len(data.forward_table) == len(data.t_table) == 1
    assert all(part is None or part.is_contiguous() for part in data)  # else copied in every step
    models = train_many(tasks, device="cpu")
    weights = [model.model[0].weight for model in models]
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("stop", [7, 25])
def test_many_resume_bit_for_bit(stop):
    tasks = GROUPS["fast"][:2] + GROUPS["classic"][1:]
    whole, first, second = (ManyTrainer(tasks, device="cpu") for _ in range(3))
    whole.run(10**6)
    first.run(stop)
    second.load_state_dict(first.state_dict())
    assert second.step == stop
    second.run(10**6)
    for one, other in zip(whole.models(), second.models(), strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_a_state_of_other_tasks_is_refused():
    whole = ManyTrainer(
        [Task(points(50), Schedule(40, "cosine"), Recipe(5, (8,), 32))], device="cpu"
    )
    for state in ({}, whole.state_dict() | {"1": {}}, {"parameters": torch.zeros(1)}):
        with pytest.raises(UserError, match="must be that of 1 kinds of networks, got"):
            whole.load_state_dict(state)


def test_one_network_that_overflows_does_not_stop_the_others():
    bad = points(50)
    bad.data[3] = 1e30  # finite, but its square is not
    tasks = [Task(points(50), Schedule(20), FAST, seed=1), Task(bad, Schedule(20), FAST, seed=1)]
    trainer = ManyTrainer(tasks, device="cpu")
    trainer.run(20)
    assert trainer.bad_step(0) is None
    assert trainer.bad_step(1) >= 1
    assert all(model.model[0].weight.isfinite().all() for model in trainer.models())


def test_tasks_of_different_kinds_are_refused_by_one_engine():
    with pytest.raises(UserError, match="all of one kind"):
        Engine([GROUPS["fast"][0], GROUPS["classic"][0]], device="cpu")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"recipe": replace(FAST, p_uncond=0.1)}, "a conditional denoiser needs labels, got none"),
        ({"recipe": FAST, "classify": True}, "a classifier needs labels, got none"),
    ],
)
def test_a_task_without_its_labels_is_refused(task, message):
    with pytest.raises(UserError, match=message):
        Task(Points(torch.randn(9, 2)), Schedule(9), **task)
