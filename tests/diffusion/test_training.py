"""Training: it learns, it resumes bit for bit, and its recipe is what it says."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from flashpoint.diffusion import (
    ConditionalMLP,
    Points,
    Recipe,
    Schedule,
    Task,
    Trainer,
    UserError,
    sample,
    states_points,
)
from flashpoint.diffusion.training.engine import Engine
from flashpoint.diffusion.training.on_device import timestep_table
from flashpoint.diffusion.training.trainer import _is_same
from flashpoint.kernels.q_sample.reference import batch_draw
from flashpoint.kernels.reduce_grad import mean_of
from flashpoint.kernels.train_step.reference import noisy_inputs

SCHEDULE = Schedule(50)
RECIPE = Recipe(steps=60, hidden_layers=(32, 32), batch_size=128, lr=1e-2, low_noise=0.0)
STATES = states_points(500)


def trainer(**options):
    return Trainer(STATES, SCHEDULE, options.pop("recipe", RECIPE), device="cpu", **options)


@pytest.mark.parametrize("classify", [False, True])
def test_the_loss_falls(classify):
    run = trainer(classify=classify, recipe=replace(RECIPE, steps=300))
    run.run(300)
    assert run.losses[-50:].mean() < 0.8 * run.losses[:10].mean()
    assert run.losses.isfinite().all()


def test_a_classifier_learns_the_states():
    run = trainer(classify=True, recipe=replace(RECIPE, steps=600))
    run.run(600)
    features = SCHEDULE.time_features[0].float().expand(len(STATES), -1)
    right = run.model()(torch.cat((STATES.data, features), dim=1)).argmax(1) == STATES.labels
    assert right.double().mean() > 0.97


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    a, b, c = trainer(seed=1), trainer(seed=1), trainer(seed=2)
    for run in (a, b, c):
        run.run(5)
    assert torch.equal(a.parameters, b.parameters)
    assert not torch.equal(a.parameters, c.parameters)


@pytest.mark.parametrize("stop", [1, 29, 59])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(stop, tmp_path):
    whole, first, second = trainer(), trainer(), trainer()
    whole.run(60)
    first.run(stop)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second.run(60)
    assert second.step == 60
    for name, value in whole.state_dict().items():
        assert torch.equal(torch.as_tensor(second.state_dict()[name]), torch.as_tensor(value)), name


def test_a_state_saved_without_the_model_axis_loads_too():
    first, second = trainer(), trainer()
    first.run(7)
    state = first.state_dict()
    old = {name: state[name][0] for name in ("losses", "epoch_losses")}
    second.load_state_dict({**state, **old, "seed": int(state["seed"])})
    assert second.step == 7
    assert torch.equal(second.losses, first.losses)
    for run in (first, second):
        run.run(60)
    assert torch.equal(second.parameters, first.parameters)


def test_the_losses_are_those_of_the_steps_done():
    run = trainer()
    assert len(run.losses) == len(run.losses_on_host) == 0
    run.run(7)
    assert len(run.losses) == 7
    assert torch.equal(run.losses_on_host, run.losses.cpu())
    assert run.losses.all()


def test_training_stops_at_the_recipes_end_and_reports_every_step():
    run, seen = trainer(), []
    run.run(1000, seen.append)
    assert seen == list(range(1, 61))


def test_the_result_is_the_average_of_the_weights():
    run = trainer()
    run.run(60)
    model = run.model()
    assert torch.equal(model.network().parameters[0], run.engine.state.ema[0])
    assert not torch.equal(run.engine.state.ema[0], run.parameters)


def test_learning_rate_rises_to_its_peak_and_falls_to_zero():
    recipe = Recipe(steps=1000, lr=0.5, warmup=0.1)
    rates = torch.tensor([recipe.learning_rate(step, 10, ()) for step in range(1000)])
    assert rates.argmax() == 100
    assert rates.max() == 0.5
    assert (rates[:101].diff() > 0).all()
    assert (rates[100:].diff() < 0).all()
    assert 0 < rates[-1] < 1e-5


def test_timesteps_are_uniform_in_t_or_in_the_logarithm_of_the_noise():
    assert torch.equal(timestep_table(SCHEDULE, 0.0), torch.arange(50))
    log_sigma = ((1 - SCHEDULE.alpha_bar) / SCHEDULE.alpha_bar).log() / 2
    table = timestep_table(SCHEDULE, 1.0)
    share = torch.bincount(table, minlength=50) / len(table)
    torch.testing.assert_close(
        share[1:] / share[-1], log_sigma.diff() / log_sigma.diff()[-1],
        rtol=0.05, atol=0, check_dtype=False,
    )  # fmt: skip
    mixed = torch.bincount(timestep_table(SCHEDULE, 0.4), minlength=50) / len(table)
    torch.testing.assert_close(mixed, 0.4 * share + 0.6 / 50, rtol=0.05, atol=1e-4)
    assert timestep_table(Schedule(1), 1.0).unique().tolist() == [0]


def test_a_state_of_another_run_is_refused():
    saved = trainer().state_dict()
    with pytest.raises(UserError, match="saved parameters have shape"):
        trainer(recipe=replace(RECIPE, hidden_layers=(32,))).load_state_dict(saved)
    with pytest.raises(UserError, match="another recipe"):
        trainer(recipe=replace(RECIPE, steps=10, batch_size=64)).load_state_dict(saved)
    with pytest.raises(UserError, match="another seed"):
        trainer(seed=1).load_state_dict(saved)
    other = trainer(recipe=replace(RECIPE, lr=0.5))
    before = other.state_dict()["parameters"]
    with pytest.raises(UserError, match=r"another recipe, not Recipe\(.*lr=0.5"):
        other.load_state_dict(saved)
    assert torch.equal(other.state_dict()["parameters"], before)
    with pytest.raises(UserError, match=r"another schedule, not Schedule\(num_steps=50"):
        Trainer(STATES, Schedule(50, "cosine"), RECIPE, device="cpu").load_state_dict(saved)
    with pytest.raises(UserError, match="none of a training: it lacks"):
        trainer().load_state_dict(trainer().module.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"warmup": 1.0}, "warmup must be in"),
        ({"ema_decay": -0.1}, "ema_decay must be in"),
        ({"low_noise": 1.1}, "low_noise must be from 0 to 1"),
        ({"p_uncond": -0.1}, "p_uncond must be from 0 to 1"),
        ({"class_embedding": "learnt"}, "did you mean 'learned'"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"chunk_rows": 0}, "chunk_rows must be at least 1"),
        ({"lr": "1e-3"}, "lr must be positive and finite, got '1e-3'"),
        ({"lr": None}, "lr must be positive and finite, got None"),
        ({"warmup": "x"}, r"warmup must be in \[0, 1\), got 'x'"),
        ({"ema_decay": None}, r"ema_decay must be in \[0, 1\), got None"),
        ({"clip_norm": torch.ones(2)}, "clip_norm must be positive, got a tensor of float32"),
        ({"linear_input": 1}, "linear_input must be True or False, got 1"),
    ],
)
def test_a_wrong_recipe_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Recipe(**arguments)


def test_a_classifier_without_labels_is_refused():
    with pytest.raises(UserError, match="needs labels"):
        Trainer(Points(torch.randn(9, 2)), SCHEDULE, RECIPE, classify=True, device="cpu")


@pytest.mark.parametrize("embedding", ["learned", "sinusoidal"])
def test_a_conditional_denoiser_learns_the_classes_and_all_of_them_together(embedding):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 2
    data = torch.randn(600, 2, generator=generator) * 0.1 + (2.0 * labels[:, None] - 1)
    recipe = Recipe(
        steps=500, hidden_layers=(64, 64), batch_size=256, lr=1e-2, ema_decay=0.95, p_uncond=0.3,
        class_embedding=embedding,
    )  # fmt: skip
    run = Trainer(Points(data, labels), Schedule(40, "cosine"), recipe, device="cpu")
    run.run(500)
    model = run.model()
    assert isinstance(model, ConditionalMLP)
    for label in range(2):
        x = sample(model, Schedule(40, "cosine"), 200, label=label, device="cpu").x
        assert ((x.sum(dim=1) > 0) == bool(label)).double().mean() > 0.9  # chance 0.5
    x = sample(model, Schedule(40, "cosine"), 400, device="cpu").x
    assert (x.sum(dim=1) > 0).double().mean() == pytest.approx(0.5, abs=0.12)
    again = Trainer(Points(data, labels), Schedule(40, "cosine"), recipe, device="cpu")
    again.run(120)
    resumed = Trainer(Points(data, labels), Schedule(40, "cosine"), recipe, device="cpu")
    resumed.load_state_dict(again.state_dict())
    resumed.run(380)
    assert torch.equal(resumed.parameters, run.parameters)


def test_the_reference_takes_chunks_of_a_batch_for_the_whole():
    whole, chunked = trainer(), trainer(recipe=replace(RECIPE, chunk_rows=50))
    for run in (whole, chunked):
        run.run(10)
    torch.testing.assert_close(chunked.parameters, whole.parameters, rtol=1e-4, atol=1e-5)


def test_clipping_is_that_of_torch():
    run = trainer(recipe=replace(RECIPE, clip_norm=0.1))
    oracle = torch.nn.Parameter(run.parameters.clone())
    optimizer = torch.optim.AdamW([oracle], weight_decay=RECIPE.weight_decay)
    for step in range(5):
        run.run(1)
        oracle.grad = mean_of(run.engine.workspace.sums)[0][0]
        assert torch.nn.utils.clip_grad_norm_([oracle], 0.1) > 0.1
        optimizer.param_groups[0]["lr"] = RECIPE.learning_rate(step, 0, ())
        optimizer.step()
    torch.testing.assert_close(run.parameters, oracle.detach(), rtol=1e-5, atol=1e-6)


def load_assigned(run):
    state = {name: value.clone() for name, value in run.module.state_dict().items()}
    run.module.load_state_dict(state, assign=True)


def replace_by_a_copy(run):
    run.module = copy.deepcopy(run.module)


def backward_and_zero(run):
    run.module(torch.ones(4, 3)).sum().backward()
    run.module.zero_grad(set_to_none=True)


OPERATIONS = {
    "deepcopy": lambda run: copy.deepcopy(run.module),
    "replaced by a deepcopy": replace_by_a_copy,
    "to": lambda run: run.module.to(torch.float64),
    "half and back": lambda run: run.module.double().float(),
    "load_state_dict": lambda run: run.module.load_state_dict(run.module.state_dict()),
    "load_state_dict(assign=True)": load_assigned,
    "zero_grad": backward_and_zero,
}
DETACHES = {"replaced by a deepcopy", "to", "half and back", "load_state_dict(assign=True)"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_done_to_the_module_does_not_disturb_training(name, caplog):
    whole, run = trainer(), trainer()
    whole.run(20)
    run.run(10)
    OPERATIONS[name](run)
    with caplog.at_level("INFO", logger="flashpoint"):
        run.run(10)
    assert torch.equal(run.parameters, whole.parameters)
    assert ("had left the trainer's buffer" in caplog.text) == (name in DETACHES)
    assert all(_is_same(getattr(owner, key), view) for owner, key, view in run._views())
    assert torch.equal(run.module.network().parameters[0], whole.parameters)


@pytest.mark.parametrize("detach", [False, True])
def test_weights_set_from_outside_are_trained_on(detach):
    source, run = trainer(seed=1), trainer()
    run.run(3)
    run.module.load_state_dict(source.module.state_dict(), assign=detach)
    run.run(0)
    assert torch.equal(run.parameters, source.parameters)
    run.run(1)
    assert not torch.equal(run.module.network().parameters[0], source.parameters)


def test_saved_tensors_are_copies_of_their_own():
    run = trainer()
    run.run(2)
    states = (run.module.state_dict(), run.model().state_dict(), run.state_dict())
    before = [{k: torch.as_tensor(v).clone() for k, v in state.items()} for state in states]
    for state in states:
        for tensor in filter(torch.is_tensor, state.values()):
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
    run.run(2)
    for state, old in zip(states, before, strict=True):
        assert all(torch.equal(torch.as_tensor(state[name]), old[name]) for name in old)


def test_a_copy_of_the_module_is_independent():
    run = trainer()
    run.run(2)
    kept = copy.deepcopy(run.module)
    before = run.parameters.clone()
    run.run(2)
    assert torch.equal(kept.network().parameters[0], before)
    assert torch.equal(run.module.network().parameters[0], run.parameters)


def test_the_users_own_loop_gets_the_same_gradients():
    run = trainer()
    module = run.module
    draw = batch_draw(run.engine.data, run.engine.seeds, 0, RECIPE.batch_size)
    loss = (module(noisy_inputs(run.engine.data, draw)[0]) - draw.eps[0]).square().mean()
    loss.backward()
    run.run(1)
    ours, _ = mean_of(run.engine.workspace.sums)
    weights, biases, slope = run.engine.shape.unpack(ours)
    for linear, weight, bias in zip(module.linears(), weights, biases, strict=True):
        torch.testing.assert_close(linear.weight.grad, weight[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(linear.bias.grad, bias[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(module.act.weight.grad, slope[0], rtol=1e-4, atol=1e-6)


def test_the_step_that_was_not_finite_is_named():
    run = trainer()
    run.run(7)
    assert run.bad_step() is None
    run.parameters[0] = torch.inf
    run.run(3)
    assert run.bad_step() == 8


def test_a_gradient_that_only_the_weights_show_is_named_too():
    run = trainer()
    run.run(7)
    run.parameters[0] = torch.nan  # what a gradient that overflows in step 7 leaves
    assert run.bad_step(wait=False) is None
    assert run.bad_step() == 7


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, clip_norm=0.1, chunk_rows=64)])
def test_a_graph_of_steps_gives_the_bits_of_single_ones(device, recipe):
    recipe = replace(recipe, steps=200)
    graphed, single = (Trainer(STATES, SCHEDULE, recipe, device=device) for _ in range(2))
    graphed.run(200)
    for _ in range(200):
        single.run(1)
    assert graphed.engine._graph is not None
    assert torch.equal(graphed.parameters, single.parameters)
    assert torch.equal(graphed.losses, single.losses)


def test_steps_run_on_the_device_of_the_parameters(monkeypatch):
    """Whichever is the current one: it says where a graph is captured and an event recorded."""
    seen = []

    @contextmanager
    def device_of(tensor):
        seen.append(tensor)
        yield
        seen.append("done")

    run = trainer()
    monkeypatch.setattr("flashpoint.diffusion.training.engine.device_of", device_of)
    monkeypatch.setattr(Engine, "_do_steps", lambda _, steps: seen.append(steps))
    run.run(1)
    assert seen[0] is run.engine.parameters
    assert seen[1:] == [1, "done"]


@pytest.mark.gpu
def test_trains_on_a_device_that_is_not_the_current_one():
    devices = [torch.device("cuda", number) for number in (0, torch.cuda.device_count() - 1)]
    first, last = (
        Trainer(STATES, SCHEDULE, replace(RECIPE, steps=200), device=device) for device in devices
    )
    for run in (first, last):
        run.run(200)
        assert run.engine._graph is not None
    torch.testing.assert_close(last.parameters.cpu(), first.parameters.cpu())
    assert last.losses.all()


@pytest.mark.gpu
def test_losses_of_all_models_reach_the_host(device):
    tasks = [Task(STATES, SCHEDULE, replace(RECIPE, steps=200), seed=seed) for seed in range(3)]
    engine = Engine(tasks, device=device)
    engine.run(170)
    torch.cuda.synchronize()
    engine.run(1)
    for model in range(3):
        fetched = engine.losses.on_host(model)
        assert len(fetched) >= 170
        assert torch.equal(fetched, engine.losses.until(model, 171)[: len(fetched)].cpu())


@pytest.mark.gpu
def test_nothing_waits_for_the_device(device):
    run = Trainer(STATES, SCHEDULE, replace(RECIPE, steps=1000), device=device)
    run.run(101)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.run(500)
    finally:
        torch.cuda.set_sync_debug_mode("default")
