"""The whole reverse process in one launch; same contract as :mod:`.reference`.

A program takes a tile of rows through all steps. Rows share nothing but the weights. Their points
stay in registers from step to step, or in cache where they are wide.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import capability_of
from ..cuda import device_of
from ..mlp import kernel as mlp
from ..mlp.arithmetic import UNIT_SCALE, divisor, operand, softmax
from ..mlp.config import chain_config_for
from ..mlp.input_columns import clear_padding, store_features
from ..mlp.layout import Layout, layout_of
from ..mlp.tile import (
    backward_hidden,
    forward_hidden,
    last_layer,
    layer_columns,
    layer_columns_backward,
)
from ..philox.kernel import PRIOR, normal_pair
from ..reverse_step import reference
from ..reverse_step.kernel import load_coefficients, updated
from .reference import Condition, Guide, Network
from .tile import (
    load_points,
    noise,
    store_points,
    store_step,
)

_ROWS = 256  # rows of a program that only draws
# Arguments that change from call to call. Triton would compile a kernel anew for a value of 1 or of
# a multiple of 16,
_VARYING = ["first_row", "rows", "steps", "keep_every", "classes"]
# and for a tensor of the caller's that starts at a multiple of 16 bytes.
_UNALIGNED = [
    "table_ptr", "features_ptr", "seed_ptr", "class_features_ptr", "class_labels_ptr", "labels_ptr",
]  # fmt: skip
# Points with more columns do not fit into registers beside the accumulators.
_WIDEST = tl.constexpr(128)
_MEMORY = tl.constexpr(reference.MEMORY)
_MEMORY_X = tl.constexpr(reference.MEMORY_X)
_MEMORY_EPS = tl.constexpr(reference.MEMORY_EPS)


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=["seed_ptr", "x_ptr"])
def prior_kernel(seed_ptr, first_row, rows, x_ptr, DIM: tl.constexpr, ROWS: tl.constexpr):
    """Draws x_T as a function of (seed, row); grid (row tiles, pairs of columns, M).

    Args:
        seed_ptr: int64 [M].
        first_row, rows: global number of the first row, and rows of a model.
        x_ptr: float32 [M, rows, DIM], output.
        DIM: dimension of a point.
        ROWS: rows of a program.
    """
    pair = tl.program_id(1)
    model = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    seed = tl.load(seed_ptr + model)
    z_0, z_1 = normal_pair(seed, PRIOR, 0, first_row + row.to(tl.int64), pair)
    x = x_ptr + (model * rows + row) * DIM + pair * 2
    tl.store(x, z_0, mask=live)
    if pair * 2 + 1 < DIM:
        tl.store(x + 1, z_1, mask=live)


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def chain_kernel(
    x_ptr, table_ptr, features_ptr, seed_ptr, first_row, rows, steps, kept_ptr, keep_every,
    flat_ptr, weights_ptr, acts_ptr,
    class_features_ptr, class_labels_ptr, classes, uncond_ptr, memory_ptr,
    labels_ptr, guide_flat_ptr, guide_weights_ptr, guide_acts_ptr, guide_z_ptr, guide_grads_ptr,
    FEATURES: tl.constexpr, COEFFICIENTS: tl.constexpr, NET: tl.constexpr, GUIDE: tl.constexpr,
    CONFIG: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Takes x from x_T to x_0, in place; grid (programs, M).

    The buffers have ROWS rows for each program of each model.

    Args:
        x_ptr: float32 [M, rows, d].
        table_ptr: float32 [M, steps, COEFFICIENTS], coefficients of the steps.
        features_ptr: float32 [M, steps, FEATURES], features of the timesteps.
        seed_ptr: int64 [M].
        first_row, rows: global number of the first row, and rows of a model.
        steps: number of reverse steps, S.
        kept_ptr: float32 [1 + ceil(steps / keep_every), M, rows, d], or None: x after every
            ``keep_every`` steps and at the end, from entry 1 on.
        keep_every: steps between two entries.
        flat_ptr: float32 [M, P], parameters of the denoiser.
        weights_ptr: operand dtype [M, size], its weights as the matrix products read them.
        acts_ptr: operand dtype [M, programs * ROWS, activation columns], scratch: inputs of its
            layers.
        class_features_ptr, class_labels_ptr: float32 [M, classes, E] and int64 [M, rows], the
            features of the classes and the class of each row, or None.
        classes: number of classes; the last one stands for no class.
        uncond_ptr: float32 [M, rows, d], scratch for classifier-free guidance, or None:
            outputs without a class.
        memory_ptr: float32 [M, rows, d], zeros, for what wide points remember from step to step,
            or None.
        labels_ptr: int64 [M, rows], classes to guide to, or None like all that follow.
        guide_flat_ptr, guide_weights_ptr, guide_acts_ptr: the classifier's parameters, weights and
            scratch.
        guide_z_ptr: operand dtype [M, programs * ROWS, z columns], scratch, or None:
            pre-activations of the classifier.
        guide_grads_ptr: operand dtype [M, programs * ROWS, gradient columns], scratch: gradients of
            its pre-activations.
        FEATURES: width of a timestep feature, F.
        COEFFICIENTS: 4, or 7 for a linear multistep method.
        NET, GUIDE: layouts of the denoiser and of the classifier.
        CONFIG: tile sizes.
        ROWS: rows of a tile.
    """
    LAYERS: tl.constexpr = NET.layers
    DIM: tl.constexpr = NET.shape.widths[LAYERS]
    CLASS: tl.constexpr = NET.shape.widths[0] - DIM - FEATURES
    CLASSIFIER_FREE: tl.constexpr = uncond_ptr is not None
    COLUMNS: tl.constexpr = divisor(NET.padded[LAYERS], _WIDEST)
    REMEMBERS: tl.constexpr = COEFFICIENTS > _MEMORY
    RESIDENT: tl.constexpr = NET.padded[LAYERS] == COLUMNS
    program = tl.program_id(0).to(tl.int64)
    model = tl.program_id(1).to(tl.int64)
    slot = (model * tl.num_programs(0) + program) * ROWS
    acts = acts_ptr + slot * NET.activation_columns
    flat = flat_ptr + model * NET.shape.num_parameters
    weights = weights_ptr + model * NET.weights[LAYERS]
    seed = tl.load(seed_ptr + model)
    clear_padding(acts, NET, ROWS)
    g_acts, g_flat, g_weights, g_z, g_grads = None, None, None, None, None
    if GUIDE is not None:
        g_acts = guide_acts_ptr + slot * GUIDE.activation_columns
        g_flat = guide_flat_ptr + model * GUIDE.shape.num_parameters
        g_weights = guide_weights_ptr + model * GUIDE.weights[GUIDE.layers]
        g_z = guide_z_ptr + slot * GUIDE.z_columns if GUIDE.keeps_z else None
        g_grads = guide_grads_ptr + slot * GUIDE.gradient_columns
        clear_padding(g_acts, GUIDE, ROWS)
    for tile in tl.range(program, tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=1):
        row = tile * ROWS + tl.arange(0, ROWS)
        live = row < rows
        first = model * rows + tile * ROWS
        points = x_ptr + first * DIM
        uncond = uncond_ptr + first * DIM if CLASSIFIER_FREE else None
        memories = None if memory_ptr is None else memory_ptr + first * DIM
        x = load_points(points, 0, live, COLUMNS, DIM, ROWS) if RESIDENT else None
        memory = tl.zeros((ROWS, COLUMNS), tl.float32)
        if CLASS > 0:
            label = tl.load(class_labels_ptr + model * rows + row, mask=live, other=0)[:, None]
            class_features = class_features_ptr + model * classes * CLASS
            if not CLASSIFIER_FREE:
                chosen = class_features + label * CLASS
                store_features(chosen, None, DIM + FEATURES, CLASS, acts, NET, ROWS)
        # No code is hoisted out of the loop over time: it would only be spilled.
        for step in tl.range(0, steps, num_stages=1, disable_licm=True):
            features = features_ptr + (model * steps + step) * FEATURES
            store_step(x, points, features, live, acts, FEATURES, COLUMNS, DIM, NET, ROWS)
            if GUIDE is not None:
                store_step(x, points, features, live, g_acts, FEATURES, COLUMNS, DIM, GUIDE, ROWS)
            for evaluation in tl.range(0, 1 + CLASSIFIER_FREE, num_stages=1, disable_licm=True):
                if CLASSIFIER_FREE:  # first without a class, then with it
                    chosen = tl.where(evaluation == 0, classes - 1, label)
                    chosen = class_features + chosen * CLASS
                    store_features(chosen, None, DIM + FEATURES, CLASS, acts, NET, ROWS)
                tl.debug_barrier()
                forward_hidden(acts, None, weights, flat, NET, CONFIG, ROWS)
                if CLASSIFIER_FREE and evaluation == 0:
                    last_layer(acts, weights, flat, uncond, live, NET, CONFIG, ROWS)
                    tl.debug_barrier()
            if GUIDE is not None:
                wanted = tl.load(labels_ptr + model * rows + row, mask=live, other=0)
                _guide_hidden(wanted, g_acts, g_flat, g_weights, g_z, g_grads, GUIDE, CONFIG, ROWS)
            for start in tl.range(0, DIM, COLUMNS, num_stages=1):
                now = x if RESIDENT else load_points(points, start, live, COLUMNS, DIM, ROWS)
                before = memory
                if REMEMBERS and not RESIDENT:
                    before = load_points(memories, start, live, COLUMNS, DIM, ROWS)
                coefficients = table_ptr + (model * steps + step) * COEFFICIENTS
                after, remembered = _advanced(
                    now, before, start, coefficients, seed, step, first_row + row, uncond, live,
                    acts, flat, weights, g_grads, g_weights, REMEMBERS, NET, GUIDE, CONFIG, ROWS,
                )  # fmt: skip
                if kept_ptr is not None and (((step + 1) % keep_every == 0) | (step + 1 == steps)):
                    number = tl.cdiv(step + 1, keep_every).to(tl.int64) * tl.num_programs(1)
                    kept = kept_ptr + (number * rows + first) * DIM
                    store_points(kept, after, start, live, DIM, ROWS)
                if RESIDENT:
                    x, memory = after, remembered
                else:
                    tl.debug_barrier()  # all warps have read x before one of them overwrites it
                    store_points(points, after, start, live, DIM, ROWS)
                    if REMEMBERS:
                        store_points(memories, remembered, start, live, DIM, ROWS)
            if not RESIDENT or LAYERS == 1:
                tl.debug_barrier()  # the last layer has read the input, and x is written
        if RESIDENT:
            store_points(points, x, 0, live, DIM, ROWS)


@triton.jit
def _advanced(
    x, memory, start, coefficients, seed, step, row, uncond, live, acts, flat, weights, guide_grads,
    guide_weights,
    REMEMBERS: tl.constexpr, NET: tl.constexpr, GUIDE: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Returns columns of x_{t-1} from ``start`` on and their memory, after the hidden layers."""
    LAST: tl.constexpr = NET.layers - 1
    COLUMNS: tl.constexpr = x.shape[1]
    column = start + tl.arange(0, COLUMNS)
    c_x, c_eps, c_noise, c_guide = load_coefficients(coefficients)
    eps = layer_columns(acts, weights, flat, 0, column, LAST, NET, CONFIG, ROWS)
    grad = None
    if GUIDE is not None:
        grad = layer_columns_backward(guide_grads, guide_weights, 0, column, 0, GUIDE, CONFIG, ROWS)
        grad *= 1 / UNIT_SCALE
    if uncond is not None:
        uncond = load_points(uncond, start, live, COLUMNS, NET.shape.widths[NET.layers], ROWS)
    z = tl.zeros_like(x)
    if c_noise != 0:
        z = noise(seed, step, row, start, COLUMNS, NET.shape.widths[LAST + 1])
    x_prev = updated(x, eps, grad, uncond, z, c_x, c_eps, c_noise, c_guide)
    remembered = memory
    if REMEMBERS:
        x_prev += tl.load(coefficients + _MEMORY) * memory
        m_x, m_eps = tl.load(coefficients + _MEMORY_X), tl.load(coefficients + _MEMORY_EPS)
        remembered = updated(x, eps, grad, uncond, None, m_x, m_eps, 0.0, c_guide)
    return x_prev, remembered


@triton.jit
def _guide_hidden(
    label, acts, flat, weights, z, grads, GUIDE: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of log p(label | inputs) with respect to all pre-activations."""
    forward_hidden(acts, z, weights, flat, GUIDE, CONFIG, ROWS)
    _label_gradient(acts, weights, flat, grads, label, GUIDE, CONFIG, ROWS)
    tl.debug_barrier()
    z = z if GUIDE.keeps_z else acts
    backward_hidden(z, grads, weights, flat, None, 0, GUIDE, CONFIG, ROWS)


@triton.jit
def _label_gradient(
    acts, weights, flat, grads, label, GUIDE: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr
):
    """Writes the gradient of log softmax(y)[label] with respect to y."""
    LAYERS: tl.constexpr = GUIDE.layers
    WIDTH: tl.constexpr = GUIDE.shape.widths[LAYERS]
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, GUIDE.padded[LAYERS])
    y = layer_columns(acts, weights, flat, 0, column, LAYERS - 1, GUIDE, CONFIG, ROWS)
    p, _ = softmax(y, column, WIDTH)
    chosen = column[None, :] == label[:, None]
    target = grads + (GUIDE.columns[LAYERS] - GUIDE.columns[1])
    grad = operand((chosen - p) * UNIT_SCALE, grads.dtype.element_ty, GUIDE)
    tl.store(target + row * GUIDE.gradient_columns + column[None, :], grad)


def draw_prior(x: Tensor, seed: Tensor, first_row: int) -> None:
    """Writes x_T into x, float32 [M, B, d] and contiguous; seed int64 [M]."""
    models, rows, dim = x.shape
    if x.numel():
        with device_of(x):
            prior_kernel[triton.cdiv(rows, _ROWS), triton.cdiv(dim, 2), models](
                seed_ptr=seed.contiguous(),
                first_row=first_row,
                rows=rows,
                x_ptr=x,
                DIM=dim,
                ROWS=_ROWS,
            )


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
    models, rows, _ = x.shape
    steps = table.shape[1]
    kept = x.new_empty((1 + triton.cdiv(steps, keep_every) if keep_every else 0, *x.shape))
    if keep_every:
        kept[0] = x
    if not (x.numel() and steps):
        return x.clone(), kept
    x = x.clone(memory_format=torch.contiguous_format)
    net = layout_of(denoiser.shape, precision)
    classifier_free = condition is not None and condition.free
    config = chain_config_for(
        precision, capability_of(x.device), rows, models,
        guided=guide is not None, classifier_free=classifier_free,
    )  # fmt: skip
    programs = min(triton.cdiv(rows, config.rows), mlp.slots(models, x.device))
    slots = programs * config.rows
    remembers = table.shape[2] > reference.MEMORY and net.padded[-1] > _WIDEST.value
    flat, weights, acts = _buffers(denoiser, net, slots)
    with device_of(x):
        chain_kernel[programs, models](
            x_ptr=x,
            table_ptr=table.contiguous(),
            features_ptr=time_features.contiguous(),
            seed_ptr=seed.contiguous(),
            first_row=first_row,
            rows=rows,
            steps=steps,
            kept_ptr=kept if keep_every else None,
            keep_every=keep_every,
            flat_ptr=flat,
            weights_ptr=weights,
            acts_ptr=acts,
            memory_ptr=torch.zeros_like(x) if remembers else None,
            **_condition_arguments(condition, x),
            **_guide_arguments(guide, precision, slots),
            FEATURES=time_features.shape[2],
            COEFFICIENTS=table.shape[2],
            NET=net,
            CONFIG=config,
            ROWS=config.rows,
            num_warps=config.warps,
        )
    return x, kept


def _condition_arguments(condition: Condition | None, x: Tensor) -> dict[str, Any]:
    """Returns ``class_features_ptr`` to ``uncond_ptr`` of the chain's kernel."""
    if condition is None:
        return {"class_features_ptr": None, "class_labels_ptr": None, "classes": 0,
                "uncond_ptr": None}  # fmt: skip
    return {
        "class_features_ptr": condition.class_features.contiguous(),
        "class_labels_ptr": condition.labels.contiguous(),
        "classes": condition.class_features.shape[1],
        "uncond_ptr": torch.empty_like(x) if condition.free else None,
    }


def _guide_arguments(guide: Guide | None, precision: str, slots: int) -> dict[str, Any]:
    """Returns ``labels_ptr`` to ``guide_grads_ptr``, and GUIDE; all None without a guide."""
    if guide is None:
        names = ("labels", "guide_flat", "guide_weights", "guide_acts", "guide_z", "guide_grads")
        return {"GUIDE": None, **{f"{name}_ptr": None for name in names}}
    net = layout_of(guide.classifier.shape, precision)
    flat, weights, acts = _buffers(guide.classifier, net, slots)
    room = acts.shape[:2]
    return {
        "GUIDE": net,
        "labels_ptr": guide.labels.contiguous(),
        "guide_flat_ptr": flat,
        "guide_weights_ptr": weights,
        "guide_acts_ptr": acts,
        "guide_z_ptr": acts.new_empty((*room, net.z_columns)) if net.keeps_z else None,
        "guide_grads_ptr": acts.new_empty((*room, net.gradient_columns)),
    }


def _buffers(network: Network, net: Layout, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns flat parameters, operand weights, and room for the activations of ``slots`` rows."""
    flat = network.parameters.float().contiguous()
    weights = mlp.operand_weights(flat, network.shape, net.precision)
    acts = weights.new_empty((len(flat), slots, net.activation_columns))
    return flat, weights, acts
