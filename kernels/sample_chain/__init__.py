"""The whole reverse process of M models, with all steps in one call."""

import torch
from torch import Tensor

from .._dispatch import log_once, onlooker, runs_in_pieces, use_triton
from .._kinds import checked
from .._validate import (
    check_backend,
    check_device,
    check_dtype,
    check_positive,
    check_precision,
    check_range,
    check_same_device,
    check_shape,
)
from ..default_state import in_default_state
from ..mlp.layout import gap_of
from ..mlp.shape import check_not_residual
from ..overflow import observe
from ..philox import Stream, normal_rows, seed_of_each, seed_tensor
from . import pieces, reference, stepwise
from .reference import Condition, Guide, Network

__all__ = ["Condition", "Guide", "Network", "draw_prior", "sample_chain"]


@in_default_state
@checked
def draw_prior(
    rows: int,
    dim: int,
    *,
    seed: int | Tensor,
    first_row: int = 0,
    device: torch.device | str = "cpu",
    backend: str | None = None,
) -> Tensor:
    """Draws x_T ~ N(0, I), float32 [M, rows, dim], a function of (seed, row) alone.

    Args:
        rows: number of rows B.
        dim: dimension d of a point.
        seed: one seed, or int64 [M].
        first_row: global number of the first row.
        device: device of the result, on which it is computed.
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernel; None
            chooses.
    """
    check_backend(backend)
    check_positive("rows", rows, allow_zero=True)
    check_positive("dim", dim, allow_zero=True)
    check_positive("first_row", first_row, allow_zero=True)
    check_device(device)
    seed = seed_tensor(seed, device)
    x_T = torch.empty((len(seed), rows, dim), dtype=torch.float32, device=device)
    if use_triton(backend, "x_T", x_T):
        from . import kernel

        kernel.draw_prior(x_T, seed, first_row)
        return x_T
    numbers = torch.arange(first_row, first_row + rows, device=device)
    return normal_rows(seed, Stream.PRIOR, 0, numbers, dim)


@in_default_state
@checked
def sample_chain(
    denoiser: Network,
    x_T: Tensor,
    table: Tensor,
    time_features: Tensor,
    *,
    seed: int | Tensor,
    guide: Guide | None = None,
    condition: Condition | None = None,
    first_row: int = 0,
    keep_every: int = 0,
    precision: str = "fp16",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs S steps of the reverse process, with or without guidance.

    Source: Ho et al. 2020, algorithm 2; Song et al. 2021. The guidance is that of a classifier
    (Dhariwal and Nichol 2021) or of the denoiser itself, (1 + w) MLP(x, y, t) - w MLP(x, t) (Ho and
    Salimans 2022); the table holds its scale. The table also fits what the denoisers predict, the
    noise or anything else that is linear in x_0 and noise.

    Args:
        denoiser: M networks; input width d plus the widths of the features, output width d.
        x_T: float32 [M, B, d], the start of the chain.
        table: float32 [M, S, 4], the coefficients of each :func:`reverse_step`, in the order of the
            steps; or [M, S, 7] for a linear multistep method. There a step also remembers
            m = c_5 x_t + c_6 output, and the next one adds its c_4 times m to x_{t-1}, beside its
            noise; at first m is 0.
        time_features: float32 [M, S, F], the networks' input for the t of each step.
        seed: one seed, or int64 [M]; the noise is a function of (seed, step, row).
        guide: classifier of (x, feature of t), and labels int64 [M, B].
        condition: class features and labels int64 [M, B] of a conditional denoiser, and a switch
            for classifier-free guidance.
        first_row: global number of the first row.
        keep_every: number of steps after which x is also kept for the trajectory; 0 for never.
        precision: precision of the kernels' matrix products, ``fp16``, ``bf16``, ``tf32``,
            ``tf32x3`` or ``fp32``; the reference always works in float32.
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernels; None
            chooses. Networks too large for one launch run step by step, on CUDA as replays of one
            graph; a network that the kernels do not cover runs in PyTorch, at the precision that
            PyTorch is set to.

    Returns:
        samples [M, B, d] and the trajectory [K, M, B, d], which starts with x_T and ends with the
        samples; K is 0 if ``keep_every`` is 0.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, a label is not one of the classes, or a
            guide comes with classifier-free guidance.
    """
    check_backend(backend)
    check_precision(precision)
    check_positive("keep_every", keep_every, allow_zero=True)
    check_positive("first_row", first_row, allow_zero=True)
    _check(denoiser, x_T, table, time_features, guide, condition)
    arguments = (
        denoiser,
        x_T,
        table,
        time_features,
        seed_of_each(seed, len(x_T), x_T.device),
        guide,
        condition,
        first_row,
        keep_every,
    )
    gap = gap_of(denoiser.shape, torch.float32)
    if guide is not None:
        gap = gap or gap_of(guide.classifier.shape, torch.float32, classifier=True)
    reference_only = onlooker() or ("float64" if x_T.dtype == torch.float64 else None)
    with torch.no_grad():
        if runs_in_pieces(backend, x_T):
            samples, trajectory = pieces.sample_chain(*arguments)
        elif not use_triton(backend, "x_T", x_T, reference_only, precision):
            samples, trajectory = reference.sample_chain(*arguments)
        elif gap is None:
            from . import one_launch

            samples, trajectory = one_launch.sample_chain(*arguments, precision)
        else:
            log_once(f"a sampling chain step by step instead of in one launch: {gap}")
            samples, trajectory = stepwise.sample_chain(*arguments, precision)
    observe("sample_chain", precision, [denoiser.parameters, x_T], [samples])
    return samples, trajectory


def _check(
    denoiser: Network,
    x_T: Tensor,
    table: Tensor,
    time_features: Tensor,
    guide: Guide | None,
    condition: Condition | None,
) -> None:
    """Raises ValueError if the arguments of a chain do not fit together."""
    check_shape("x_T", x_T, ("M", "B", "d"))
    models, _, dim = x_T.shape
    check_shape("table", table, (models, "S", 7 if table.shape[-1:] == (7,) else 4))
    check_shape("time_features", time_features, (models, table.shape[1], "F"))
    check_same_device(x_T=x_T, table=table, time_features=time_features)
    if x_T.dtype != torch.float64:  # the reference also takes float64
        check_dtype(torch.float32, x_T=x_T)
    check_dtype(x_T.dtype, table=table, time_features=time_features)
    width = dim + time_features.shape[-1]
    if condition is not None:
        _check_condition(condition, guide, x_T)
    class_width = 0 if condition is None else condition.class_features.shape[-1]
    _check_network("denoiser", denoiser, x_T, width + class_width)
    outputs = denoiser.shape.widths[-1]
    if outputs != dim:
        raise ValueError(f"denoiser must have {dim} outputs, got {outputs}")
    if guide is not None:
        _check_network("guide.classifier", guide.classifier, x_T, width)
        classes = guide.classifier.shape.widths[-1]
        _check_labels("guide.labels", guide.labels, x_T, classes)


def _check_network(name: str, network: Network, x_T: Tensor, width: int) -> None:
    """Raises ValueError if a network does not fit x_T or an input of this width."""
    parameters, shape = network
    check_not_residual(f"{name}.shape", shape)
    if shape.widths[0] != width:
        raise ValueError(
            f"{name} must have input width {width} (point and features), got {shape.widths[0]}"
        )
    check_shape(f"{name}.parameters", parameters, (len(x_T), shape.num_parameters))
    check_same_device(x_T=x_T, **{f"{name}.parameters": parameters})
    check_dtype(x_T.dtype, **{f"{name}.parameters": parameters})


def _check_labels(name: str, labels: Tensor, x_T: Tensor, classes: int) -> None:
    """Raises ValueError if labels do not fit x_T or are not all below the number of classes."""
    check_shape(name, labels, tuple(x_T.shape[:2]))
    check_same_device(x_T=x_T, **{name: labels})
    check_dtype(torch.int64, **{name: labels})
    check_range(name, labels, 0, classes)


def _check_condition(condition: Condition, guide: Guide | None, x_T: Tensor) -> None:
    """Raises ValueError if the condition does not fit x_T, or not together with the guide."""
    class_features, labels, classifier_free = condition
    if classifier_free and guide is not None:
        raise ValueError("guide must be None with classifier-free guidance, got both")
    name = "condition.class_features"
    check_shape(name, class_features, (len(x_T), "C + 1", "E"))
    check_same_device(x_T=x_T, **{name: class_features})
    check_dtype(x_T.dtype, **{name: class_features})
    _check_labels("condition.labels", labels, x_T, class_features.shape[1])
