"""The reverse update in a kernel against the reference."""

import pytest
import torch
from flashpoint.kernels import reverse_step
from flashpoint.kernels.philox import Stream
from flashpoint.kernels.reverse_step import draw_noise, kernel, reference

CLOSE = {"rtol": 1e-5, "atol": 3e-6}


@pytest.mark.parametrize("size", [(0, 2), (1, 3), (65, 2), (1000, 1), (2, 63, 5)])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.usefixtures("poisoned")
def test_given_noise(device, size, noisy, guided):
    x_t, eps, z, grad = (torch.randn(size, device=device) for _ in range(4))
    coefficients = torch.randn(*size[:-2], 4, device=device)
    options = {"z": z if noisy else None, "grad_log_p": grad if guided else None}
    actual = reverse_step(x_t, eps, coefficients, backend="triton", **options)
    expected = reverse_step(x_t, eps, coefficients, backend="torch", **options)
    torch.testing.assert_close(actual, expected, **CLOSE)


def test_layouts(device):
    x_t = torch.randn(3, 65, device=device).T
    eps = torch.randn(65, 6, device=device)[:, ::2]
    z = torch.randn(1, 3, device=device).expand(65, 3)
    coefficients = torch.randn(4, device=device)
    actual = reverse_step(x_t, eps, coefficients, z=z, backend="triton")
    expected = reverse_step(x_t, eps, coefficients, z=z, backend="torch")
    torch.testing.assert_close(actual, expected, **CLOSE)


@pytest.mark.parametrize(
    ("dim", "features", "models"), [(2, 1, 1), (3, 2, 2), (1, 0, 1), (5, 3, 2)]
)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.usefixtures("poisoned")
def test_step_of_a_chain(device, dim, features, models, guided):
    rows, first_row, step = 300, 2**32 - 5, 9
    inputs = torch.randn(models, rows, dim + features, device=device)
    eps = torch.randn(models, rows, dim, device=device)
    grad = torch.randn(models, rows, dim + features, device=device) if guided else None
    coefficients = torch.randn(models, 4, device=device)
    next_features = torch.randn(models, features, device=device)
    seed = torch.arange(models, device=device)
    numbers = torch.arange(first_row, first_row + rows, device=device)
    z = draw_noise(seed, Stream.NOISE, torch.tensor([step], device=device), numbers, dim)[0]
    expected = reference.reverse_step(
        inputs[..., :dim], eps, coefficients, z, None if grad is None else grad[..., :dim]
    )
    kernel.reverse_step_(
        inputs, eps, coefficients, next_features,
        seed=seed, step=step, first_row=first_row, grad=grad,
    )  # fmt: skip
    torch.testing.assert_close(inputs[..., :dim], expected, **CLOSE)
    assert torch.equal(inputs[..., dim:], next_features[:, None].expand(models, rows, features))
