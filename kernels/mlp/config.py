"""Precisions and tile sizes. Sizes are found beforehand: nothing is tuned at a first call.

The file ``kernels/configs/sm_90.json`` has the sizes for GPUs of compute capability 9.0, by
precision and kernel::

    {"half": {"all": {"rows": 64, "out": 256, ...},
              "mlp": [{"tiles": 133, "rows": 128, "out": 128, "why": "..."}]}}

"half" stands for fp16 and bf16. The sizes under "all" hold for all kernels. Those of a kernel
replace them in calls of at least so many ``tiles`` of 64 rows, over all models; of several entries
each replaces sizes of those before. ``python -m flashpoint.bench tune`` times other sizes.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OPERAND_DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "tf32x3": torch.float32,
    "fp32": torch.float32,
}

# Programs that fill a GPU, where the device is not asked.
PROGRAMS = 132

CONFIGS = Path(__file__).parents[1] / "configs"
# Kernels with sizes of their own; "mlp" is training and the perceptron, forwards and backwards.
KERNELS = ("mlp", "chain", "classifier-free chain", "guided chain", "adamw")
# Rows of the tiles that a call is counted in to choose its sizes.
_COUNTED = 64
# Rows of the largest tile.
_LARGEST = 128


@dataclass(frozen=True)
class Config:
    """Tile sizes of a call.

    Attributes:
        rows: rows that a program takes through a network at once; buffers are padded to a multiple.
        out: columns of a layer's output that are accumulated at once.
        reduce: columns of a layer's input that are multiplied at once.
        stages, warps: pipeline stages and warps of the forward and backward kernels.
        grad_in, grad_out: tile of a weight gradient.
        grad_rows: rows that are multiplied at once for it, a divisor of ``rows``.
        grad_stages, grad_warps: pipeline stages and warps of the weight gradient kernel.
        grad_programs: programs for which it splits the rows. All devices of an architecture split
            them alike, however many multiprocessors they have, and so add in the same order.
        adamw_block, adamw_warps: parameters and warps of a program of AdamW.
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
    grad_programs: int
    adamw_block: int
    adamw_warps: int
    form: str = "portable"
    hopper_rows: int = 64
    hopper_ring: int = 6


# The configurations of a kernel, each with the number of tiles from which on it is used.
Steps = tuple[tuple[int, Config], ...]


def config_for(
    precision: str, capability: tuple[int, int], rows: int, models: int, kernel: str = "mlp"
) -> Config:
    """Returns the configuration of a call.

    Args:
        precision: precision of the matrix products.
        capability: compute capability of the GPU.
        rows: rows of each model. Rounding them up to whole tiles changes nothing.
        models: number of models.
        kernel: one of :data:`KERNELS`.
    """
    tiles = -(-rows // _COUNTED) * models
    steps = steps_of(precision, capability, kernel)
    return next(config for least, config in reversed(steps) if least <= tiles)


def chain_config_for(
    precision: str,
    capability: tuple[int, int],
    rows: int,
    models: int,
    *,
    guided: bool,
    classifier_free: bool,
) -> Config:
    """Returns the configuration of a sampling chain."""
    kernel = "guided chain" if guided else "classifier-free chain" if classifier_free else "chain"
    return config_for(precision, capability, rows, models, kernel)


def saved_rows(rows: int) -> int:
    """Returns the rows of the tensors that a forward pass leaves to a backward pass.

    They have room for whole tiles of all sizes. The number may be symbolic: it depends on no
    configuration, which would make compiled code depend on the number of rows.
    """
    return -(-rows // _LARGEST) * _LARGEST


@lru_cache
def steps_of(precision: str, capability: tuple[int, int], kernel: str) -> Steps:
    """Returns the configurations of a kernel, that of the smallest calls first."""
    table = table_of("half" if precision in ("fp16", "bf16") else precision, capability)
    sizes = table["all"]
    found = {0: config_of(sizes)}
    for change in table.get(kernel, ()):
        sizes |= change
        found[change.get("tiles", 0)] = config_of(sizes)
    return tuple(found.items())


def table_of(precision: str, capability: tuple[int, int]) -> dict[str, Any]:
    """Returns the sizes of all kernels of a precision, from the file of a GPU.

    Where a GPU has no file, or its file lacks the precision, that of the next older architecture of
    its generation has them, or else the oldest file, whose tiles fit every GPU.
    """
    files = {int(path.stem.removeprefix("sm_")): path for path in CONFIGS.glob("sm_*.json")}
    here = 10 * capability[0] + capability[1]
    same = sorted(arch for arch in files if arch // 10 == capability[0] and arch <= here)
    tables = (json.loads(files[arch].read_text()) for arch in (*reversed(same), min(files)))
    return next(table[precision] for table in tables if precision in table)


def config_of(sizes: dict[str, Any]) -> Config:
    """Returns the configuration that an entry of a file describes completely."""
    return Config(**{name: size for name, size in sizes.items() if name not in ("tiles", "why")})


def to_operand(x: Tensor, precision: str) -> Tensor:
    """Rounds x in float32 to nearest, as the matrix products of a precision read it."""
    if precision != "tf32":
        return x.to(OPERAND_DTYPES[precision])
    # tf32 has the upper 10 of the 23 bits of a mantissa; tensor cores would cut the others off.
    rounded = ((x.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return torch.where(x.isnan(), x, rounded)
