"""The whole reverse process in one launch on Hopper GPUs; same contract as :mod:`.kernel`.

A program takes a tile of rows through all steps. Points and activations stay in registers, the
first and the last layer in shared memory; see :mod:`..mlp.hopper`.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from .._dispatch import capability_of
from ..cuda import device_of
from ..gluon import TensorDescriptor, fence, gl, jit
from ..mlp.chunk_weights import chunk_weights
from ..mlp.chunks import ChunkLayout, chunks_of
from ..mlp.hopper import accumulators, evaluate, open_stream, pairs, resident, zeros
from ..mlp.layout import layout_of
from ..philox.kernel import NOISE, normal_pair
from ..reverse_step import reference
from ..reverse_step.kernel import load_coefficients, updated
from .reference import Condition, Network

# Arguments that change from call to call. Triton would compile a kernel anew for a value of 1 or of
# a multiple of 16,
_VARYING = ["first_row", "rows", "steps", "keep_every", "classes"]
# and for a tensor of the caller's that starts at a multiple of 16 bytes.
_UNALIGNED = ["x_ptr", "table_ptr", "seed_ptr", "labels_ptr"]
_MEMORY = gl.constexpr(reference.MEMORY)
_MEMORY_X = gl.constexpr(reference.MEMORY_X)
_MEMORY_EPS = gl.constexpr(reference.MEMORY_EPS)
_SHARED = 227 * 1024  # bytes of shared memory of a program


@jit
def noise(seed, step, row, NET: gl.constexpr):
    """Draws z, fp32 [ROWS, points]; columns from the dimension on hold other numbers.

    Args:
        row: int64 [ROWS], global numbers of the rows.
    """
    ROWS: gl.constexpr = row.shape[0]
    PAIRS: gl.constexpr = pairs(NET.points, ROWS)
    pair = gl.arange(0, NET.points // 2, layout=gl.SliceLayout(0, PAIRS))
    z_0, z_1 = normal_pair(seed, NOISE, step, gl.expand_dims(row, 1), gl.expand_dims(pair, 0))
    z = gl.join(z_0, z_1).reshape([ROWS, NET.points])
    return gl.convert_layout(z, accumulators(NET.points, ROWS), assert_trivial=True)


@jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def chain_kernel(
    x_ptr, table_ptr, seed_ptr, first_row, rows, steps, kept_ptr, keep_every,
    flat_ptr, weights_ptr, w_desc, bias_ptr, class_bias_ptr, labels_ptr, classes,
    COEFFICIENTS: gl.constexpr, CLASSIFIER_FREE: gl.constexpr, NET: gl.constexpr,
    ROWS: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """Takes x from x_T to x_0, in place; grid (tiles, M).

    Args:
        x_ptr ... keep_every: as in :func:`.kernel.chain_kernel`.
        flat_ptr: float32 [M, P], parameters of the denoiser.
        weights_ptr: operand dtype [M, NET.size], its weights as :mod:`..mlp.chunks` says.
        w_desc: descriptor of the same as [rows, part], in blocks of a chunk.
        bias_ptr: float32 [M, steps, parts * part], what the timestep adds to the first layer.
        class_bias_ptr: float32 [M, classes, parts * part], what a class adds to it; or None.
        labels_ptr: int64 [M, rows], class of each row; or None.
        classes: number of classes; the last one stands for no class.
        COEFFICIENTS: 4, or 7 for a linear multistep method.
        CLASSIFIER_FREE: True for classifier-free guidance.
        NET: :class:`~..mlp.chunks.ChunkLayout` of the denoiser.
        ROWS: rows of a tile, 16 for each warp.
        RING: number of chunks that lie in shared memory.
    """
    DIM: gl.constexpr = NET.dim
    PART: gl.constexpr = NET.part
    WIDTH: gl.constexpr = NET.parts[0] * PART
    DTYPE: gl.constexpr = weights_ptr.dtype.element_ty
    POINTS: gl.constexpr = accumulators(NET.points, ROWS)
    PAIRS: gl.constexpr = pairs(NET.points, ROWS)
    EVALUATIONS: gl.constexpr = 1 + CLASSIFIER_FREE
    model = gl.program_id(1).to(gl.int64)
    flat = flat_ptr + model * NET.net.shape.num_parameters
    weights = weights_ptr + model * NET.size
    stream = open_stream(
        w_desc, gl.program_id(1) * (NET.size // PART), steps * (EVALUATIONS * NET.chunks), DTYPE,
        RING, NET,
    )  # fmt: skip
    w_first = resident(weights + NET.first_layer, WIDTH, 2 * NET.points, gl.num_warps())
    w_last = resident(
        weights + NET.last_layer, NET.parts[NET.net.layers - 2] * NET.points, PART, gl.num_warps()
    )
    fence()

    first = gl.program_id(0) * ROWS
    row = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, POINTS))
    column = gl.expand_dims(gl.arange(0, NET.points, layout=gl.SliceLayout(0, POINTS)), 0)
    exists = gl.expand_dims(row < rows, 1) & (column < DIM)
    place = (model * rows + gl.expand_dims(row, 1)) * DIM + column
    x = gl.load(x_ptr + place, mask=exists, other=0.0)
    memory = zeros(NET.points, ROWS)
    drawn = first_row + first.to(gl.int64) + gl.arange(0, ROWS, layout=gl.SliceLayout(1, PAIRS))
    seed = gl.load(seed_ptr + model)
    if class_bias_ptr is not None:
        ROW: gl.constexpr = gl.SliceLayout(1, accumulators(PART, ROWS))
        wide = first + gl.arange(0, ROWS, layout=ROW)
        label = gl.load(labels_ptr + model * rows + wide, mask=wide < rows, other=0)
        class_bias = class_bias_ptr + model * classes * WIDTH
    number = 0
    for step in range(steps):
        coefficients = table_ptr + (model * steps + step) * COEFFICIENTS
        bias = bias_ptr + (model * steps + step) * WIDTH
        eps = memory
        uncond = memory
        for evaluation in range(EVALUATIONS):
            row_bias = None
            if class_bias_ptr is not None:
                chosen = label
                if CLASSIFIER_FREE:  # first without a class, then with it
                    chosen = gl.where(evaluation == 0, classes - 1, label)
                row_bias = class_bias + chosen * WIDTH
            uncond = eps
            eps, number = evaluate(
                x, bias, row_bias, flat, w_first, w_last, stream, number, NET
            )
        c_x, c_eps, c_noise, c_guide = load_coefficients(coefficients)
        z = zeros(NET.points, ROWS)
        if c_noise != 0:
            z = noise(seed, step, drawn, NET)
        guidance = uncond if CLASSIFIER_FREE else None
        now = x
        x = updated(now, eps, None, guidance, z, c_x, c_eps, c_noise, c_guide)
        if COEFFICIENTS > _MEMORY:
            x += gl.load(coefficients + _MEMORY) * memory
            m_x, m_eps = gl.load(coefficients + _MEMORY_X), gl.load(coefficients + _MEMORY_EPS)
            memory = updated(now, eps, None, guidance, None, m_x, m_eps, 0.0, c_guide)
        if kept_ptr is not None:
            if ((step + 1) % keep_every == 0) | (step + 1 == steps):
                entry = gl.cdiv(step + 1, keep_every).to(gl.int64) * gl.num_programs(1)
                gl.store(kept_ptr + entry * rows * DIM + place, x, mask=exists)
    gl.store(x_ptr + place, x, mask=exists)
