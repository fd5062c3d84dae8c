"""The reverse update in a kernel against the reference."""

import pytest
import torch

from flashpoint.kernels import reverse_step

CLOSE = {"rtol": 1e-5, "atol": 3e-6}


@pytest.mark.parametrize("size", [(0, 2), (1, 3), (65, 2), (1000, 1), (2, 63, 5)])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("guided", [None, "grad_log_p", "eps_uncond"])
@pytest.mark.usefixtures("poisoned")
def test_given_noise(device, size, noisy, guided):
    x_t, eps, z, grad = (torch.randn(size, device=device) for _ in range(4))
    coefficients = torch.randn(*size[:-2], 4, device=device)
    options = {"z": z if noisy else None, **({guided: grad} if guided else {})}
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


@pytest.mark.parametrize("size", [(0, 2), (300, 2), (2, 63, 5)])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.usefixtures("poisoned")
def test_drawn_noise(device, size, guided):
    x_t, eps, grad = (torch.randn(size, device=device) for _ in range(3))
    options = {"grad_log_p": grad if guided else None, "step": 9, "first_row": 2**32 - 5}
    coefficients = torch.randn(4, device=device)
    seed = torch.arange(2, device=device) if len(size) == 3 else 7
    actual, expected = (
        reverse_step(x_t, eps, coefficients, seed=seed, backend=backend, **options)
        for backend in ("triton", "torch")
    )
    torch.testing.assert_close(actual, expected, **CLOSE)
    counted = reverse_step(
        x_t, eps, coefficients, seed=seed, backend="triton",
        **(options | {"step": torch.tensor([9], device=device)}),
    )  # fmt: skip
    assert torch.equal(counted, actual)
    if actual.numel():
        assert not torch.equal(
            actual, reverse_step(x_t, eps, coefficients, backend="triton", **options)
        )
