"""Philox in a kernel: the integers of the reference and of ``tl.randint4x``, bit for bit."""

import math

import pytest
import torch
import triton
import triton.language as tl

from flashpoint.kernels.philox import (
    Stream,
    kernel,
    normals,
    permute,
    random_words,
    uniform_integers,
)

ROWS = 64
SEEDS = (0, 12345, 2**32 + 7, 2**63 - 1)
STEPS = (0, 1, 2**31 + 5, 2**32 - 1)


@triton.jit(do_not_specialize=["step", "block", "n"])
def draw(
    seed_ptr, step, element_ptr, block, n, words_ptr, integers_ptr, normals_ptr, order_ptr,
    ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, ROWS)
    seed = tl.load(seed_ptr)
    element = tl.load(element_ptr + row)
    w0, w1, w2, w3 = kernel.random_words(seed, kernel.NOISE, step, element, block)
    tl.store(words_ptr + row * 4, w0.to(tl.int64))
    tl.store(words_ptr + row * 4 + 1, w1.to(tl.int64))
    tl.store(words_ptr + row * 4 + 2, w2.to(tl.int64))
    tl.store(words_ptr + row * 4 + 3, w3.to(tl.int64))
    tl.store(integers_ptr + row, kernel.uniform_integers(w0, tl.minimum(n, 2147483647)))
    z0, z1 = kernel.normal_pair(seed, kernel.NOISE, step, element, block * 2 + 1)
    tl.store(normals_ptr + row * 2, z0)
    tl.store(normals_ptr + row * 2 + 1, z1)
    tl.store(order_ptr + row, kernel.permute(row.to(tl.int64) % n, n.to(tl.int64), seed, step))


@triton.jit
def randint4x(seed_ptr, element_ptr, words_ptr, ROWS: tl.constexpr):
    row = tl.arange(0, ROWS)
    w0, w1, w2, w3 = tl.randint4x(tl.load(seed_ptr), tl.load(element_ptr + row))
    tl.store(words_ptr + row * 4, w0.to(tl.uint32, bitcast=True).to(tl.int64))
    tl.store(words_ptr + row * 4 + 1, w1.to(tl.uint32, bitcast=True).to(tl.int64))
    tl.store(words_ptr + row * 4 + 2, w2.to(tl.uint32, bitcast=True).to(tl.int64))
    tl.store(words_ptr + row * 4 + 3, w3.to(tl.uint32, bitcast=True).to(tl.int64))


def elements(device):
    """Small numbers, and ones around the edges of 32 and 63 bits."""
    small = torch.arange(ROWS - 4)
    return torch.cat((small, torch.tensor([2**32 - 1, 2**32, 2**40 + 3, 2**63 - 1]))).to(device)


def run(device, seed, step, block, n):
    seeds = torch.tensor([seed], device=device)
    words, integers, noise, order = (
        torch.empty((ROWS, width), dtype=dtype, device=device)
        for width, dtype in (
            (4, torch.int64),
            (1, torch.int64),
            (2, torch.float32),
            (1, torch.int64),
        )
    )
    draw[1,](seeds, step, elements(device), block, n, words, integers, noise, order, ROWS)
    return seeds, words, integers[:, 0], noise, order[:, 0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("block", [0, 5])
def test_words_are_those_of_the_reference(device, seed, step, block):
    seeds, words, integers, noise, _ = run(device, seed, step, block, 500)
    expected = random_words(seeds, Stream.NOISE, step, elements(device), 4 * block + 4)[0, :, -4:]
    assert torch.equal(words, expected)
    assert torch.equal(integers, uniform_integers(expected[:, 0], 500))
    torch.testing.assert_close(noise, normals(expected[:, 2:]), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 60, 64, 65, 2_500_000, 2**33 + 1, 2**62])
def test_permutation_is_that_of_the_reference(device, n):
    seeds, _, _, _, order = run(device, 2**40 + 1, 3, 0, n)
    rows = torch.arange(ROWS, device=device) % n
    assert torch.equal(order, permute(rows, n, seeds, 3)[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reference_is_randint4x(device, seed):
    seeds = torch.tensor([seed], device=device)
    words = torch.empty((ROWS, 4), dtype=torch.int64, device=device)
    randint4x[1,](seeds, elements(device), words, ROWS)
    assert torch.equal(words, random_words(seeds, Stream.DRAW, 0, elements(device), 4)[0])


@triton.jit
def turn(word_ptr, out_ptr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    word = tl.load(word_ptr + row).to(tl.uint32)
    cosine, sine = kernel._turn(kernel.uniform(word))
    tl.store(out_ptr + row * 2, cosine)
    tl.store(out_ptr + row * 2 + 1, sine)


def test_cosine_and_sine(device):
    """All around the circle and close to the axes, against float64."""
    grid = torch.arange(0, 2**32, 2**18)
    axes = torch.arange(0, 2**32, 2**30)[:, None] + torch.arange(0, 2**15, 2**7)
    words = torch.cat((grid, axes.flatten(), (2**32 - 1 - axes).flatten(), grid))[: 2**15]
    words = words.to(device)
    out = torch.empty((2**15, 2), device=device)
    turn[2**5,](words, out, 2**10)
    angle = 2 * math.pi * ((words >> 8).float() * 2.0**-24 + 2.0**-25).double()
    expected = torch.stack((angle.cos(), angle.sin()), dim=-1)
    assert (out - expected).abs().max() <= 2e-7
