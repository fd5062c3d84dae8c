"""The forward process in Triton: draw a row, noise it, write what the network sees of it.

Same contract as :mod:`.reference`. One launch draws index, timestep, noise and class, gathers
the point and the features, and writes x_t and the rest of the network's input.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import device_of, model_stride
from ..philox.kernel import CLASS as CLASS_STREAM
from ..philox.kernel import DRAW, normal_pair, permute, random_words, uniform, uniform_integers
from .reference import Draw, TrainingData

_ROWS = 256  # rows of a program
_ELEMENTS = 1024  # elements of an element-wise program
# Arguments that change from call to call: no kernel is compiled anew for a value of 1 or of 16, nor
# for a step counter that is not at a multiple of 16 bytes.
_VARYING = [
    "entries", "steps", "step_ptr", "step", "batch_size", "refresh", "first_row", "rows", "classes",
]  # fmt: skip


@triton.jit(do_not_specialize=_VARYING)
def draw_kernel(
    points_ptr, points_stride, alpha_bar_ptr, alpha_bar_stride, features_ptr, features_stride,
    labels_ptr, labels_stride, class_features_ptr, class_features_stride, classes, p_uncond_ptr,
    n_points_ptr, n_steps_ptr, steps, t_table_ptr, t_table_stride, n_entries_ptr, entries,
    seed_ptr, step_ptr, step, batch_size, refresh, first_row, rows,
    inputs_ptr, eps_ptr, t_ptr, index_ptr, condition_ptr, live_ptr,
    DIM: tl.constexpr, TIME: tl.constexpr, CLASS: tl.constexpr, EPOCH: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Inputs [M, rows, DIM + TIME + CLASS] of the network and the draw of ``rows`` rows.

    Grid (row tiles, pairs of columns, M): first the pairs of coordinates, then those of features.
    The step is read from its pointer, or without one it is ``step``; see
    :func:`~.reference.batch_draw` for what a row is a function of.
    """
    pair = tl.program_id(1)
    model = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = row < rows
    seed = tl.load(seed_ptr + model)
    if step_ptr is not None:
        step = tl.load(step_ptr)
    index, t, element, step, live = locate_rows(
        first_row + row.to(tl.int64), model, n_points_ptr, n_steps_ptr, steps,
        t_table_ptr + model * t_table_stride, n_entries_ptr, entries,
        seed, step, batch_size, refresh, EPOCH,
    )  # fmt: skip
    position = model * rows + row
    told = class_features_ptr
    once = row < tl.where(pair == 0, rows, 0)
    if CLASS > 0:
        condition = draw_condition(
            labels_ptr + model * labels_stride, index, tl.load(p_uncond_ptr + model), classes,
            seed, step, element,
        )  # fmt: skip
        told += model * class_features_stride + condition * CLASS
        tl.store(condition_ptr + position, condition, mask=once)
    tl.store(index_ptr + position, index, mask=once)
    tl.store(t_ptr + position, t, mask=once)
    if EPOCH:
        tl.store(live_ptr + position, live, mask=once)
    write_rows(
        points_ptr + model * points_stride + index * DIM,
        tl.load(alpha_bar_ptr + model * alpha_bar_stride + t),
        features_ptr + model * features_stride + t * TIME, told, seed, step, element,
        inputs_ptr + position * (DIM + TIME + CLASS), eps_ptr + position * DIM, present,
        pair, pair + 1, DIM, TIME, CLASS,
    )  # fmt: skip


@triton.jit
def locate_rows(
    row, model, n_points_ptr, n_steps_ptr, steps, t_table, n_entries_ptr, entries,
    seed, step, batch_size, refresh, EPOCH: tl.constexpr,
):  # fmt: skip
    """Which point and timestep the rows of a step's batch are made of.

    Returns:
        index, t, the element and the step that the rows' noise is a function of, and whether a row
        is there: an epoch's last batch has fewer. Rows that are not have the draw of position 0.
    """
    n_points = tl.load(n_points_ptr + model)
    if EPOCH:
        if n_steps_ptr is not None:
            steps = tl.load(n_steps_ptr + model)
        pairs = n_points * steps
        length = tl.cdiv(pairs, batch_size)  # of an epoch, in steps
        epoch = step // length
        position = row + (step % length) * batch_size
        live = position < pairs
        element = permute(tl.where(live, position, 0), pairs, seed, epoch)
        index, t, step = element % n_points, element // n_points, epoch // refresh
    else:
        if n_entries_ptr is not None:
            entries = tl.load(n_entries_ptr + model)
        word_0, word_1, _, _ = random_words(seed, DRAW, step, row, 0)
        element, live = row, row >= 0
        index = uniform_integers(word_0, n_points)
        t = tl.load(t_table + uniform_integers(word_1, entries))
    return index, t, element, step, live


@triton.jit
def draw_condition(labels, index, p_uncond, classes, seed, step, element):
    """The class that the network is told of each row, ``classes`` where it is withheld."""
    word, _, _, _ = random_words(seed, CLASS_STREAM, step, element, 0)
    return tl.where(uniform(word) < p_uncond, classes, tl.load(labels + index))


@triton.jit
def write_rows(
    x_0, alpha_bar, time_features, class_features, seed, step, element, inputs, eps, live,
    first, last, DIM: tl.constexpr, TIME: tl.constexpr, CLASS: tl.constexpr,
):  # fmt: skip
    """Writes pairs first ... last - 1 of the columns of eps and of the network's inputs.

    First come the pairs of coordinates, then those of features. Each pointer is that of a row.
    """
    PAIRS: tl.constexpr = (DIM + 1) // 2
    for pair in tl.range(first, tl.minimum(last, PAIRS), num_stages=1):
        # The first pair of a row's words made index and t.
        eps_0, eps_1 = normal_pair(seed, DRAW, step, element, pair + 1)
        _noise(x_0, eps, inputs, pair * 2, eps_0, alpha_bar, live)
        if pair * 2 + 1 < DIM:
            _noise(x_0, eps, inputs, pair * 2 + 1, eps_1, alpha_bar, live)
    begin = tl.maximum(first - PAIRS, 0) * 2
    end = tl.minimum((last - PAIRS) * 2, TIME + CLASS)
    for column in tl.range(begin, tl.minimum(end, TIME), num_stages=1):
        value = tl.load(time_features + column, mask=live, other=0.0)
        tl.store(inputs + DIM + column, value, mask=live)
    if CLASS > 0:
        for column in tl.range(tl.maximum(begin, TIME), end, num_stages=1):
            value = tl.load(class_features + column - TIME, mask=live, other=0.0)
            tl.store(inputs + DIM + column, value, mask=live)


@triton.jit
def _noise(x_0, eps, inputs, column, value, alpha_bar, live):
    """Writes one coordinate of eps and of x_t."""
    x_t = tl.sqrt_rn(alpha_bar) * tl.load(x_0 + column, mask=live, other=0.0)
    x_t += tl.sqrt_rn(1 - alpha_bar) * value
    tl.store(eps + column, value, mask=live)
    tl.store(inputs + column, x_t, mask=live)


@triton.jit(
    do_not_specialize=["elements"],
    do_not_specialize_on_alignment=["x_0_ptr", "alpha_bar_ptr", "t_ptr", "eps_ptr"],
)
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


def source_arguments(data: TrainingData) -> tuple:
    """What rows are made of, as the first arguments of a kernel that draws."""
    points, alpha_bar, features, t_table = (
        part.contiguous()
        for part in (data.points, data.alpha_bar, data.time_features, data.t_table)
    )
    labels, told, p_uncond, n_steps, n_entries = (
        None if part is None else part.contiguous()
        for part in (
            data.labels, data.class_features, data.p_uncond, data.n_steps, data.n_entries,
        )
    )  # fmt: skip
    return (
        points, model_stride(points), alpha_bar, model_stride(alpha_bar),
        features, model_stride(features), labels, 0 if labels is None else model_stride(labels),
        told, 0 if told is None else model_stride(told), 0 if told is None else told.shape[1] - 1,
        p_uncond, data.n_points.contiguous(), n_steps, alpha_bar.shape[1],
        t_table, model_stride(t_table), n_entries, t_table.shape[1],
    )  # fmt: skip


def draw(
    data: TrainingData,
    seed: Tensor,
    step: int | Tensor,
    batch_size: int,
    refresh: int | None = None,
    first_row: int = 0,
    rows: int | None = None,
) -> tuple[Tensor, Draw]:
    """The network's inputs, float32 [M, B, d + F + E], and the draw behind them.

    Same arguments as :func:`~.reference.batch_draw`; what ``data`` has of each model is [M].
    """
    models, dim, width = len(seed), data.points.shape[-1], data.time_features.shape[-1]
    told = 0 if data.class_features is None else data.class_features.shape[-1]
    rows = batch_size - first_row if rows is None else rows
    inputs = data.points.new_empty((models, rows, dim + width + told))
    eps = data.points.new_empty((models, rows, dim))
    t, index = (seed.new_empty((models, rows)) for _ in range(2))
    condition = seed.new_empty((models, rows)) if told else None
    live = None if refresh is None else seed.new_empty((models, rows), dtype=torch.bool)
    pairs_of_columns = triton.cdiv(dim, 2) + triton.cdiv(width + told, 2)
    on_device = isinstance(step, Tensor)
    if rows and models:
        with device_of(inputs):
            draw_kernel[triton.cdiv(rows, _ROWS), pairs_of_columns, models](
                *source_arguments(data), seed.contiguous(), step if on_device else None,
                0 if on_device else step, batch_size, refresh or 0, first_row, rows,
                inputs, eps, t, index, condition, live,
                dim, width, told, refresh is not None, _ROWS,
            )  # fmt: skip
    return inputs, Draw(index, t, eps, condition, live)
