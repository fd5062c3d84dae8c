"""The whole reverse process in one launch on Hopper GPUs; same contract as :mod:`.kernel`.

A program takes a tile of rows through all steps. Points and activations stay in registers, the
first and the last layer in shared memory; see :mod:`..mlp.hopper_network`.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from .._dispatch import capability_of
from ..cuda import device_of
from ..gluon import fence, gl, jit
from ..mlp import kernel as mlp
from ..mlp.chunks import ChunkLayout, chunks_of, guide_chunks_of, ring_of
from ..mlp.config import chain_config_for
from ..mlp.hopper import (
    accumulators,
    chunk_descriptor,
    open_stream,
    pairs,
    zeros,
)
from ..mlp.hopper_network import evaluate, resident_first, resident_last
from ..mlp.hopper_wide import open_stash
from ..mlp.layout import layout_of
from ..mlp.operand_weights import operands_of
from ..philox.kernel import NOISE, normal_pair
from ..reverse_step import reference
from ..reverse_step.kernel import load_coefficients, updated
from .hopper_guide import label_gradient, open_guide
from .reference import Condition, Guide, Network

# Arguments that change from call to call. Triton would compile a kernel anew for a value of 1 or of
# a multiple of 16,
_VARYING = ["first_row", "rows", "steps", "keep_every", "classes"]
# and for a tensor of the caller's that starts at a multiple of 16 bytes.
_UNALIGNED = ["table_ptr", "seed_ptr", "class_labels_ptr", "labels_ptr"]
_MEMORY = gl.constexpr(reference.MEMORY)
_MEMORY_X = gl.constexpr(reference.MEMORY_X)
_MEMORY_EPS = gl.constexpr(reference.MEMORY_EPS)


@jit
def noise(seed, step, row, NET: gl.constexpr):
    """Draws z, fp32 [ROWS, points]; columns from the dimension on are 0.

    They would grow in x, without a prediction to take from them, until they overflow.

    Args:
        row: int64 [ROWS], global numbers of the rows.
    """
    ROWS: gl.constexpr = row.shape[0]
    PAIRS: gl.constexpr = pairs(NET.points, ROWS)
    LAYOUT: gl.constexpr = accumulators(NET.points, ROWS)
    pair = gl.arange(0, NET.points // 2, layout=gl.SliceLayout(0, PAIRS))
    z_0, z_1 = normal_pair(seed, NOISE, step, gl.expand_dims(row, 1), gl.expand_dims(pair, 0))
    z = gl.join(z_0, z_1).reshape([ROWS, NET.points])
    z = gl.convert_layout(z, LAYOUT, assert_trivial=True)
    column = gl.arange(0, NET.points, layout=gl.SliceLayout(0, LAYOUT))
    return gl.where(gl.expand_dims(column, 0) < NET.dim, z, 0.0)


@jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def chain_kernel(
    x_ptr, table_ptr, seed_ptr, first_row, rows, steps, kept_ptr, keep_every,
    chunks_desc, flat_ptr, weights_ptr, biases_ptr, time_bias_ptr,
    class_bias_ptr, class_labels_ptr, classes,
    labels_ptr, guide_flat_ptr, guide_weights_ptr, guide_biases_ptr, guide_time_bias_ptr,
    guide_z_ptr,
    COEFFICIENTS: gl.constexpr, CLASSIFIER_FREE: gl.constexpr, NET: gl.constexpr,
    GUIDE: gl.constexpr, ROWS: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """Takes x from x_T to x_0, in place; grid (tiles, M).

    Where the guide keeps its pre-activations, the grid is (programs, M), and a program takes every
    so many tiles: it has room for those of one.

    Args:
        x_ptr ... keep_every: as in :func:`.kernel.chain_kernel`.
        chunks_desc: descriptor of the chunks, of the guide's after the denoiser's, for all models
            [rows, part] in blocks of a chunk. Without a guide it is that of all of ``weights``.
        flat_ptr: float32 [M, P], parameters of the denoiser.
        weights_ptr: operand dtype [M, size], its weights, see :class:`~..mlp.chunks.ChunkLayout`.
        biases_ptr: float32 [M, columns], its biases with their padding.
        time_bias_ptr: float32 [M, steps, parts * part], the first layer's bias, and what the
            timestep adds to it.
        class_bias_ptr: float32 [M, classes, parts * part], what a class adds to it; or None.
        class_labels_ptr: int64 [M, rows], class of each row; or None.
        classes: number of classes; the last one stands for no class.
        labels_ptr: int64 [M, rows], classes to guide to, or None like all that follow.
        guide_flat_ptr ... guide_time_bias_ptr: the same of the classifier.
        guide_z_ptr: operand dtype [M, programs, ROWS, z_columns], its pre-activations; written.
            None if it keeps signs.
        COEFFICIENTS: 4, or 7 for a linear multistep method.
        CLASSIFIER_FREE: True for classifier-free guidance.
        NET, GUIDE: layouts of the denoiser and of the classifier.
        ROWS: rows of a tile, 16 for each warp.
        RING: number of chunks that lie in shared memory.
    """
    DIM: gl.constexpr = NET.dim
    PART: gl.constexpr = NET.part
    WIDTH: gl.constexpr = NET.parts[0] * PART
    WARPS: gl.constexpr = ROWS // 16
    LAYERS: gl.constexpr = NET.net.layers
    POINTS: gl.constexpr = accumulators(NET.points, ROWS)
    PAIRS: gl.constexpr = pairs(NET.points, ROWS)
    EVALUATIONS: gl.constexpr = 1 + CLASSIFIER_FREE
    model = gl.program_id(1).to(gl.int64)
    biases = biases_ptr + model * NET.bias_starts[LAYERS]
    slopes = flat_ptr + model * NET.net.shape.num_parameters + NET.net.flat[LAYERS]
    weights = weights_ptr + model * NET.starts[LAYERS]
    CHUNKS: gl.constexpr = NET.chunks + (0 if GUIDE is None else GUIDE.chunks)
    if GUIDE is None:
        chunk_row = gl.program_id(1) * (NET.starts[LAYERS] // PART) + NET.starts[1] // PART
    else:
        chunk_row = gl.program_id(1) * (CHUNKS * PART)
    turns = 1  # a program for each tile
    if guide_z_ptr is not None:
        turns = gl.cdiv(gl.cdiv(rows, ROWS) - gl.program_id(0), gl.num_programs(0))
    last = turns * steps * (EVALUATIONS * CHUNKS)
    stream = open_stream(chunks_desc, chunk_row, CHUNKS, last, PART, RING)
    w_first = resident_first(weights, NET, WARPS)
    w_last = resident_last(weights, NET, WARPS)
    stash = open_stash(weights_ptr.dtype.element_ty, ROWS, NET) if NET.wide else None
    if GUIDE is not None:
        GUIDE_WIDTH: gl.constexpr = GUIDE.parts[0] * PART
        LOGITS: gl.constexpr = gl.SliceLayout(1, accumulators(GUIDE.classes, ROWS))
        g_biases, g_slopes, g_first, g_last, g_kept = open_guide(
            guide_flat_ptr, guide_weights_ptr, guide_biases_ptr, guide_z_ptr, model,
            ROWS, GUIDE, WARPS,
        )  # fmt: skip
    fence()
    seed = gl.load(seed_ptr + model)
    if class_bias_ptr is not None:
        class_bias = class_bias_ptr + model * classes * WIDTH
    number = 0
    for turn in range(turns):
        first = (gl.program_id(0) + turn * gl.num_programs(0)) * ROWS
        if GUIDE is not None:
            g_row = first + gl.arange(0, ROWS, layout=LOGITS)
            wanted = gl.load(labels_ptr + model * rows + g_row, mask=g_row < rows, other=0)
        row = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, POINTS))
        column = gl.expand_dims(gl.arange(0, NET.points, layout=gl.SliceLayout(0, POINTS)), 0)
        exists = gl.expand_dims(row < rows, 1) & (column < DIM)
        place = (model * rows + gl.expand_dims(row, 1)) * DIM + column
        x = gl.load(x_ptr + place, mask=exists, other=0.0)
        memory = zeros(NET.points, ROWS)
        drawn = first_row + first.to(gl.int64) + gl.arange(0, ROWS, layout=gl.SliceLayout(1, PAIRS))
        if class_bias_ptr is not None:
            ROW: gl.constexpr = gl.SliceLayout(1, accumulators(PART, ROWS))
            wide = first + gl.arange(0, ROWS, layout=ROW)
            label = gl.load(class_labels_ptr + model * rows + wide, mask=wide < rows, other=0)
        for step in range(steps):
            coefficients = table_ptr + (model * steps + step) * COEFFICIENTS
            bias = time_bias_ptr + (model * steps + step) * WIDTH
            # Two zeros: triton would not carry one value under two names through the loop.
            eps, uncond = zeros(NET.points, ROWS), zeros(NET.points, ROWS)
            for evaluation in range(EVALUATIONS):
                row_bias = None
                if class_bias_ptr is not None:
                    chosen = label
                    if CLASSIFIER_FREE:  # first without a class, then with it
                        chosen = gl.where(evaluation == 0, classes - 1, label)
                    row_bias = class_bias + chosen * WIDTH
                uncond = eps
                eps, number = evaluate(
                    x, bias, row_bias, biases, slopes, w_first, w_last, stash, stream, number, NET
                )
            grad = None
            if GUIDE is not None:
                g_bias = guide_time_bias_ptr + (model * steps + step) * GUIDE_WIDTH
                grad, number = label_gradient(
                    x, g_bias, wanted, g_biases, g_slopes, g_first, g_last, g_kept, stream, number,
                    GUIDE,
                )  # fmt: skip
            c_x, c_eps, c_noise, c_guide = load_coefficients(coefficients)
            z = zeros(NET.points, ROWS)
            if c_noise != 0:
                z = noise(seed, step, drawn, NET)
            guidance = uncond if CLASSIFIER_FREE else None
            now = x
            x = updated(now, eps, grad, guidance, z, c_x, c_eps, c_noise, c_guide)
            if COEFFICIENTS > _MEMORY:
                x += gl.load(coefficients + _MEMORY) * memory
                m_x, m_eps = gl.load(coefficients + _MEMORY_X), gl.load(coefficients + _MEMORY_EPS)
                memory = updated(now, eps, grad, guidance, None, m_x, m_eps, 0.0, c_guide)
            if kept_ptr is not None and (((step + 1) % keep_every == 0) | (step + 1 == steps)):
                entry = gl.cdiv(step + 1, keep_every).to(gl.int64) * gl.num_programs(1)
                gl.store(kept_ptr + entry * rows * DIM + place, x, mask=exists)
        gl.store(x_ptr + place, x, mask=exists)


def sample_chain(
    denoiser: Network,
    x: Tensor,
    table: Tensor,
    time_features: Tensor,
    seed: Tensor,
    guide: Guide | None,
    condition: Condition | None,
    first_row: int,
    keep_every: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Returns samples [M, B, d] and the trajectory [K, M, B, d] of chains from x_T [M, B, d]."""
    models, rows, dim = x.shape
    steps = table.shape[1]
    kept = x.new_empty((1 + triton.cdiv(steps, keep_every) if keep_every else 0, *x.shape))
    if keep_every:
        kept[0] = x
    if not (x.numel() and steps):
        return x.clone(), kept
    x = x.clone(memory_format=torch.contiguous_format)
    classifier_free = condition is not None and condition.free
    config = chain_config_for(
        precision, capability_of(x.device), rows, models, guided=guide is not None,
        classifier_free=classifier_free,
    )  # fmt: skip
    net = chunks_of(layout_of(denoiser.shape, precision), dim, guided=guide is not None)
    weights = _network_arguments(denoiser, time_features, net)
    programs = triton.cdiv(rows, config.hopper_rows)
    guiding = _guide_arguments(guide, time_features, precision, dim)
    guide_z = None
    if guide is not None and guiding["GUIDE"].keeps_z:
        programs = min(programs, mlp.slots(models, x.device))
        room = models, programs, config.hopper_rows, guiding["GUIDE"].z_columns
        guide_z = weights["weights_ptr"].new_empty(room)
    chunks = weights["weights_ptr"]
    if guide is not None:
        parts = (chunks, net), (guiding["guide_weights_ptr"], guiding["GUIDE"])
        chunks = torch.cat([each[:, of.starts[1] : of.starts[-2]] for each, of in parts], dim=1)
    with device_of(x):
        chain_kernel[programs, models](
            x_ptr=x,
            table_ptr=table.contiguous(),
            seed_ptr=seed.contiguous(),
            first_row=first_row,
            rows=rows,
            steps=steps,
            kept_ptr=kept if keep_every else None,
            keep_every=keep_every,
            chunks_desc=chunk_descriptor(chunks, net.part),
            **weights,
            **_condition_arguments(denoiser, condition, net),
            **guiding,
            guide_z_ptr=guide_z,
            COEFFICIENTS=table.shape[2],
            CLASSIFIER_FREE=classifier_free,
            NET=net,
            ROWS=config.hopper_rows,
            RING=ring_of(config, net, guiding["GUIDE"]),
            num_warps=config.hopper_rows // 16,
        )
    return x, kept


def _network_arguments(
    network: Network, time_features: Tensor, net: ChunkLayout
) -> dict[str, Tensor]:
    """Returns ``flat_ptr`` to ``time_bias_ptr`` of the kernel."""
    flat = network.parameters.float().contiguous()
    biases = _padded_biases(flat, net)
    weight = network.shape.unpack(flat)[0][0]  # [M, out, in]
    of_time = weight[..., net.dim : net.dim + time_features.shape[2]]
    return {
        "flat_ptr": flat,
        "weights_ptr": operands_of(flat, net),
        "biases_ptr": biases,
        "time_bias_ptr": biases[:, None, : net.outputs[0]] + _columns(time_features, of_time, net),
    }


def _padded_biases(flat: Tensor, net: ChunkLayout) -> Tensor:
    """Returns the biases of all layers with their padding, or zeros; float32 [M, columns]."""
    biases = net.net.shape.unpack(flat)[1]
    if biases is None:
        return flat.new_zeros((len(flat), net.bias_starts[-1]))
    padded = zip(biases, net.outputs, strict=True)
    return torch.cat([F.pad(bias, (0, out - bias.shape[1])) for bias, out in padded], dim=1)


def _columns(features: Tensor, weight: Tensor, net: ChunkLayout) -> Tensor:
    """Returns features times some of the first layer's weights, float32 [M, entries, columns].

    They are multiplied in float64: PyTorch may be set to tf32.

    Args:
        features: [M, entries, F].
        weight: [M, out, F].
    """
    product = features.double() @ weight.double().mT
    return F.pad(product.float(), (0, net.outputs[0] - weight.shape[1]))


def _condition_arguments(
    denoiser: Network, condition: Condition | None, net: ChunkLayout
) -> dict[str, Any]:
    """Returns ``class_bias_ptr`` to ``classes`` of the kernel."""
    if condition is None:
        return {"class_bias_ptr": None, "class_labels_ptr": None, "classes": 0}
    weight = denoiser.shape.unpack(denoiser.parameters)[0][0]
    of_class = weight[..., weight.shape[2] - condition.class_features.shape[2] :]
    return {
        "class_bias_ptr": _columns(condition.class_features, of_class, net),
        "class_labels_ptr": condition.labels.contiguous(),
        "classes": condition.class_features.shape[1],
    }


def _guide_arguments(
    guide: Guide | None, time_features: Tensor, precision: str, dim: int
) -> dict[str, Any]:
    """Returns ``labels_ptr`` to ``guide_time_bias_ptr``, and GUIDE; all None without a guide."""
    if guide is None:
        names = "labels", "guide_flat", "guide_weights", "guide_biases", "guide_time_bias"
        return {"GUIDE": None, **{f"{name}_ptr": None for name in names}}
    net = guide_chunks_of(layout_of(guide.classifier.shape, precision), dim)
    arguments = _network_arguments(guide.classifier, time_features, net)
    return {
        "GUIDE": net,
        "labels_ptr": guide.labels.contiguous(),
        **{f"guide_{name}": value for name, value in arguments.items()},
    }
