"""The quicker interpreter of the tests leaves Triton as it was and finds the same numbers."""

import pytest
import torch
import triton
import triton.language as tl
from triton.errors import TritonError


@triton.jit
def _half(x):
    return x * 0.5


@triton.jit
def sums_of_halves(x_ptr, sum_ptr, WRONG: tl.constexpr, SIZE: tl.constexpr):
    """Writes the sum of halves, by a function of this file and one of Triton's library."""
    x = tl.load(x_ptr + tl.arange(0, SIZE))
    tl.static_assert(not WRONG)
    tl.store(sum_ptr, tl.sum(_half(_half(x)) + tl.sigmoid(_half(x)), axis=0))


def names():
    """Returns everything in Triton that a launch replaces."""
    owners = (tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)
    return [{name: id(value) for name, value in vars(owner).items()} for owner in owners]


def test_each_launch_leaves_triton_as_it_was(device):
    x, found = torch.randn(8, device=device), torch.empty(1, device=device)
    expected = (x.double() / 4 + torch.sigmoid(x.double() / 2)).sum()
    sums_of_halves[(1,)](x, found, WRONG=False, SIZE=8)
    before = names()
    for _ in range(2):
        sums_of_halves[(1,)](x, found.zero_(), WRONG=False, SIZE=8)
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-6, atol=1e-6)
        assert names() == before
    with pytest.raises(TritonError):
        sums_of_halves[(1,)](x, found, WRONG=True, SIZE=8)
    assert names() == before
