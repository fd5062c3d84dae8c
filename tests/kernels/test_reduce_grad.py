"""Adding up the parts of a gradient: the sum, its norm, and whether it is finite."""

import pytest
import torch

from flashpoint.kernels import ReducedGradient, reduce_grad
from flashpoint.kernels.reduce_grad.reference import empty_parts

BACKENDS = ("torch", "triton")


def make_sums(device, models, splits, size):
    sums = torch.randn(models, splits, size, device=device)
    sums[..., -1] = torch.arange(1, models * splits + 1, device=device).view(models, splits)
    return sums


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(1, 1, 3), (2, 3, 1025), (3, 8, 2050), (1, 2, 2)])
@pytest.mark.usefixtures("poisoned")
def test_sums_and_norm(device, backend, size):
    sums = make_sums(device, *size)
    reduced = reduce_grad(sums, backend=backend)
    total = sums.double().sum(dim=1)
    norm = (total[:, :-2] / total[:, -1:]).square().sum(dim=1)
    torch.testing.assert_close(reduced.sums[:, 0].double(), total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reduced.squared_norm.double(), norm, rtol=1e-5, atol=1e-9)
    assert reduced.finite.all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_number_that_is_not_finite_is_found(device, backend, value):
    sums = make_sums(device, 3, 4, 2000)
    sums[1, 2, 1500] = value
    assert reduce_grad(sums, backend=backend).finite.tolist() == [True, False, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_part_is_measured_in_place(device, backend):
    sums = make_sums(device, 2, 1, 1500)
    expected = reduce_grad(sums.clone(), backend=backend)
    out = ReducedGradient(sums, torch.empty(2, 2, device=device))
    reduced = reduce_grad(sums, out=out, backend=backend)
    assert reduced.sums is sums
    torch.testing.assert_close(reduced.sums, expected.sums, rtol=0, atol=0)
    torch.testing.assert_close(reduced.squares, expected.squares, rtol=0, atol=0)


def test_the_same_parts_give_the_same_bits_and_both_backends_the_same_numbers(device):
    sums = make_sums(device, 2, 7, 1500)
    first, second = (reduce_grad(sums, backend="triton") for _ in range(2))
    assert torch.equal(first.sums, second.sums)
    assert torch.equal(first.squares, second.squares)
    reference = reduce_grad(sums, backend="torch")
    torch.testing.assert_close(first.sums, reference.sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("splits", [1, 2, 7, 8, 9, 33])
@pytest.mark.parametrize("size", [1024, 1025, 2050])
@pytest.mark.usefixtures("poisoned")
def test_parts_on_cache_lines_of_their_own(device, splits, size):
    """Neither the strides nor the gaps between parts change a bit of the result."""
    dense = make_sums(device, 3, splits, size)
    apart = empty_parts(dense, 3, splits, size)
    apart.copy_(dense)
    assert apart.stride(1) % 32 == 0
    actual, expected = (reduce_grad(sums, backend="triton") for sums in (apart, dense))
    assert torch.equal(actual.sums, expected.sums)
    assert torch.equal(actual.squares, expected.squares)
    torch.testing.assert_close(
        actual.sums[:, 0].double(), dense.double().sum(dim=1), rtol=1e-5, atol=1e-5
    )


def test_scattered_parts_go_to_the_reference(device):
    sums = make_sums(device, 2, 50, 3)
    actual = reduce_grad(sums.mT.contiguous().mT, backend="triton")
    expected = reduce_grad(sums, backend="torch")
    torch.testing.assert_close(actual.sums, expected.sums)


def test_wrong_shapes_are_named(device):
    with pytest.raises(ValueError, match=r"sums must be \[M, S, P \+ 2\], got \[3, 4\]"):
        reduce_grad(torch.ones(3, 4, device=device))
    out = ReducedGradient(torch.ones(1, 1, 4, device=device), torch.ones(1, 1, device=device))
    with pytest.raises(ValueError, match=r"out.sums must be \[1, 1, 5\], got \[1, 1, 4\]"):
        reduce_grad(torch.ones(1, 2, 5, device=device), out=out)
