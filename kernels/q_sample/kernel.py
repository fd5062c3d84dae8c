"""The forward process in Triton: draw a row, noise it, write what the network sees of it.

Same contract as :mod:`.reference`. One launch draws index, timestep and noise, gathers the point
and the timestep's feature, and writes x_t.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import device_of, model_stride
from ..philox.kernel import DRAW, normal_pair, permute, random_words, uniform_integers
from .reference import Draw

_ROWS = 256  # rows of a program
_ELEMENTS = 1024  # elements of an element-wise program
# Arguments that change from call to call: no kernel is compiled anew for a value of 1 or of 16.
_VARYING = ["entries", "step", "refresh", "first_row", "rows", "points", "pairs", "bits"]


class Source(NamedTuple):
    """What rows are drawn from; the first axis is M, or 1 if all models share it."""

    points: Tensor  # float32 [M, N, d]
    alpha_bar: Tensor  # float32 [M, T]
    time_features: Tensor  # float32 [M, T, F]
    n_points: Tensor  # int64 [M], how many of the N points each model has
    t_table: Tensor  # int64 [M, K], timesteps that fresh rows are drawn from


@triton.jit(do_not_specialize=_VARYING)
def draw_kernel(
    points_ptr, points_stride, alpha_bar_ptr, alpha_bar_stride, features_ptr, features_stride,
    n_points_ptr, t_table_ptr, t_table_stride, entries, seed_ptr, step, refresh, first_row, rows,
    points, pairs, bits, inputs_ptr, eps_ptr, t_ptr, index_ptr,
    DIM: tl.constexpr, FEATURES: tl.constexpr, EPOCH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Inputs [M, rows, DIM + FEATURES] of the network, eps, t and index of ``rows`` rows.

    Grid (row tiles, pairs of columns, M): first the pairs of coordinates, then those of features.

    Without EPOCH the draw is a function of (seed, step, row). With it, ``step`` is the epoch, the
    row is a position in the order of the ``pairs`` of timestep and one of ``points`` points, whose
    numbers have ``bits`` bits, and the noise is a function of the pair and ``refresh``.
    """
    PAIRS: tl.constexpr = (DIM + 1) // 2
    pair = tl.program_id(1)
    model = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    seed = tl.load(seed_ptr + model)
    element = first_row + row.to(tl.int64)
    if EPOCH:
        element = permute(tl.where(live, element, 0), pairs, bits, seed, step)
        index, t = element % points, element // points
        step = refresh
    else:
        word_0, word_1, _, _ = random_words(seed, DRAW, step, element, 0)
        index = uniform_integers(word_0, tl.load(n_points_ptr + model))
        t_table = t_table_ptr + model * t_table_stride
        t = tl.load(t_table + uniform_integers(word_1, entries))
    position = model * rows + row
    inputs = inputs_ptr + position * (DIM + FEATURES)
    if pair == 0:
        tl.store(index_ptr + position, index, mask=live)
        tl.store(t_ptr + position, t, mask=live)
    if pair < PAIRS:
        # The first pair of a row's words made index and t.
        eps_0, eps_1 = normal_pair(seed, DRAW, step, element, pair + 1)
        alpha_bar = tl.load(alpha_bar_ptr + model * alpha_bar_stride + t, mask=live, other=1.0)
        x_0 = points_ptr + model * points_stride + index * DIM
        eps = eps_ptr + position * DIM
        _noise(x_0, eps, inputs, pair * 2, eps_0, alpha_bar, live)
        if pair * 2 + 1 < DIM:
            _noise(x_0, eps, inputs, pair * 2 + 1, eps_1, alpha_bar, live)
    else:
        first = (pair - PAIRS) * 2
        features = features_ptr + model * features_stride + t * FEATURES
        for column in range(first, tl.minimum(first + 2, FEATURES)):
            tl.store(inputs + DIM + column, tl.load(features + column, mask=live), mask=live)


@triton.jit
def _noise(x_0, eps, inputs, column, value, alpha_bar, live):
    """Writes one coordinate of eps and of x_t."""
    x_t = tl.sqrt_rn(alpha_bar) * tl.load(x_0 + column, mask=live, other=0.0)
    x_t += tl.sqrt_rn(1 - alpha_bar) * value
    tl.store(eps + column, value, mask=live)
    tl.store(inputs + column, x_t, mask=live)


@triton.jit
def noise_kernel(
    x_0_ptr, alpha_bar_ptr, alpha_bar_stride, t_ptr, eps_ptr, x_t_ptr, elements,
    DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x_t [M, elements] of given x_0, t [M, elements / DIM] and eps; grid (blocks, M)."""
    model = tl.program_id(1).to(tl.int64)
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = element < elements
    t = tl.load(t_ptr + model * (elements // DIM) + element // DIM, mask=live, other=0)
    alpha_bar = tl.load(alpha_bar_ptr + model * alpha_bar_stride + t).to(tl.float32)
    element += model * elements
    x_0 = tl.load(x_0_ptr + element, mask=live, other=0.0).to(tl.float32)
    eps = tl.load(eps_ptr + element, mask=live, other=0.0).to(tl.float32)
    x_t = tl.sqrt_rn(alpha_bar) * x_0 + tl.sqrt_rn(1 - alpha_bar) * eps
    tl.store(x_t_ptr + element, x_t.to(x_t_ptr.dtype.element_ty), mask=live)


def q_sample(x_0: Tensor, alpha_bar: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t from given x_0 [M, B, d], alpha_bar [M, T] or [1, T], t [M, B] and eps [M, B, d]."""
    models, rows, dim = x_0.shape
    x_t = torch.empty_like(x_0, memory_format=torch.contiguous_format)
    alpha_bar = alpha_bar.contiguous()
    if x_t.numel():
        with device_of(x_0):
            noise_kernel[triton.cdiv(rows * dim, _ELEMENTS), models](
                x_0.contiguous(), alpha_bar, model_stride(alpha_bar), t.contiguous(),
                eps.contiguous(), x_t, rows * dim, dim, _ELEMENTS,
            )  # fmt: skip
    return x_t


def draw_fresh(
    source: Source, seed: Tensor, step: int, first_row: int, rows: int
) -> tuple[Tensor, Draw]:
    """Rows drawn anew in every step, a function of (seed, step, row).

    Args:
        source: what is drawn from.
        seed: int64 [M].
        step: training step in [0, 2**32).
        first_row: global number of the first row.
        rows: how many rows B.

    Returns:
        The network's inputs, float32 [M, B, d + F]: x_t and the feature of t; and the draw.
    """
    return _draw(source, seed, step, 0, first_row, rows, 0)


def draw_epoch(
    source: Source, seed: Tensor, epoch: int, refresh: int, first_row: int, rows: int
) -> tuple[Tensor, Draw]:
    """Rows of an epoch's order over all pairs of the N points and T timesteps.

    Args:
        source: what is drawn from; every model has all N points and T timesteps.
        seed: int64 [M].
        epoch, refresh: which order and which noise, in [0, 2**32).
        first_row: position in the order of the first row; rows after the last pair are left out.
        rows: how many rows B at most.

    Returns:
        As :func:`draw_fresh`.
    """
    pairs = source.points.shape[1] * source.alpha_bar.shape[1]
    rows = max(0, min(rows, pairs - first_row))
    return _draw(source, seed, epoch, refresh, first_row, rows, pairs)


def _draw(
    source: Source, seed: Tensor, step: int, refresh: int, first_row: int, rows: int, pairs: int
) -> tuple[Tensor, Draw]:
    models, dim, width = len(seed), source.points.shape[-1], source.time_features.shape[-1]
    points, alpha_bar, features, n_points, t_table = (part.contiguous() for part in source)
    inputs = points.new_empty((models, rows, dim + width))
    eps = points.new_empty((models, rows, dim))
    t, index = (seed.new_empty((models, rows)) for _ in range(2))
    pairs_of_columns = triton.cdiv(dim, 2) + triton.cdiv(width, 2)
    if rows and models:
        with device_of(points):
            draw_kernel[triton.cdiv(rows, _ROWS), pairs_of_columns, models](
                points, model_stride(points), alpha_bar, model_stride(alpha_bar),
                features, model_stride(features), n_points, t_table, model_stride(t_table),
                t_table.shape[1], seed.contiguous(), step, refresh, first_row, rows,
                points.shape[1], pairs, max(0, pairs - 1).bit_length(),
                inputs, eps, t, index, dim, width, pairs > 0, _ROWS,
            )  # fmt: skip
    return inputs, Draw(index, t, eps)
