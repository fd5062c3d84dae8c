"""A network of one's own trains as the fused perceptron does, and resumes bit for bit."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from flashpoint.diffusion import (
    MLP,
    ClassicRecipe,
    ManyTrainer,
    Points,
    Recipe,
    Schedule,
    Task,
    Trainer,
    UserError,
    train_many,
)
from flashpoint.diffusion.predictions import PREDICTIONS
from flashpoint.diffusion.training.distributed import Ranks
from flashpoint.diffusion.training.recipes import PlateauDecay

from .own_networks import Changing, Conditional, Copied, Extra, Residual

GENERATOR = torch.Generator().manual_seed(0)
POINTS = Points(torch.randn(43, 2, generator=GENERATOR), torch.arange(43) % 3)
HELD_OUT = Points(torch.randn(11, 2, generator=GENERATOR), torch.arange(11) % 3)
SCHEDULE = Schedule(21, "cosine")
RECIPE = Recipe(steps=30, hidden_layers=(24, 24), batch_size=65, lr=1e-2, ema_decay=0.9)
CLASSIC = ClassicRecipe(
    4, (24, 24), 100, lr=1e-2, refresh=2, decay=PlateauDecay(0.5, 0), weight_decay=1e-3
)
CASES = {
    **{f"predicts {name}": (replace(RECIPE, prediction=name), {}) for name in PREDICTIONS},
    "weighted": (replace(RECIPE, prediction="v", weighting="min-snr", low_noise=0.0), {}),
    "classifier": (RECIPE, {"classify": True}),
    "conditional": (replace(RECIPE, p_uncond=0.3), {}),
    "conditional on sines": (replace(RECIPE, p_uncond=0.3, class_embedding="sinusoidal"), {}),
    "clipped": (replace(RECIPE, clip_norm=0.05), {}),
    "chunks": (replace(RECIPE, chunk_rows=20), {}),
    "classic": (CLASSIC, {}),
    "classic, adam, conditional": (replace(CLASSIC, optimizer="adam", p_uncond=0.5), {}),
}


def pair(recipe, schedule=SCHEDULE, **options):
    """The trainer of a perceptron, and that of a copy of it as one's own network."""
    fused = Trainer(POINTS, schedule, recipe, seed=3, device="cpu", **options)
    model = Copied(fused.task.initial(), schedule)
    return fused, Trainer(POINTS, schedule, recipe, model=model, seed=3, device="cpu", **options)


def flat_of(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("name", CASES)
def test_a_copy_of_the_perceptron_follows_the_fused_training(name):
    recipe, options = CASES[name]
    fused, own = pair(recipe, **options)
    for run in (fused, own):
        run.run(17)
        run.run(1000)
    assert own.step == fused.step == fused.total_steps
    torch.testing.assert_close(own.losses, fused.losses, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(own.epoch_losses, fused.epoch_losses, rtol=1e-4, atol=1e-6)
    found, expected = own.model().mlp, fused.model()
    torch.testing.assert_close(flat_of(found), flat_of(expected), rtol=1e-3, atol=1e-4)
    assert own.schedule == fused.schedule
    assert found.prediction == expected.prediction == own.model().prediction
    validated = [run.validation_loss(HELD_OUT) for run in (own, fused)]
    assert validated[0] == pytest.approx(validated[1], rel=1e-3)


def test_chunks_of_an_own_network_are_the_whole_batch():
    runs = []
    for chunk_rows in (None, 20, 64, 65):
        recipe = replace(RECIPE, chunk_rows=chunk_rows)
        torch.manual_seed(0)
        runs.append(Trainer(POINTS, SCHEDULE, recipe, model=Residual(), device="cpu"))
        runs[-1].run(10)
        torch.testing.assert_close(runs[-1].parameters, runs[0].parameters, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("dim", [1, 5])
@pytest.mark.usefixtures("poisoned")
def test_odd_sizes_and_new_memory_full_of_nan(batch_size, dim):
    points = Points(torch.randn(9, dim, generator=GENERATOR))
    recipe = replace(RECIPE, batch_size=batch_size, clip_norm=1.0)
    run = Trainer(points, Schedule(3, "cosine"), recipe, model=Residual(dim), device="cpu")
    run.run(30)
    assert run.losses.isfinite().all()
    assert flat_of(run.model()).isfinite().all()


def test_it_trains_in_place_and_says_what_it_is():
    model = Residual()
    before = flat_of(model)
    run = Trainer(POINTS, SCHEDULE, RECIPE, model=model, device="cpu")
    assert run.module is model
    assert torch.equal(flat_of(model), before)  # the seed does not draw its weights
    run.run(5)
    assert torch.equal(flat_of(model), run.parameters)
    assert not torch.equal(flat_of(model), before)
    averaged = run.model()
    assert not averaged.training
    assert (averaged.point_dim, averaged.prediction) == (2, "eps")
    torch.testing.assert_close(flat_of(averaged), run.engine.state.ema[0])
    run.run(5)
    assert not torch.equal(flat_of(averaged), flat_of(run.model()))


def test_a_part_called_prediction_stays():
    model = Residual()
    model.prediction = model.last
    run = Trainer(POINTS, SCHEDULE, RECIPE, model=model, device="cpu")
    run.run(1)
    assert isinstance(run.model().prediction, nn.Linear)


def changing(seed=0, **options):
    torch.manual_seed(0)
    return Trainer(POINTS, SCHEDULE, RECIPE, model=Changing(), device="cpu", seed=seed, **options)


def everything(run):
    module = run.module
    return {**dict(module.named_parameters()), **dict(module.named_buffers()), "l": run.losses}


def test_a_run_resumes_bit_for_bit_with_statistics_and_dropout(tmp_path):
    whole, first, resumed = changing(), changing(), changing()
    frozen = whole.module.frozen.weight.clone()
    whole.run(30)
    first.run(11)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(5)  # of other code, which dropout does not see
    with torch.no_grad():
        resumed.module.frozen.weight.zero_()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.run(30)
    want = everything(whole)
    assert all(torch.equal(x, want[name]) for name, x in everything(resumed).items())
    assert int(whole.module.calls) == int(whole.module.norm.num_batches_tracked) == 30
    assert torch.equal(whole.module.frozen.weight, frozen)
    x = torch.randn(4, 2), torch.arange(4)
    torch.testing.assert_close(whole.model()(*x), resumed.model()(*x), rtol=0, atol=0)


def test_dropout_follows_the_seed_and_leaves_the_global_random_state():
    state = torch.get_rng_state()
    a, b = changing(), changing(seed=1)
    state = torch.get_rng_state()
    for run in (a, b):
        run.run(1)
    assert torch.equal(torch.get_rng_state(), state)
    masks = [run.engine._random["cpu"] for run in (a, b)]
    assert not torch.equal(*masks)


def test_what_others_draw_between_the_steps_does_not_disturb_dropout():
    drawn, alone, run = [], changing(), changing()
    alone.run(10)
    torch.manual_seed(7)
    expected = torch.rand(10)
    torch.manual_seed(7)
    run.run(10, progress=lambda _: drawn.append(torch.rand(1)))
    assert torch.equal(torch.cat(drawn), expected)
    assert torch.equal(run.parameters, alone.parameters)


def test_a_state_dict_may_hold_more_than_tensors():
    run = Trainer(POINTS, SCHEDULE, RECIPE, model=Extra(), device="cpu")
    run.run(2)
    for network in (run.module, run.model()):
        saved = network.state_dict()
        assert saved["_extra_state"] == {"width": 16}
        assert saved["last.bias"].untyped_storage().nbytes() == 8  # no view of the whole buffer
        Extra().load_state_dict(saved)


def test_a_layer_that_is_used_twice_trains_as_one():
    run = changing()
    run.run(3)
    model = run.model()
    assert model.blocks[0] is model.blocks[1]
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names))
    assert "blocks.1.weight" not in names


def test_a_state_of_another_network_is_refused():
    run = changing()
    saved = run.state_dict()
    with pytest.raises(UserError, match="with another model: names or shapes"):
        Trainer(POINTS, SCHEDULE, RECIPE, model=Residual(), device="cpu").load_state_dict(saved)
    fused = Trainer(POINTS, SCHEDULE, RECIPE, device="cpu").state_dict()
    with pytest.raises(UserError, match="none of an own network's training: it lacks buffers"):
        run.load_state_dict(fused)
    with pytest.raises(UserError, match="another seed"):
        changing(seed=1).load_state_dict(saved)


def test_what_is_done_to_the_module_does_not_disturb_training():
    whole, run = changing(), changing()
    whole.run(10)
    run.run(5)
    run.module.eval()
    run.module.double().float()
    run.module.load_state_dict(run.module.state_dict())
    copy.deepcopy(run.module).zero_grad()
    run.run(5)
    assert torch.equal(run.parameters, whole.parameters)
    run.module.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(UserError, match="must keep its parameters, changed: extra"):
        run.run(1)
    run.module = copy.deepcopy(run.module)
    with pytest.raises(UserError, match="must stay the network that it was given"):
        run.run(1)


def test_the_step_that_was_not_finite_is_named_and_changes_nothing():
    class Fails(Residual):
        def forward(self, x, t):
            return super().forward(x, t) * (torch.nan if self.fails else 1)

        fails = False

    run = Trainer(POINTS, SCHEDULE, RECIPE, model=Fails(), device="cpu")
    run.run(7)
    before = run.parameters.clone()
    run.module.fails = True
    run.run(2)
    assert run.bad_step() == 8
    assert torch.equal(run.parameters, before)


def test_two_ranks_add_up_to_one(monkeypatch):
    """Each rank in turn, with the other's sums added where an all-reduce would."""
    sums = []
    monkeypatch.setattr(Ranks, "take_first", lambda *_: None)
    one = Trainer(POINTS, SCHEDULE, RECIPE, model=Residual(), device="cpu")
    for rank in (0, 1):
        model = copy.deepcopy(one.module)
        run = Trainer(POINTS, SCHEDULE, RECIPE, model=model, device="cpu", ranks=Ranks(rank, 2))
        monkeypatch.setattr(Ranks, "add_up", lambda _, tensor: sums.append(tensor.clone()))
        run.run(1)
    one.run(1)
    torch.testing.assert_close(sum(sums), one.engine.workspace.sums, rtol=1e-4, atol=1e-5)
    empty = replace(RECIPE, batch_size=1)  # the first of two ranks has no row
    run = Trainer(POINTS, SCHEDULE, empty, model=Residual(), device="cpu", ranks=Ranks(0, 2))
    run.run(1)
    assert sums[-1].abs().sum() == 0


def test_a_compiled_network_trains_alike(monkeypatch):
    # The compiler's front end, without the code of its back end, which takes minutes.
    compiled, seen = functools.partial(torch.compile, backend="eager"), []
    monkeypatch.setattr(torch, "compile", lambda module: seen.append(module) or compiled(module))
    model = Residual(width=4)
    eager, run = (
        Trainer(POINTS, SCHEDULE, RECIPE, model=each, device="cpu", compile=each is not model)
        for each in (model, copy.deepcopy(model))
    )
    for each in (eager, run):
        each.run(3)
    assert seen == [run.module]
    torch.testing.assert_close(run.losses, eager.losses, rtol=1e-4, atol=1e-5)
    assert type(run.model()) is Residual


@pytest.mark.slow  # the compiler
def test_the_compiler_itself_compiles_a_step():
    model = Residual()
    runs = [
        Trainer(POINTS, SCHEDULE, RECIPE, model=copy.deepcopy(model), device="cpu", compile=each)
        for each in (False, True)
    ]
    for run in runs:
        run.run(10)
    torch.testing.assert_close(runs[1].losses, runs[0].losses, rtol=1e-4, atol=1e-5)


def test_many_networks_of_ones_own_are_those_of_single_trainers():
    made = []

    def make(task):
        made.append(task)
        return Conditional(task.points.num_classes, width=task.recipe.hidden_layers[0])

    recipe = replace(RECIPE, p_uncond=0.2)
    tasks = [Task(POINTS, SCHEDULE, recipe, seed=seed, model=make) for seed in (0, 1)]
    plain = Task(POINTS, SCHEDULE, RECIPE, seed=2)
    first, other, second = train_many([tasks[0], plain, tasks[1]], device="cpu")
    assert isinstance(other, MLP)
    for task, found in zip(tasks, (first, second), strict=True):
        alone = Trainer(
            POINTS, SCHEDULE, recipe, model=task.initial(), seed=task.seed, device="cpu"
        )
        alone.run(30)
        torch.testing.assert_close(flat_of(found), flat_of(alone.model()), rtol=0, atol=0)
        assert found.num_classes == 3
    assert not torch.equal(flat_of(first), flat_of(second))  # other seeds draw other weights
    with pytest.raises(UserError, match="ranks must be left out for tasks with a model"):
        ManyTrainer(tasks, device="cpu", ranks=Ranks(0, 2))
    with pytest.raises(UserError, match="model must be a function of the task"):
        Task(POINTS, SCHEDULE, RECIPE, model=Residual())


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, clip_norm=0.1, p_uncond=0.2)])
def test_a_graph_of_steps_gives_the_bits_of_single_ones(device, recipe):
    recipe = replace(recipe, steps=200)
    model = Changing() if recipe.p_uncond is None else Conditional(3)
    graphed, single = (
        Trainer(POINTS, SCHEDULE, recipe, model=copy.deepcopy(model), device=device)
        for _ in range(2)
    )
    graphed.run(200)
    for _ in range(200):
        single.run(1)
    assert graphed.engine._graph is not None
    assert torch.equal(graphed.parameters, single.parameters)


@pytest.mark.gpu
def test_a_network_that_waits_for_the_device_trains_without_a_graph(device):
    class Waits(Residual):
        def forward(self, x, t):
            x = torch.dropout(x, 0.1, self.training)
            return super().forward(x, t) * float(x.isfinite().all().item())

    model, recipe = Waits(), replace(RECIPE, steps=200)
    runs = [
        Trainer(POINTS, SCHEDULE, recipe, model=copy.deepcopy(model), device=device)
        for _ in range(2)
    ]
    state = torch.cuda.get_rng_state(device)
    runs[0].run(200)
    assert torch.equal(torch.cuda.get_rng_state(device), state)
    for _ in range(200):
        runs[1].run(1)
    assert runs[0].engine._graph is None
    assert torch.equal(runs[0].parameters, runs[1].parameters)
    assert torch.rand(3, device=device).isfinite().all()  # the generator is in no capture
