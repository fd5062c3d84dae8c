"""Training under the tables of all parametrisations, against losses that are written without them.

The models of a launch have tables, and numbers of timesteps, of their own; what lies behind a
model's last timestep is NaN.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from flashpoint.bench.kinks import data_off_kinks
from flashpoint.kernels import (
    MLPShape,
    eps_table,
    q_sample,
    q_sample_batch,
    train_step,
    training_sums,
    workspace_of,
)
from flashpoint.kernels.mlp.reference import mlp
from flashpoint.kernels.q_sample import kernel
from flashpoint.kernels.q_sample.reference import batch_draw

from .training import CLASS_WIDTH, make_data, make_parameters, one_model, relative_difference

BACKENDS = ("torch", "triton")
DATA = 0.7  # standard deviation of the data, for EDM


def vp_levels(steps):
    """Signal and noise of a variance-preserving process."""
    alpha_bar = torch.linspace(0.99, 0.02, steps, dtype=torch.float64)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def flow_levels(steps):
    """Signal and noise of flow matching, without any data at the last timestep."""
    noise = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return 1 - noise, noise


def edm_levels(steps):
    """Signal and noise of EDM, where the network sees c_in (x_0 + sigma eps)."""
    sigma = torch.logspace(-1, 1, steps, dtype=torch.float64)
    c_in = (sigma.square() + DATA**2).rsqrt()
    return c_in, c_in * sigma


def edm_target(signal, noise):
    """F of D = c_skip (x_0 + sigma eps) + c_out F, solved for what makes D equal to x_0."""
    sigma = noise / signal
    c_skip = DATA**2 / (sigma**2 + DATA**2)
    c_out = sigma * DATA / (sigma**2 + DATA**2).sqrt()
    return (1 - c_skip) / c_out, -c_skip * sigma / c_out


class Rows(NamedTuple):
    """What an output of a network is judged by."""

    x_0: Tensor
    eps: Tensor
    signal: Tensor
    noise: Tensor

    @property
    def snr(self):
        """The signal-to-noise ratio."""
        return (self.signal / self.noise).square()


def edm_loss(y, rows):
    """lambda(sigma) |D - x_0|^2 (Karras et al. 2022, equation 2 and table 1)."""
    sigma = rows.noise / rows.signal
    c_skip = DATA**2 / (sigma**2 + DATA**2)
    c_out = sigma * DATA / (sigma**2 + DATA**2).sqrt()
    denoised = c_skip * (rows.x_0 + sigma * rows.eps) + c_out * y
    return (sigma**2 + DATA**2) / (sigma * DATA) ** 2 * (denoised - rows.x_0).square()


class Parametrisation(NamedTuple):
    """What a network sees and predicts, and its loss for an output y, without a table."""

    levels: Callable[[int], tuple[Tensor, Tensor]]  # signal and noise of a number of timesteps
    numbers: Callable[[Tensor, Tensor], tuple[Tensor | float, ...]]  # weights of x_0, eps and error
    loss: Callable[[Tensor, Rows], Tensor]


PARAMETRISATIONS = {
    "eps": Parametrisation(
        vp_levels, lambda *_: (0.0, 1.0, 1.0), lambda y, rows: (y - rows.eps).square()
    ),
    "x0, min-snr": Parametrisation(
        vp_levels,
        lambda signal, noise: (1.0, 0.0, (signal / noise).square().clamp(max=5)),
        lambda y, rows: rows.snr.clamp(max=5) * (y - rows.x_0).square(),
    ),
    "v, p2": Parametrisation(
        vp_levels,
        lambda signal, noise: (-noise, signal, noise.square()),
        lambda y, rows: (
            (y - (rows.signal * rows.eps - rows.noise * rows.x_0)).square() / (1 + rows.snr)
        ),
    ),
    "flow": Parametrisation(
        flow_levels,
        lambda *_: (-1.0, 1.0, 1.0),
        lambda y, rows: (y - (rows.eps - rows.x_0)).square(),
    ),
    "edm": Parametrisation(
        edm_levels, lambda signal, noise: (*edm_target(signal, noise), 1.0), edm_loss
    ),
}
NAMES, MODELS = list(PARAMETRISATIONS), len(PARAMETRISATIONS)


def table_of(name, steps):
    """The forward table of a parametrisation, float64 [T, 5]."""
    levels = PARAMETRISATIONS[name].levels(steps)
    numbers = PARAMETRISATIONS[name].numbers(*levels)
    ones = torch.ones(steps, dtype=torch.float64)
    return torch.stack((*levels, *(number * ones for number in numbers)), dim=1)


def make_models(device, kind="denoiser", batch_size=70, step=3, refresh=None):
    """One model of each parametrisation: its data, parameters and shape, and the numbers drawn."""
    data = make_data("cpu", kind, MODELS, uneven=True)
    n_steps = torch.tensor([5, 9, 3, 7, 8])
    tables = torch.full_like(data.forward_table, torch.nan)
    features = torch.full_like(data.time_features, torch.nan)
    for model, steps in enumerate(n_steps.tolist()):
        tables[model, :steps] = table_of(NAMES[model], steps)
        features[model, :steps] = data.time_features[model, :steps]
    data = data._replace(
        forward_table=tables, time_features=features, n_steps=n_steps,
        t_table=data.t_table % n_steps[:, None],
    )  # fmt: skip
    data = type(data)(*(None if part is None else part.to(device) for part in data))
    shape = MLPShape((3 + CLASS_WIDTH * (kind == "conditional"), 12, 8, 2))
    parameters = make_parameters(shape, MODELS, device)
    seed = torch.arange(MODELS, device=device) + 2**40
    draw = batch_draw(data, seed, step, batch_size, refresh)
    return data_off_kinks(parameters, shape, data, draw), parameters, shape, seed, draw


def losses_of(flat, shape, data, draw):
    """The mean loss of each model in float64, as its paper writes it."""
    losses = []
    for model, name in enumerate(NAMES):
        live = slice(None) if draw.live is None else draw.live[model]
        index, t = draw.index[model, live], draw.t[model, live]
        x_0, eps = data.points[model, index].double(), draw.eps[model, live].double()
        levels = PARAMETRISATIONS[name].levels(int(data.n_steps[model]))
        rows = Rows(x_0, eps, *(level.to(t.device)[t, None] for level in levels))
        inputs = [rows.signal * x_0 + rows.noise * eps, data.time_features[model, t].double()]
        if draw.condition is not None:
            inputs.append(data.class_features[model, draw.condition[model, live]].double())
        networks = shape.unpack(flat[model : model + 1])
        y = mlp(torch.cat(inputs, dim=1)[None], networks, shape)[0]
        losses.append(PARAMETRISATIONS[name].loss(y, rows).mean())
    return torch.stack(losses)


@pytest.mark.parametrize("kind", ["denoiser", "conditional"])
@pytest.mark.parametrize(("step", "refresh"), [(3, None), (1, 2), (2, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("poisoned")
def test_each_model_has_the_loss_and_the_gradients_of_its_paper(
    device, backend, kind, step, refresh
):
    data, parameters, shape, seed, draw = make_models(device, kind, 70, step, refresh)
    loss, grad = train_step(
        parameters, shape, data, batch_size=70, seed=seed, step=step, refresh=refresh,
        precision="fp32", backend=backend,
    )  # fmt: skip
    flat = parameters.double().requires_grad_()
    wanted = losses_of(flat, shape, data, draw)
    (gradients,) = torch.autograd.grad(wanted.sum(), flat)
    torch.testing.assert_close(loss.double(), wanted.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(grad.double(), gradients, rtol=1e-4, atol=2e-6)


def test_these_steps_of_epochs_have_rows_that_do_not_count(device):
    """So that the test above covers them, beside whole batches."""
    for step in (1, 2):
        live = make_models(device, step=step, refresh=2)[-1].live
        assert live.all(dim=1).any()
        assert not live.all(dim=1).all()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("rows", [0, 1, 63, 65])
@pytest.mark.usefixtures("poisoned")
def test_sums_of_any_number_of_rows(device, rows, precision):
    data, parameters, shape, seed, _ = make_models(device, batch_size=100)
    results = []
    for backend in BACKENDS:
        workspace = workspace_of(parameters, shape, data, 70, precision=precision, backend=backend)
        results.append(training_sums(
            parameters, shape, data, workspace, batch_size=100, seed=seed, step=3, first_row=7,
            rows=rows,
        ).sum(dim=1))  # fmt: skip
    expected, actual = results
    assert torch.equal(actual[:, -1], torch.full((MODELS,), 2.0 * rows, device=device))
    tolerance = {"fp32": 1e-5, "fp16": 1e-2}[precision]
    for one, other in zip(actual[:, :-1], expected[:, :-1], strict=True):
        assert relative_difference(one, other) <= tolerance if rows else not one.any()


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
@pytest.mark.usefixtures("poisoned")
def test_weights_of_any_size(device, precision):
    """Gradients of half precision have room for x_0-prediction with EDM's weights, 1 + SNR."""
    data = make_data(device, "denoiser", 3)
    alpha_bar = torch.linspace(0.9999, 0.02, 9, device=device)
    table = eps_table(alpha_bar).repeat(3, 1, 1)
    table[..., 2], table[..., 3] = 1, 0
    weight = 1 / (1 - alpha_bar)  # 10,000 at the first timestep, 1 at the last
    table[..., 4] = weight * torch.tensor([1.0, 1e-8, 1e8], device=device)[:, None]
    data = data._replace(forward_table=table)
    shape = MLPShape((3, 12, 8, 2))
    parameters, seed = make_parameters(shape, 3, device), torch.arange(3, device=device)
    data = data_off_kinks(parameters, shape, data, batch_draw(data, seed, 3, 65))
    options = {"batch_size": 65, "seed": seed, "step": 3, "precision": precision}
    expected, actual = (
        train_step(parameters, shape, data, backend=backend, **options) for backend in BACKENDS
    )
    for ours, theirs in zip(actual, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert relative_difference(one, other) <= 1e-2


@pytest.mark.parametrize("backend", BACKENDS)
def test_models_of_many_parametrisations_train_as_each_does_alone(device, backend):
    data, parameters, shape, seed, _ = make_models(device)
    options = {"batch_size": 65, "step": 3, "precision": "fp32", "backend": backend}
    together = train_step(parameters, shape, data, seed=seed, **options)
    for model in range(MODELS):
        one = slice(model, model + 1)
        alone = train_step(
            parameters[one], shape, one_model(data, model), seed=seed[one], **options
        )
        for ours, its in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[one], its, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [0, 1, 63, 65])
@pytest.mark.parametrize("kind", ["denoiser", "conditional"])
@pytest.mark.parametrize("refresh", [None, 2])
@pytest.mark.usefixtures("poisoned")
def test_the_draw_is_noised_by_the_table_of_its_model(device, rows, kind, refresh):
    data, *_, seed, _ = make_models(device, kind)
    inputs, draw = kernel.draw(data, seed, 1, 70, refresh, 5, rows)
    expected = batch_draw(data, seed, 1, 70, refresh, 5, rows)
    assert torch.equal(draw.t, expected.t)
    assert torch.equal(draw.index, expected.index)
    for model, name in enumerate(NAMES):
        levels = PARAMETRISATIONS[name].levels(int(data.n_steps[model]))
        t = draw.t[model]
        signal, noise = (level.float().to(t.device)[t, None] for level in levels)
        x_t = signal * data.points[model, draw.index[model]] + noise * draw.eps[model]
        torch.testing.assert_close(inputs[model, :, :2], x_t, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [0, 1, 63, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("poisoned")
def test_given_points_are_noised_by_the_table_of_their_model(device, backend, rows, dtype):
    """The table can also be in float64, as schedules compute it."""
    steps = 6
    tables = torch.stack([table_of(name, steps) for name in NAMES]).to(device)
    x_0, eps = (torch.randn(MODELS, rows, 3, device=device) for _ in range(2))
    t = torch.randint(steps, (MODELS, rows), device=device)
    x_t = q_sample(x_0, tables.to(dtype), t, eps, backend=backend)
    assert x_t.dtype == torch.float32
    for model, name in enumerate(NAMES):
        levels = PARAMETRISATIONS[name].levels(steps)
        signal, noise = (level.float().to(device)[t[model], None] for level in levels)
        wanted = signal * x_0[model] + noise * eps[model]
        torch.testing.assert_close(x_t[model], wanted, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("poisoned")
def test_a_drawn_batch_is_noised_by_the_table_of_its_model(device, backend, dtype):
    steps = 6
    tables = torch.stack([table_of(name, steps) for name in NAMES]).to(device, dtype)
    points, seed = torch.randn(MODELS, 30, 2, device=device), torch.arange(MODELS, device=device)
    x_t, draw = q_sample_batch(points, tables, 65, seed=seed, step=2, backend=backend)
    assert x_t.dtype == torch.float32
    for model in range(MODELS):
        alone, _ = q_sample_batch(
            points[model], tables[model], 65, seed=seed[model : model + 1], step=2, backend=backend
        )
        assert torch.equal(x_t[model], alone[0])
        signal, noise = tables[model, draw.t[model], :2, None].float().unbind(dim=1)
        wanted = signal * points[model, draw.index[model]] + noise * draw.eps[model]
        torch.testing.assert_close(x_t[model], wanted, rtol=1e-5, atol=3e-6)


def test_the_table_of_eps():
    alpha_bar = torch.tensor([[1.0, 0.64], [0.36, 0.0]], dtype=torch.float64)
    wanted = torch.tensor([
        [[1.0, 0.0, 0.0, 1.0, 1.0], [0.8, 0.6, 0.0, 1.0, 1.0]],
        [[0.6, 0.8, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0, 1.0]],
    ]).double()  # fmt: skip
    torch.testing.assert_close(eps_table(alpha_bar), wanted)
    torch.testing.assert_close(eps_table(alpha_bar[0]), wanted[0])
    with pytest.raises(TypeError, match=r"^alpha_bar must be a floating-point tensor"):
        eps_table(torch.ones(3, dtype=torch.int64))
