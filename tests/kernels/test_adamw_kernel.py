"""The optimiser in one launch against the reference."""

import pytest
import torch

from flashpoint.kernels import adamw_, adamw_state


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
