"""The forward process in Triton: draw a row, noise it, write the network's input.

Same contract as :mod:`.reference`. One launch draws index, timestep, noise and class, gathers
the point and the features, and writes x_t and the rest of the network's input.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import model_stride, step_arguments
from ..cuda import device_of
from ..philox.kernel import CLASS as CLASS_STREAM
from ..philox.kernel import DRAW, normal_pair, permute, random_words, uniform, uniform_integers
from . import reference
from .reference import Draw, TrainingData

_ROWS = 256  # rows of a program
_ELEMENTS = 1024  # elements of an element-wise program
# Numbers of a timestep in the forward table, and their places.
FORWARD_NUMBERS = tl.constexpr(5)
_SIGNAL = tl.constexpr(reference.SIGNAL)
_NOISE = tl.constexpr(reference.NOISE)
_TARGET_SIGNAL = tl.constexpr(reference.TARGET_SIGNAL)
_TARGET_NOISE = tl.constexpr(reference.TARGET_NOISE)
WEIGHT = tl.constexpr(reference.WEIGHT)
# Arguments that change from call to call. Triton would compile a kernel anew for a value of 1 or of
# a multiple of 16, and for a step counter at an address that is not a multiple of 16 bytes.
_VARYING = [
    "entries", "steps", "step_ptr", "step", "batch_size", "refresh", "first_row", "rows", "classes",
]  # fmt: skip


@triton.jit(do_not_specialize=_VARYING)
def draw_kernel(
    points_ptr, points_stride, forward_table_ptr, forward_table_stride, features_ptr,
    features_stride,
    labels_ptr, labels_stride, class_features_ptr, class_features_stride, classes, p_uncond_ptr,
    n_points_ptr, n_steps_ptr, steps, t_table_ptr, t_table_stride, n_entries_ptr, entries,
    seed_ptr, step_ptr, step, batch_size, refresh, first_row, rows,
    inputs_ptr, eps_ptr, t_ptr, index_ptr, condition_ptr, live_ptr,
    DIM: tl.constexpr, TIME: tl.constexpr, CLASS: tl.constexpr, EPOCH: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Draws ``rows`` rows of each model and writes them and the network's input.

    Grid (row tiles, pairs of columns, M): first the pairs of coordinates, then those of features.
    :func:`~.reference.batch_draw` says how a row follows from seed, step and row number. A stride
    is the number of elements from one model to the next, 0 if all share the tensor.

    Args:
        points_ptr, points_stride: float32 [M, N, DIM].
        forward_table_ptr, forward_table_stride: float32 [M, T, 5].
        features_ptr, features_stride: float32 [M, T, TIME], features of the timesteps.
        labels_ptr, labels_stride: int64 [M, N], or None.
        class_features_ptr, class_features_stride: float32 [M, C + 1, CLASS], or None; the last
            entry stands for no class.
        classes: C.
        p_uncond_ptr: float32 [M], the probability that a row's class is withheld, or None.
        n_points_ptr: int64 [M], number of points of each model.
        n_steps_ptr, steps: int64 [M], number of timesteps of each model; without it ``steps``, T.
        t_table_ptr, t_table_stride: int64 [M, K], timesteps to draw from.
        n_entries_ptr, entries: int64 [M], number of entries of each table; without it
            ``entries``, K.
        seed_ptr: int64 [M].
        step_ptr, step: int64 [1], the training step; without it ``step``.
        batch_size: rows of a step.
        refresh: epochs for which a pair keeps its noise, with EPOCH.
        first_row, rows: first row of the batch, and number of rows, to draw.
        inputs_ptr: float32 [M, rows, DIM + TIME + CLASS], output.
        eps_ptr: float32 [M, rows, DIM], output.
        t_ptr, index_ptr: int64 [M, rows], outputs: timestep, and number of the point.
        condition_ptr: int64 [M, rows], output with CLASS: class given to the network.
        live_ptr: bool [M, rows], output with EPOCH: False after the end of the epoch.
        DIM, TIME, CLASS: widths of point, timestep feature and class feature; CLASS is 0 without.
        EPOCH: True for epochs over all pairs of point and timestep, False to draw anew each step.
        ROWS: rows of a program.
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
    class_features = class_features_ptr
    once = row < tl.where(pair == 0, rows, 0)
    if CLASS > 0:
        condition = draw_condition(
            labels_ptr + model * labels_stride, index, tl.load(p_uncond_ptr + model), classes,
            seed, step, element,
        )  # fmt: skip
        class_features += model * class_features_stride + condition * CLASS
        tl.store(condition_ptr + position, condition, mask=once)
    tl.store(index_ptr + position, index, mask=once)
    tl.store(t_ptr + position, t, mask=once)
    if EPOCH:
        tl.store(live_ptr + position, live, mask=once)
    write_rows(
        points_ptr + model * points_stride + index * DIM,
        forward_table_ptr + model * forward_table_stride + t * FORWARD_NUMBERS,
        features_ptr + model * features_stride + t * TIME, class_features, seed, step, element,
        inputs_ptr + position * (DIM + TIME + CLASS), eps_ptr + position * DIM, present,
        pair, DIM, TIME, CLASS,
    )  # fmt: skip


@triton.jit
def locate_rows(
    row, model, n_points_ptr, n_steps_ptr, steps, t_table, n_entries_ptr, entries,
    seed, step, batch_size, refresh, EPOCH: tl.constexpr,
):  # fmt: skip
    """Finds the point and the timestep of each row of a step's batch.

    Returns:
        index, t, the element and the step that determine the row's noise, and ``live``, False for
        rows after the end of an epoch, whose last batch is smaller. Those get the draw of the
        epoch's first row.
    """
    n_points = tl.load(n_points_ptr + model)
    if EPOCH:
        if n_steps_ptr is not None:
            steps = tl.load(n_steps_ptr + model)
        pairs = n_points * steps
        length = tl.cdiv(pairs, batch_size)  # steps of an epoch
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
    """Returns the class of each row that the network sees, ``classes`` where it is withheld."""
    word, _, _, _ = random_words(seed, CLASS_STREAM, step, element, 0)
    return tl.where(uniform(word) < p_uncond, classes, tl.load(labels + index))


@triton.jit
def levels(forward_row):
    """Returns signal and noise level of each row, fp32; the pointers are to its five numbers."""
    signal, noise = tl.load(forward_row + _SIGNAL), tl.load(forward_row + _NOISE)
    return signal.to(tl.float32), noise.to(tl.float32)


@triton.jit
def target_of(forward_row, x_0, eps):
    """Returns what the network is to predict, fp32 [ROWS, columns] as x_0 and eps."""
    of_x_0, of_eps = tl.load(forward_row + _TARGET_SIGNAL), tl.load(forward_row + _TARGET_NOISE)
    return of_x_0[:, None] * x_0 + of_eps[:, None] * eps


@triton.jit
def write_rows(
    x_0, forward_row, time_features, class_features, seed, step, element, inputs, eps, live,
    pair, DIM: tl.constexpr, TIME: tl.constexpr, CLASS: tl.constexpr,
):  # fmt: skip
    """Writes a pair of the columns of eps and of the network's input.

    The pairs of coordinates come first, then those of features. The pointers are those of each row;
    rows that are not live are not written.
    """
    PAIRS: tl.constexpr = (DIM + 1) // 2
    if pair < PAIRS:
        # The first two words of a row have made index and t.
        eps_0, eps_1 = normal_pair(seed, DRAW, step, element, pair + 1)
        signal, noise = levels(forward_row)
        _noise(x_0, eps, inputs, pair * 2, eps_0, signal, noise, live)
        if pair * 2 + 1 < DIM:
            _noise(x_0, eps, inputs, pair * 2 + 1, eps_1, signal, noise, live)
    begin = tl.maximum(pair - PAIRS, 0) * 2
    end = tl.minimum((pair + 1 - PAIRS) * 2, TIME + CLASS)
    for column in tl.range(begin, tl.minimum(end, TIME), num_stages=1):
        value = tl.load(time_features + column, mask=live, other=0.0)
        tl.store(inputs + DIM + column, value, mask=live)
    if CLASS > 0:
        for column in tl.range(tl.maximum(begin, TIME), end, num_stages=1):
            value = tl.load(class_features + column - TIME, mask=live, other=0.0)
            tl.store(inputs + DIM + column, value, mask=live)


@triton.jit
def _noise(x_0, eps, inputs, column, value, signal, noise, live):
    """Writes one coordinate of eps and of x_t."""
    x_t = signal * tl.load(x_0 + column, mask=live, other=0.0) + noise * value
    tl.store(eps + column, value, mask=live)
    tl.store(inputs + column, x_t, mask=live)


@triton.jit(
    do_not_specialize=["elements"],
    do_not_specialize_on_alignment=["x_0_ptr", "forward_table_ptr", "t_ptr", "eps_ptr"],
)
def noise_kernel(
    x_0_ptr, forward_table_ptr, forward_table_stride, t_ptr, eps_ptr, x_t_ptr, elements,
    DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes x_t of given x_0, t and eps; grid (blocks, M).

    Args:
        x_0_ptr, eps_ptr: floating-point [M, elements].
        forward_table_ptr, forward_table_stride: floating-point [M, T, 5], and elements from model
            to model.
        t_ptr: int64 [M, elements / DIM].
        x_t_ptr: floating-point [M, elements], output.
        elements: rows of a model times DIM.
        DIM: dimension of a point.
        BLOCK: elements of a program.
    """
    model = tl.program_id(1).to(tl.int64)
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = element < elements
    t = tl.load(t_ptr + model * (elements // DIM) + element // DIM, mask=live, other=0)
    signal, noise = levels(forward_table_ptr + model * forward_table_stride + t * FORWARD_NUMBERS)
    element += model * elements
    x_0 = tl.load(x_0_ptr + element, mask=live, other=0.0).to(tl.float32)
    eps = tl.load(eps_ptr + element, mask=live, other=0.0).to(tl.float32)
    x_t = signal * x_0 + noise * eps
    tl.store(x_t_ptr + element, x_t.to(x_t_ptr.dtype.element_ty), mask=live)


def q_sample(x_0: Tensor, forward_table: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Returns x_t of x_0 [M, B, d], a table [M, T, 5], t [M, B] and eps [M, B, d]."""
    models, rows, dim = x_0.shape
    x_t = torch.empty_like(x_0, memory_format=torch.contiguous_format)
    if x_t.numel():
        with device_of(x_0):
            noise_kernel[triton.cdiv(rows * dim, _ELEMENTS), models](
                x_0_ptr=x_0.contiguous(),
                **_tensor_argument("forward_table", forward_table),
                t_ptr=t.contiguous(),
                eps_ptr=eps.contiguous(),
                x_t_ptr=x_t,
                elements=rows * dim,
                DIM=dim,
                BLOCK=_ELEMENTS,
            )
    return x_t


def source_arguments(data: TrainingData) -> dict[str, Any]:
    """Returns the arguments that give a kernel the source of its rows.

    These are ``points_ptr`` to ``entries`` of :func:`draw_kernel`, and its widths DIM, TIME and
    CLASS.
    """
    class_features = data.class_features
    return {
        **_tensor_argument("points", data.points),
        **_tensor_argument("forward_table", data.forward_table),
        **_tensor_argument("features", data.time_features),
        **_tensor_argument("labels", data.labels),
        **_tensor_argument("class_features", class_features),
        "classes": 0 if class_features is None else class_features.shape[1] - 1,
        "p_uncond_ptr": _contiguous(data.p_uncond),
        "n_points_ptr": _contiguous(data.n_points),
        "n_steps_ptr": _contiguous(data.n_steps),
        "steps": data.forward_table.shape[1],
        **_tensor_argument("t_table", data.t_table),
        "n_entries_ptr": _contiguous(data.n_entries),
        "entries": data.t_table.shape[1],
        "DIM": data.points.shape[-1],
        "TIME": data.time_features.shape[-1],
        "CLASS": 0 if class_features is None else class_features.shape[-1],
    }


def _tensor_argument(name: str, tensor: Tensor | None) -> dict[str, Tensor | int | None]:
    """Returns a tensor's pointer and its stride between models."""
    tensor = _contiguous(tensor)
    stride = 0 if tensor is None else model_stride(tensor)
    return {f"{name}_ptr": tensor, f"{name}_stride": stride}


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def draw(
    data: TrainingData,
    seed: Tensor,
    step: int | Tensor,
    batch_size: int,
    refresh: int | None = None,
    first_row: int = 0,
    rows: int | None = None,
) -> tuple[Tensor, Draw]:
    """Returns the network's input, float32 [M, B, d + F + E], and the draw behind it.

    The arguments are those of :func:`~.reference.batch_draw`; counts and probabilities in ``data``
    are [M].
    """
    models, rows = len(seed), batch_size - first_row if rows is None else rows
    inputs = data.points.new_empty((models, rows, data.input_width))
    eps = data.points.new_empty((models, rows, data.points.shape[-1]))
    t, index = (seed.new_empty((models, rows)) for _ in range(2))
    source = source_arguments(data)
    condition = seed.new_empty((models, rows)) if source["CLASS"] else None
    live = None if refresh is None else seed.new_empty((models, rows), dtype=torch.bool)
    features = data.input_width - source["DIM"]
    pairs_of_columns = triton.cdiv(source["DIM"], 2) + triton.cdiv(features, 2)
    if rows and models:
        with device_of(inputs):
            draw_kernel[triton.cdiv(rows, _ROWS), pairs_of_columns, models](
                **source,
                **step_arguments(step),
                seed_ptr=seed.contiguous(),
                batch_size=batch_size,
                refresh=refresh or 0,
                first_row=first_row,
                rows=rows,
                inputs_ptr=inputs,
                eps_ptr=eps,
                t_ptr=t,
                index_ptr=index,
                condition_ptr=condition,
                live_ptr=live,
                EPOCH=refresh is not None,
                ROWS=_ROWS,
            )
    return inputs, Draw(index, t, eps, condition, live)
