"""Precisions and tile sizes: a small table, so that nothing is tuned at a first call."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

OPERAND_DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "tf32x3": torch.float32,
    "fp32": torch.float32,
}

# Programs that fill a GPU. Sums over rows are split for this number on every device, so that the
# order of summation is the same on all of them.
PROGRAMS = 132


@dataclass(frozen=True)
class Config:
    """Tile sizes of one precision on one architecture.

    Attributes:
        rows: rows that a program takes through a network at once; buffers are padded to a multiple.
        out: columns of a layer's output that are accumulated at once.
        reduce: columns of a layer's input that are multiplied at once.
        stages, warps: pipeline stages and warps of the forward and backward kernels.
        grad_in, grad_out: tile of a weight gradient.
        grad_rows: rows that are multiplied at once for it.
        grad_stages, grad_warps: pipeline stages and warps of the weight gradient kernel.
    """

    rows: int
    out: int
    reduce: int
    stages: int
    warps: int
    grad_in: int
    grad_out: int
    grad_rows: int
    grad_stages: int
    grad_warps: int


_HOPPER_HALF = Config(
    rows=64, out=256, reduce=64, stages=3, warps=8,
    grad_in=128, grad_out=128, grad_rows=64, grad_stages=3, grad_warps=8,
)  # fmt: skip
_AMPERE_HALF = Config(
    rows=64, out=256, reduce=32, stages=3, warps=8,
    grad_in=128, grad_out=128, grad_rows=32, grad_stages=3, grad_warps=8,
)  # fmt: skip
_TF32 = Config(
    rows=64, out=128, reduce=32, stages=3, warps=8,
    grad_in=64, grad_out=128, grad_rows=32, grad_stages=3, grad_warps=8,
)  # fmt: skip
# Each product is three products of tensor cores. The operands are split in registers, which each
# group of four warps would repeat: so there is one group. Tensor cores truncate their sums
# instead of rounding them, but Triton adds up the sums of chunks outside of them: so chunks are
# short.
_TF32X3 = Config(
    rows=64, out=64, reduce=32, stages=3, warps=4,
    grad_in=64, grad_out=64, grad_rows=32, grad_stages=3, grad_warps=4,
)  # fmt: skip
# Products in IEEE fp32 do not run on tensor cores; they are unrolled, so the tiles are small.
_FP32 = Config(
    rows=64, out=64, reduce=16, stages=2, warps=8,
    grad_in=64, grad_out=64, grad_rows=16, grad_stages=2, grad_warps=8,
)  # fmt: skip


def config_for(precision: str, capability: tuple[int, int], rows: int, models: int) -> Config:  # noqa: ARG001
    """Returns the configuration of a call.

    Args:
        precision: precision of the matrix products.
        capability: compute capability of the GPU.
        rows: rows of each model. Rounding them up to whole tiles changes nothing.
        models: number of models.
    """
    if precision == "fp32":
        return _FP32
    if precision == "tf32":
        return _TF32
    if precision == "tf32x3":
        return _TF32X3
    large_shared_memory = capability[0] in (9, 10)
    return _HOPPER_HALF if large_shared_memory else _AMPERE_HALF


def chain_config_for(
    precision: str,
    capability: tuple[int, int],
    rows: int,
    models: int,
    *,
    guided: bool,
    classifier_free: bool,
) -> Config:
    """Returns :func:`config_for`, with fewer columns at once where guidance would spill registers.

    With the pointers of two networks in registers, 64 columns do not spill, and compile in less
    than five seconds. On Hopper 64 columns are too few: two groups of warps would share them, and
    ptxas does not overlap products that narrow. 128 columns spill a little there, between layers.
    """
    config = config_for(precision, capability, rows, models)
    if guided:
        hopper = config is _HOPPER_HALF and capability[0] == 9
        return replace(config, out=128 if hopper else min(config.out, 64))
    if classifier_free and config is _AMPERE_HALF:
        return replace(config, out=128)
    return config


def to_operand(x: Tensor, precision: str) -> Tensor:
    """Rounds x in float32 to nearest, as the matrix products of a precision read it."""
    if precision != "tf32":
        return x.to(OPERAND_DTYPES[precision])
    # tf32 has the upper 10 of the 23 bits of a mantissa; tensor cores would cut the others off.
    rounded = ((x.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return torch.where(x.isnan(), x, rounded)
