"""The whole reverse process in one launch; same contract as :mod:`.reference`.

A program takes 64 rows through all steps. Rows share nothing but the weights, and the state of a
program between two steps stays in cache.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import capability_of
from ..cuda import device_of
from ..mlp import kernel as mlp
from ..mlp.arithmetic import UNIT_SCALE, operand, softmax
from ..mlp.config import chain_config_for
from ..mlp.layout import Layout, layout_of
from ..mlp.tile import (
    backward_hidden,
    forward_hidden,
    last_layer,
    layer_columns,
    store_grad_x,
    store_input,
)
from ..philox.kernel import NOISE, PRIOR, normal_pair
from ..q_sample.reference import gather_points
from ..reverse_step.kernel import updated
from .reference import Condition, Guide, Network

_ROWS = 256  # rows of a program that only draws
# Arguments that change from call to call. Triton would compile a kernel anew for a value of 1 or of
# a multiple of 16,
_VARYING = ["first_row", "rows", "steps", "keep_every"]
# and for a tensor of the caller's that starts at a multiple of 16 bytes.
_UNALIGNED = ["table_ptr", "features_ptr", "seed_ptr", "labels_ptr"]


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
    inputs_ptr, table_ptr, features_ptr, seed_ptr, first_row, rows, steps, kept_ptr, keep_every,
    flat_ptr, weights_ptr, acts_ptr, eps_ptr,
    labels_ptr, guide_flat_ptr, guide_weights_ptr, guide_acts_ptr, guide_z_ptr,
    guide_grads_ptr, grad_ptr,
    FEATURES: tl.constexpr, CLASSIFIER_FREE: tl.constexpr,
    NET: tl.constexpr, GUIDE: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Takes x from x_T to x_0, in place; grid (programs, M).

    The buffers have ROWS rows for each program of each model. With GUIDE a classifier guides;
    without, its pointers are None.

    Args:
        inputs_ptr: float32 [M, rows, d + F], holds x_T and the feature of the first t, and x_0 in
            the end. A conditional denoiser has [M, rows, d + F + E], with the features of each
            row's class; with CLASSIFIER_FREE, [M, rows, d + F + 2 E], then those of no class too.
        table_ptr: float32 [M, steps, 4], coefficients of the steps.
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
        eps_ptr: float32 [1 + CLASSIFIER_FREE, M, rows, d], scratch: noise predictions.
        labels_ptr: int64 [M, rows], classes to guide to.
        guide_flat_ptr, guide_weights_ptr, guide_acts_ptr: the same of the classifier.
        guide_z_ptr: operand dtype [M, programs * ROWS, z columns], scratch, or None:
            pre-activations of the classifier.
        guide_grads_ptr: operand dtype [M, programs * ROWS, gradient columns], scratch: gradients of
            its pre-activations.
        grad_ptr: float32 [M, rows, d + F], scratch: gradient of log p(label | x).
        FEATURES: width of a timestep feature, F.
        CLASSIFIER_FREE: True for classifier-free guidance.
        NET, GUIDE: layouts of the denoiser and of the classifier, or None.
        CONFIG: tile sizes.
        ROWS: rows of a tile.
    """
    LAYERS: tl.constexpr = NET.layers
    DIM: tl.constexpr = NET.shape.widths[LAYERS]
    CLASS: tl.constexpr = NET.shape.widths[0] - DIM - FEATURES
    IN: tl.constexpr = DIM + FEATURES + CLASS * (1 + CLASSIFIER_FREE)
    program = tl.program_id(0).to(tl.int64)
    model = tl.program_id(1).to(tl.int64)
    slot = (model * tl.num_programs(0) + program) * ROWS
    acts = acts_ptr + slot * NET.activation_columns
    flat = flat_ptr + model * NET.shape.num_parameters
    weights = weights_ptr + model * NET.weights[LAYERS]
    seed = tl.load(seed_ptr + model)
    for tile in tl.range(program, tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=1):
        row = tile * ROWS + tl.arange(0, ROWS)
        live = row < rows
        first = model * rows + tile * ROWS
        inputs = inputs_ptr + first * IN
        eps = eps_ptr + first * DIM
        to_uncond = tl.num_programs(1).to(tl.int64) * rows * DIM  # from eps to eps without class
        # No code is hoisted out of the loop over time: it would only be spilled.
        for step in tl.range(0, steps, num_stages=1, disable_licm=True):
            for no_class in tl.range(0, 1 + CLASSIFIER_FREE, num_stages=1, disable_licm=True):
                SKIP_FROM: tl.constexpr = DIM + FEATURES if CLASSIFIER_FREE else None
                store_input(inputs, IN, 1, live, acts, NET, ROWS, SKIP_FROM, no_class * CLASS)
                tl.debug_barrier()
                forward_hidden(acts, None, weights, flat, NET, CONFIG, ROWS)
                last_layer(acts, weights, flat, eps + no_class * to_uncond, live, NET, CONFIG, ROWS)
                if CLASSIFIER_FREE:
                    tl.debug_barrier()
            if GUIDE is not None:
                _guidance(
                    inputs, IN, grad_ptr + first * (DIM + FEATURES), labels_ptr + first, live,
                    model, slot, guide_flat_ptr, guide_weights_ptr, guide_acts_ptr, guide_z_ptr,
                    guide_grads_ptr, GUIDE, CONFIG, ROWS,
                )  # fmt: skip
            tl.debug_barrier()
            coefficients = table_ptr + (model * steps + step) * 4
            x = inputs + tl.arange(0, ROWS) * IN
            place = tl.arange(0, ROWS) * DIM
            grad = None
            if GUIDE is not None:
                grad = grad_ptr + (first + tl.arange(0, ROWS)) * (DIM + FEATURES)
            uncond = eps + place + to_uncond if CLASSIFIER_FREE else None
            _advance(
                x, eps + place, grad, uncond, coefficients, seed, step, first_row + row, live, DIM,
            )  # fmt: skip
            next_step = tl.minimum(step + 1, steps - 1)
            features = features_ptr + (model * steps + next_step) * FEATURES
            for column in range(FEATURES):
                feature = tl.where(live, tl.load(features + column), 0.0)
                tl.store(x + DIM + column, feature, mask=live)
            tl.debug_barrier()
            if kept_ptr is not None and (((step + 1) % keep_every == 0) | (step + 1 == steps)):
                number = tl.cdiv(step + 1, keep_every).to(tl.int64) * tl.num_programs(1)
                kept = kept_ptr + (number * rows + first + tl.arange(0, ROWS)) * DIM
                for column in range(DIM):
                    tl.store(kept + column, tl.load(x + column, mask=live), mask=live)


@triton.jit
def _advance(x, eps, grad, uncond, coefficients, seed, step, row, live, DIM: tl.constexpr):
    """Takes a tile through one reverse step, in place."""
    for pair in range((DIM + 1) // 2):
        z_0, z_1 = normal_pair(seed, NOISE, step, row, pair)
        first = updated(x, eps, grad, uncond, None, z_0, coefficients, live, pair * 2)
        second = first
        if pair * 2 + 1 < DIM:
            second = updated(x, eps, grad, uncond, None, z_1, coefficients, live, pair * 2 + 1)
        tl.debug_barrier()  # all warps have read x before one of them overwrites it
        tl.store(x + pair * 2, first, mask=live)
        if pair * 2 + 1 < DIM:
            tl.store(x + pair * 2 + 1, second, mask=live)


@triton.jit
def _guidance(
    inputs, stride, grad, labels, live, model, slot, flat_ptr, weights_ptr, acts_ptr, z_ptr,
    grads_ptr, GUIDE: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of log p(label | inputs) with respect to the inputs of a tile."""
    LAYERS: tl.constexpr = GUIDE.layers
    flat = flat_ptr + model * GUIDE.shape.num_parameters
    weights = weights_ptr + model * GUIDE.weights[LAYERS]
    acts = acts_ptr + slot * GUIDE.activation_columns
    z = z_ptr + slot * GUIDE.z_columns if GUIDE.keeps_z else None
    grads = grads_ptr + slot * GUIDE.gradient_columns
    store_input(inputs, stride, 1, live, acts, GUIDE, ROWS)
    tl.debug_barrier()
    forward_hidden(acts, z, weights, flat, GUIDE, CONFIG, ROWS)
    label = tl.load(labels + tl.arange(0, ROWS), mask=live, other=0)
    _label_gradient(acts, weights, flat, grads, label, GUIDE, CONFIG, ROWS)
    tl.debug_barrier()
    z = z if GUIDE.keeps_z else acts
    backward_hidden(z, grads, weights, flat, None, 0, GUIDE, CONFIG, ROWS)
    store_grad_x(grads, weights, grad, live, 1 / UNIT_SCALE, GUIDE, CONFIG, ROWS)


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
    models, rows, dim = x.shape
    steps = table.shape[1]
    kept = x.new_empty((1 + triton.cdiv(steps, keep_every) if keep_every else 0, *x.shape))
    if keep_every:
        kept[0] = x
    if not (x.numel() and steps):
        return x.clone(), kept
    features = time_features.shape[2]
    classifier_free = condition is not None and condition.free
    inputs = _inputs(x, time_features, condition)
    net = layout_of(denoiser.shape, precision)
    config = chain_config_for(
        precision, capability_of(x.device), rows, models,
        guided=guide is not None, classifier_free=classifier_free,
    )  # fmt: skip
    programs = min(triton.cdiv(rows, config.rows), mlp.slots(models, x.device))
    slots = programs * config.rows
    flat, weights, acts = _buffers(denoiser, net, slots)
    with device_of(x):
        chain_kernel[programs, models](
            inputs_ptr=inputs,
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
            eps_ptr=x.new_empty((1 + classifier_free, *x.shape)),
            **_guide_arguments(guide, x, features, precision, slots),
            FEATURES=features,
            CLASSIFIER_FREE=classifier_free,
            NET=net,
            CONFIG=config,
            ROWS=config.rows,
            num_warps=config.warps,
        )
    return inputs[..., :dim].contiguous(), kept


def _inputs(x: Tensor, time_features: Tensor, condition: Condition | None) -> Tensor:
    """Returns the kernel's inputs: x_T, the first feature of t, and the features of the classes."""
    parts = [x, time_features[:, :1].expand(*x.shape[:2], -1)]
    if condition is not None:
        class_features, labels, classifier_free = condition
        parts.append(gather_points(class_features, labels))
        if classifier_free:
            parts.append(class_features[:, -1:].expand(*x.shape[:2], -1))
    return torch.cat(parts, dim=-1)


def _guide_arguments(
    guide: Guide | None, x: Tensor, features: int, precision: str, slots: int
) -> dict[str, Any]:
    """Returns ``labels_ptr`` to ``grad_ptr`` of the chain's kernel, and GUIDE; all None without."""
    if guide is None:
        names = ("labels", "guide_flat", "guide_weights", "guide_acts", "guide_z", "guide_grads",
                 "grad")  # fmt: skip
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
        "grad_ptr": x.new_empty((*x.shape[:2], x.shape[2] + features)),
    }


def _buffers(network: Network, net: Layout, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns flat parameters, operand weights, and room for the activations of ``slots`` rows."""
    flat = network.parameters.float().contiguous()
    weights = mlp.operand_weights(flat, network.shape, net.precision)
    acts = weights.new_empty((len(flat), slots, net.activation_columns))
    return flat, weights, acts
