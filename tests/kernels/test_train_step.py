"""The training step against autograd in float64, its chunks against the whole, and its update."""

from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F

from flashpoint.bench.kinks import data_off_kinks
from flashpoint.kernels import (
    Course,
    MLPShape,
    adamw_,
    adamw_state,
    reduce_grad,
    train_step,
    training_sums,
    workspace_of,
)
from flashpoint.kernels.mlp.reference import mlp
from flashpoint.kernels.q_sample.reference import batch_draw
from flashpoint.kernels.reduce_grad import mean_of
from flashpoint.kernels.train_step.reference import noisy_inputs

from .training import CLASS_WIDTH, CLASSES, KINDS, make_data, make_parameters

BACKENDS = ("torch", "triton")


def uneven_data(device, kind, models=2):
    return make_data(device, kind, models, uneven=True)


def make_network(device, kind, models=2, activation="prelu"):
    inputs = 3 + CLASS_WIDTH * (kind == "conditional")
    shape = MLPShape((inputs, 12, 8, CLASSES if kind == "classifier" else 2), activation)
    return make_parameters(shape, models, device), shape


def off_kinks(data, network, batch_size, step, refresh=None, seed=None):
    """Returns the data, with features so that no row of the batch is beside a kink."""
    parameters, shape = network
    seed = seeds(parameters.device) if seed is None else seed
    draw = batch_draw(data, seed, step, batch_size, refresh)
    return data_off_kinks(parameters, shape, data, draw)


def seeds(device, models=2):
    return torch.arange(models, device=device) + 7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("step", "refresh"), [(3, None), (2, 2), (4, 2)])
def test_gradients_are_those_of_autograd(device, kind, step, refresh):
    network = parameters, shape = make_network(device, kind)
    data = off_kinks(uneven_data(device, kind), network, 40, step, refresh)
    loss, grad = train_step(
        parameters, shape, data, batch_size=40, seed=seeds(device), step=step, refresh=refresh,
        backend="torch",
    )  # fmt: skip
    draw = batch_draw(data, seeds(device), step, 40, refresh)
    flat = parameters.double().requires_grad_()
    y = mlp(noisy_inputs(data, draw).double(), shape.unpack(flat), shape)
    for model in range(2):
        live = slice(None) if draw.live is None else draw.live[model]
        if kind == "classifier":
            labels = data.labels[model, draw.index[model]]
            wanted = F.cross_entropy(y[model, live], labels[live])
        else:
            x_0 = data.points[model, draw.index[model, live]]
            row = data.forward_table[model, draw.t[model, live]].double()
            _, _, p, q, weight = row[..., None].unbind(dim=1)
            error = y[model, live] - p * x_0 - q * draw.eps[model, live]
            wanted = (weight * error.square()).mean()
        (gradient,) = torch.autograd.grad(wanted, flat, retain_graph=True)
        torch.testing.assert_close(loss[model].double(), wanted, rtol=1e-5, atol=0)
        torch.testing.assert_close(grad[model].double(), gradient[model], rtol=1e-4, atol=1e-6)


def test_an_epoch_of_uneven_models_ends_with_a_smaller_batch(device):
    data = uneven_data(device, "denoiser")
    pairs = data.n_points * data.n_steps
    assert pairs[0] != pairs[1]
    last = (pairs - 1) // 40
    for model in range(2):
        live = batch_draw(data, seeds(device), int(last[model]), 40, 2).live[model]
        assert live.sum() == pairs[model] - 40 * last[model]


def test_a_withheld_class_is_the_last_entry(device):
    data = uneven_data(device, "conditional")
    never, always = (data._replace(p_uncond=torch.full_like(data.p_uncond, p)) for p in (0, 1))
    labels = batch_draw(never, seeds(device), 0, 200)
    assert torch.equal(labels.condition, data.labels.gather(1, labels.index))
    assert (batch_draw(always, seeds(device), 0, 200).condition == CLASSES).all()
    draw = batch_draw(data, seeds(device), 0, 2000)
    withheld = (draw.condition == CLASSES).double().mean(dim=1)
    torch.testing.assert_close(withheld, data.p_uncond.double(), rtol=0, atol=0.05)
    other = batch_draw(data, seeds(device), 1, 2000)
    assert not torch.equal(draw.condition == CLASSES, other.condition == CLASSES)


def test_a_withheld_class_stays_withheld_until_the_refresh(device):
    data = uneven_data(device, "conditional", models=1)
    size = int(data.n_points * data.n_steps)
    by_epoch = []
    for epoch in range(3):
        draw = batch_draw(data, seeds(device, 1), epoch, size, 2)
        order = (draw.t * data.n_points[:, None] + draw.index)[0].argsort()
        by_epoch.append(draw.condition[0, order])
    assert torch.equal(by_epoch[0], by_epoch[1])
    assert not torch.equal(by_epoch[0], by_epoch[2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("refresh", [None, 2])
@pytest.mark.usefixtures("poisoned")
def test_chunks_of_a_batch_add_up_to_it(device, backend, refresh):
    network = parameters, shape = make_network(device, "denoiser")
    data = off_kinks(uneven_data(device, "denoiser"), network, 150, 3, refresh)
    options = {"batch_size": 150, "seed": seeds(device), "step": 3, "refresh": refresh}
    loss, grad = train_step(parameters, shape, data, **options, backend="torch")
    workspace = workspace_of(parameters, shape, data, 70, precision="fp32", backend=backend)
    for first in range(0, 150, 70):
        rows = min(70, 150 - first)
        sums = training_sums(parameters, shape, data, workspace, **options, first_row=first,
                             rows=rows, add=first > 0)  # fmt: skip
    mean, mean_loss = mean_of(sums)
    torch.testing.assert_close(mean_loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(mean, grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 63, 65])
@pytest.mark.usefixtures("poisoned")
def test_any_number_of_rows(device, rows):
    network = parameters, shape = make_network(device, "denoiser")
    data = off_kinks(uneven_data(device, "denoiser"), network, 100, 3)
    results = []
    for backend in BACKENDS:
        workspace = workspace_of(parameters, shape, data, 70, precision="fp32", backend=backend)
        sums = training_sums(parameters, shape, data, workspace, batch_size=100,
                             seed=seeds(device), step=3, rows=rows)  # fmt: skip
        results.append(sums.sum(dim=1))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert (results[0][:, -1] == rows * 2).all()


@pytest.mark.parametrize("activation", ["silu", "leaky_relu", "none"])
def test_other_activations(device, activation):
    network = parameters, shape = make_network(device, "denoiser", activation=activation)
    seed = torch.tensor([1, 1], device=device)
    data = off_kinks(uneven_data(device, "denoiser"), network, 40, 3, seed=seed)
    options = {"batch_size": 40, "seed": 1, "step": 3, "precision": "fp32"}
    expected = train_step(parameters, shape, data, **options, backend="torch")
    actual = train_step(parameters, shape, data, **options, backend="triton")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


class Result(NamedTuple):
    parameters: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    ema: torch.Tensor
    losses: torch.Tensor
    means: torch.Tensor


def run(device, backend, precision, kind, clip_norm=None, refresh=None, bad=()):
    """Trains two models with courses of different lengths for six steps."""
    data, (parameters, shape) = uneven_data(device, kind), make_network(device, kind)
    state = adamw_state(parameters)
    workspace = workspace_of(parameters, shape, data, 40, precision=precision, backend=backend)
    course = Course(
        rates=torch.linspace(1e-2, 1e-3, 6, device=device).repeat(2, 1),
        every=torch.tensor([1, 2], device=device),
        total=torch.tensor([4, 12], device=device),
        losses=torch.zeros(2, 12, device=device),
        means=torch.zeros(2, 6, device=device),
    )
    clock = torch.arange(7, device=device)
    for step in range(6):
        sums = training_sums(parameters, shape, data, workspace, batch_size=40,
                             seed=seeds(device), step=clock[step], refresh=refresh)  # fmt: skip
        if step in bad:
            sums[1, 0, 3] = torch.inf
        squares = None
        if clip_norm is not None:
            sums, squares = reduce_grad(sums, backend=backend)
        adamw_(
            parameters, sums, state, lr=course, step=clock[step + 1], clip_norm=clip_norm,
            weight_decay=torch.tensor([0.0, 0.1], device=device), ema_decay=0.9,
            squares=squares, shadow=workspace.shadow, backend=backend,
        )  # fmt: skip
    return Result(parameters, *state, course.losses, course.means)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("precision", "clip_norm", "refresh"),
    [("fp32", 0.05, 1), ("fp16", None, None), ("fp16", 0.05, 1)],
)
def test_steps_on_the_device(device, kind, precision, clip_norm, refresh):
    actual, expected = (
        run(device, backend, precision, kind, clip_norm, refresh) for backend in BACKENDS
    )
    tolerance = {"fp32": 1e-3, "fp16": 2e-2}[precision]
    for name in ("parameters", "ema", "losses", "means"):
        one, other = getattr(actual, name), getattr(expected, name)
        assert (one - other).norm() <= tolerance * other.norm(), name
    assert (actual.losses[0, :4] > 0).all()
    assert (actual.losses[0, 4:] == 0).all()  # its course is over
    torch.testing.assert_close(
        actual.means[1, :2], actual.losses[1, :4].view(2, 2).mean(dim=1), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_is_not_finite_is_not_taken(device, backend):
    good = run(device, backend, "fp32", "denoiser", clip_norm=0.05)
    bad = run(device, backend, "fp32", "denoiser", clip_norm=0.05, bad=(2,))
    for one, other in zip(good, bad, strict=True):
        assert torch.equal(one[0], other[0])  # the other model is unaffected
    assert good.losses.isfinite().all()
    assert bad.parameters.isfinite().all()
    assert not torch.equal(good.parameters[1], bad.parameters[1])
    assert bad.losses[1].isfinite().tolist()[:4] == [True, True, False, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_course_long_over_is_not_looked_into(device, backend):
    """The place of its loss would be far outside of all memory."""
    parameters, one = torch.ones(1, 7, device=device), torch.tensor([1], device=device)
    course = Course(one[None].float(), one, one * 5, torch.zeros(1, 5, device=device))
    sums, step = torch.ones(1, 1, 9, device=device), torch.tensor(2**40, device=device)
    adamw_(parameters, sums, adamw_state(parameters), lr=course, step=step, backend=backend)
    assert (parameters == 1).all()
    assert (course.losses == 0).all()


def test_shadow_weights_are_those_packed_anew(device):
    data, (parameters, shape) = uneven_data(device, "denoiser"), make_network(device, "denoiser")
    from flashpoint.kernels.mlp.operand_weights import operand_weights

    for backend in BACKENDS:
        workspace = workspace_of(parameters, shape, data, 40, backend="triton")
        sums = training_sums(parameters, shape, data, workspace, batch_size=40,
                             seed=seeds(device), step=0)  # fmt: skip
        adamw_(parameters, sums, adamw_state(parameters), lr=0.1, step=1, backend=backend,
               shadow=workspace.shadow)  # fmt: skip
        assert torch.equal(workspace.shadow.packed, operand_weights(parameters, shape, "fp16"))


def test_wrong_arguments_are_named(device):
    data, (parameters, shape) = uneven_data(device, "conditional"), make_network(device, "denoiser")
    options = {"batch_size": 4, "seed": 0, "step": 0}
    with pytest.raises(ValueError, match=r"input width 6 \(point, timestep feature and class"):
        train_step(parameters, shape, data, **options)
    parameters, shape = make_network(device, "conditional")
    with pytest.raises(ValueError, match="class_features need labels and p_uncond"):
        train_step(parameters, shape, data._replace(p_uncond=None), **options)
    with pytest.raises(ValueError, match="refresh must be an integer of at least 1"):
        train_step(parameters, shape, data, **options, refresh=0)
    with pytest.raises(ValueError, match="squares must be given with clip_norm"):
        adamw_(parameters, parameters, adamw_state(parameters), lr=1, step=1, clip_norm=1.0)
