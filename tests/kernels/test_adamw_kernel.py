"""The optimiser in one launch against the reference."""

import pytest
import torch

from flashpoint.kernels import AdamWState, Course, MLPShape, adamw_, adamw_state, shadow_of
from flashpoint.kernels.mlp.operand_weights import operands_of
from flashpoint.kernels.reduce_grad.reference import empty_parts


def run(parameters, grads, backend, **options):
    """Returns parameters and state after a few updates."""
    parameters = parameters.clone()
    state = adamw_state(parameters)
    for step, grad in enumerate(grads, start=1):
        adamw_(parameters, grad, state, step=step, backend=backend, **options)
    return parameters, *state


@pytest.mark.parametrize(("models", "size"), [(1, 1), (1, 1024), (3, 1025), (2, 5000)])
@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("per_model", [True, False])
def test_updates(device, models, size, decoupled, per_model):
    parameters = torch.randn(models, size, device=device)
    grads = torch.randn(5, models, size, device=device)
    options = {
        "lr": torch.linspace(1e-3, 3e-3, models, device=device) if per_model else 2e-3,
        "decoupled": decoupled,
        "weight_decay": 0.1,
        "ema_decay": 0.9,
    }
    for actual, expected in zip(
        run(parameters, grads, "triton", **options),
        run(parameters, grads, "torch", **options),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def exact_update(parameters, state, grad, step, lr, weight_decay, ema_decay, decoupled):
    """Returns parameters and state after one update, in float64."""
    p, m, v, ema = (tensor.double() for tensor in (parameters, *state))
    if not decoupled:
        grad = grad + weight_decay * p
    m = 0.9 * m + 0.1 * grad
    v = 0.999 * v + 0.001 * grad.square()
    if decoupled:
        p = p * (1 - lr * weight_decay)
    p = p - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    return p, m, v, ema_decay * ema + (1 - ema_decay) * p


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("step", [1, 2, 10, 300, 700, 5000, 10**6])
@pytest.mark.parametrize(("models", "size", "splits"), [(1, 1029, 8), (3, 515, 2)])
def test_an_update_in_float64(device, step, decoupled, models, size, splits):
    """Numbers agree to 1e-6, also where 1 - beta^step is a small difference."""
    parameters = torch.randn(models, size, device=device)
    sums = empty_parts(parameters, models, splits, size + 2).normal_()
    sums[..., -1] = 3.0
    mean = sums[..., :-2].double().sum(dim=1) / (3 * splits)
    state = AdamWState(mean.float(), mean.square().float() + 0.1, parameters.clone())
    options = {"lr": 0.5, "weight_decay": 0.1, "ema_decay": 0.9, "decoupled": decoupled}
    expected = exact_update(parameters, state, mean, step, **options)
    adamw_(parameters, sums, state, step=torch.tensor(step, device=device), backend="triton",
           **options)  # fmt: skip
    for actual, wanted in zip((parameters, *state), expected, strict=True):
        error = (actual.double() - wanted).abs()
        assert (error <= 1e-6 * wanted.abs().clamp(min=0.5)).all()


@pytest.mark.parametrize("splits", [1, 2, 7, 33])
@pytest.mark.parametrize("size", [511, 512, 1025])
def test_strides_of_the_sums_change_no_bit(device, splits, size):
    parameters = torch.randn(3, size, device=device)
    dense = torch.randn(1, 3, splits, size + 2, device=device)
    dense[..., -1] = 2.0
    apart = empty_parts(parameters, 3, splits, size + 2)
    apart.fill_(torch.nan)
    apart.copy_(dense[0])
    for actual, expected in zip(
        run(parameters, [apart], "triton", lr=1e-2),
        run(parameters, dense, "triton", lr=1e-2),
        strict=True,
    ):
        assert torch.equal(actual, expected)


def test_models_share_a_learning_rate(device):
    parameters, grads = torch.randn(2, 70, device=device), torch.randn(1, 2, 70, device=device)
    expected = run(parameters, grads, "triton", lr=1e-2)
    actual = run(parameters, grads, "triton", lr=torch.tensor([1e-2], device=device))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_scattered_parameters_go_to_the_reference(device):
    parameters = torch.randn(70, 2, device=device).T
    grads = torch.randn(1, 2, 70, device=device)
    for actual, expected in zip(
        run(parameters, grads, "triton", lr=1e-2),
        run(parameters.contiguous(), grads, "torch", lr=1e-2),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("loss", [torch.nan, torch.inf])
def test_a_model_whose_loss_is_not_finite_stays_as_it_is(device, backend, loss):
    parameters = torch.randn(2, 70, device=device)
    sums = torch.rand(1, 2, 3, 72, device=device)  # gradient, loss and rows, in three parts
    sums[0, 1, 2, 70] = loss
    before = (parameters, *adamw_state(parameters))
    after = run(parameters, sums, backend, lr=1e-2)
    for old, new in zip(before, after, strict=True):
        assert not torch.equal(new[0], old[0])
        assert torch.equal(new[1], old[1])


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_only_a_gradient_longer_than_the_norm_is_clipped(device, backend):
    parameters = torch.randn(2, 70, device=device)
    grads = torch.randn(1, 2, 70, device=device) * torch.tensor([1.0, 0.01], device=device)[:, None]
    squares = grads[0].square().sum(dim=1, keepdim=True)
    clipped = grads / squares.sqrt().clamp(min=1)
    options = {"lr": 1e-2, "eps": 1.0}  # a large eps, so that the length of the gradient matters
    for actual, expected in zip(
        run(parameters, grads, backend, clip_norm=1.0, squares=squares, **options),
        run(parameters, clipped, "torch", **options),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("per_model", [True, False])
def test_a_norm_of_zero_leaves_no_gradient(device, backend, per_model):
    parameters, grads = torch.randn(2, 70, device=device), torch.randn(1, 2, 70, device=device)
    clip_norm = torch.zeros(2, device=device) if per_model else 0.0
    squares = grads[0].square().sum(dim=1, keepdim=True)
    after, exp_avg, *_ = run(
        parameters, grads, backend, lr=0.1, weight_decay=0.0, clip_norm=clip_norm, squares=squares
    )
    assert not exp_avg.any()
    assert torch.equal(after, parameters)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_an_infinite_norm_clips_nothing(device, backend):
    parameters, grads = torch.randn(2, 70, device=device), torch.randn(1, 2, 70, device=device)
    squares = grads[0].square().sum(dim=1, keepdim=True)
    for actual, expected in zip(
        run(parameters, grads, backend, lr=0.1, clip_norm=float("inf"), squares=squares),
        run(parameters, grads, backend, lr=0.1),
        strict=True,
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_mean_gradient_tells_no_loss(device, backend):
    one = torch.ones(2, dtype=torch.int64, device=device)
    course = Course(
        torch.full((2, 1), 0.1, device=device), one, one, torch.full((2, 1), 7.0, device=device),
        torch.full((2, 1), 5.0, device=device),
    )  # fmt: skip
    parameters, grads = torch.randn(2, 70, device=device), torch.randn(1, 2, 70, device=device)
    after, *_ = run(parameters, grads, backend, lr=course)
    assert not torch.equal(after, parameters)
    assert course.losses.tolist() == [[7.0], [7.0]]
    assert course.means.tolist() == [[5.0], [5.0]]


def check_shadow(device, shape, precision, models, **options):
    parameters = torch.randn(models, shape.num_parameters, device=device)
    shadow = shadow_of(parameters, shape, precision, **options)
    adamw_(parameters, torch.randn_like(parameters), adamw_state(parameters), lr=0.1, step=1,
           shadow=shadow, backend="triton")  # fmt: skip
    assert torch.equal(shadow.packed, shadow_of(parameters, shape, precision, **options).packed)


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("precision", ["fp16", "tf32", "fp32"])
@pytest.mark.parametrize("widths", [(3, 256, 40, 2), (70, 17, 33, 1), (1, 1)])
def test_shadow_of_every_layer(device, widths, precision, models):
    check_shadow(device, MLPShape(widths), precision, models)


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("widths", [(3, 256, 130, 100, 2), (20, 60, 33, 17)])
def test_chunked_shadow_of_every_layer(device, widths, models):
    check_shadow(device, MLPShape(widths), "fp16", models, chunked=True)


@pytest.mark.parametrize("widths", [(3, 256, 130, 100, 2), (20, 60, 33, 17)])
def test_a_chunked_shadow_has_the_layout_of_chunks(device, widths):
    shape = MLPShape(widths)
    parameters = torch.randn(2, shape.num_parameters, device=device)
    shadow = shadow_of(parameters, shape, "fp16", chunked=True)
    assert torch.equal(shadow.packed, operands_of(parameters, shadow.layout))
