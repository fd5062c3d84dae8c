"""Precisions and tile sizes. Sizes are found beforehand: nothing is tuned at a first call.

The file ``kernels/configs/sm_90.json`` has the sizes for GPUs of compute capability 9.0, by
precision and kernel::

    {"half": {"all": {"rows": 64, "out": 256, ...},
              "training": [{"tiles": 133, "rows": 128, "out": 128, "why": "..."}]}}

"half" stands for fp16 and bf16. The sizes under "all" hold for all kernels. Those of a kernel
replace them in calls of at least so many ``tiles`` of 64 rows, over all models; of several entries
each replaces sizes of those before. ``python -m flashpoint.bench tune`` times other sizes.

Kernels of :data:`HOPPER_KERNELS` have a second form, for Hopper GPUs alone. An entry turns it on,
and another one may turn it off again for more tiles; the perceptron has one form for all tiles::

    "chain": [{"form": "hopper", "hopper_rows": 64, "why": "..."}]

The sizes of the portable form remain beside it, for the calls that :func:`..forms.form_of` gives to
that form all the same. No file names the Hopper form without a measurement on such a GPU.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
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
# Kernels with sizes of their own; "perceptron" is the network alone, forwards and backwards.
KERNELS = ("training", "perceptron", "chain", "classifier-free chain", "guided chain", "adamw")
FORMS = ("portable", "hopper")
# Kernels that have the Hopper form.
HOPPER_KERNELS = tuple(kernel for kernel in KERNELS if kernel != "adamw")
# Rows of the tiles that a call is counted in to choose its sizes.
COUNTED = 64
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
        grad_rows: rows that are multiplied at once for it, a divisor of ``rows``, and of
            ``hopper_rows`` where that form runs.
        grad_stages, grad_warps: pipeline stages and warps of the weight gradient kernel.
        grad_programs: programs for which it splits the rows. All devices of an architecture split
            them alike, however many multiprocessors they have, and so add in the same order.
        adamw_block, adamw_warps: parameters and warps of a program of AdamW.
        form: form of the kernel, one of :data:`FORMS`.
        hopper_rows: rows of a program of the Hopper form, 64 or 128.
        hopper_ring: chunks of weights that it keeps in shared memory, at least 3; fewer
            if they do not fit.

    Raises:
        ValueError: a field is out of range.
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

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if type(self.hopper_rows) is not int or self.hopper_rows not in (64, 128):
            raise ValueError(f"hopper_rows must be 64 or 128, got {self.hopper_rows!r}")
        for field in fields(self):
            size = getattr(self, field.name)
            # Two chunks are multiplied while the next one is on its way.
            least = 3 if field.name == "hopper_ring" else 1
            if field.name != "form" and (type(size) is not int or size < least):
                raise ValueError(
                    f"{field.name} must be an integer of at least {least}, got {size!r}"
                )


# The configurations of a kernel, each with the number of tiles from which on it is used.
Steps = tuple[tuple[int, Config], ...]
# Configurations that calls of a kernel use instead, whatever their size.
_in_use: dict[str, Config] = {}


def config_for(
    precision: str, capability: tuple[int, int], rows: int, models: int, kernel: str = "training"
) -> Config:
    """Returns the configuration of a call.

    Args:
        precision: precision of the matrix products.
        capability: compute capability of the GPU.
        rows: rows of each model. Rounding them up to whole tiles changes nothing.
        models: number of models.
        kernel: one of :data:`KERNELS`.
    """
    if kernel in _in_use:
        return _in_use[kernel]
    tiles = -(-rows // COUNTED) * models
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


@contextmanager
def in_use(kernel: str, config: Config | None) -> Iterator[None]:
    """Makes calls of a kernel of any size use a configuration, the shipped one if that is None.

    It is for tests and tools, and holds for all threads.
    """
    before = dict(_in_use)
    _in_use.pop(kernel, None)
    if config is not None:
        _in_use[kernel] = config
    try:
        yield
    finally:
        _in_use.clear()
        _in_use.update(before)


def saved_rows(rows: int) -> int:
    """Returns the rows of the tensors that a forward pass leaves to a backward pass.

    They have room for whole tiles of all sizes. The number may be symbolic: it depends on no
    configuration, which would make compiled code depend on the number of rows.
    """
    return -(-rows // _LARGEST) * _LARGEST


@lru_cache
def steps_of(precision: str, capability: tuple[int, int], kernel: str) -> Steps:
    """Returns the configurations of a kernel, that of the smallest calls first.

    Raises:
        ValueError: the file names a size that does not exist, or has a value out of range.
    """
    precision = "half" if precision in ("fp16", "bf16") else precision
    table = table_of(precision, capability)
    try:
        unknown = table.keys() - {"all", *KERNELS}
        if unknown:
            names = ", ".join(("all", *KERNELS))
            raise ValueError(f"kernels must be among {names}, got {', '.join(sorted(unknown))}")
        sizes = table.get("all", {})
        found = {0: config_of(sizes)}
        for change in table.get(kernel, ()):
            tiles, sizes = change.get("tiles", 0), sizes | change
            if type(tiles) is not int or tiles < max(found):
                raise ValueError(f"tiles must be integers that grow, got {tiles!r}")
            found[tiles] = config_of(sizes)
        _check_forms(kernel, [config.form for config in found.values()])
    except ValueError as error:
        arch = 10 * capability[0] + capability[1]
        raise ValueError(f"kernels/configs for sm_{arch}, {precision}, {kernel}: {error}") from None
    return tuple(found.items())


def _check_forms(kernel: str, forms: list[str]) -> None:
    """Raises ValueError if a kernel does not have the forms that a file gives to it."""
    if kernel not in HOPPER_KERNELS and "hopper" in forms:
        others = ", ".join(HOPPER_KERNELS)
        raise ValueError(f"form must be portable, others are for {others}, got 'hopper'")
    if kernel == "perceptron" and len(set(forms)) > 1:
        raise ValueError(f"form must be the same for all tiles, got {', '.join(forms)}")


def table_of(precision: str, capability: tuple[int, int]) -> dict[str, Any]:
    """Returns the sizes of all kernels of a precision, from the file of a GPU.

    Where a GPU has no file, or its file lacks the precision, that of the next older architecture of
    its generation has them, or else the oldest file, whose tiles fit every GPU.
    """
    files = {int(path.stem.removeprefix("sm_")): path for path in CONFIGS.glob("sm_*.json")}
    here = 10 * capability[0] + capability[1]
    same = sorted(arch for arch in files if arch // 10 == capability[0] and arch <= here)
    tables = (
        json.loads(files[arch].read_text(encoding="utf-8"))
        for arch in (*reversed(same), min(files))
    )
    return next(table[precision] for table in tables if precision in table)


def config_of(sizes: dict[str, Any]) -> Config:
    """Returns the configuration that an entry of a file describes completely."""
    sizes = {name: size for name, size in sizes.items() if name not in ("tiles", "why")}
    known = {field.name for field in fields(Config)}
    if not sizes.keys() <= known:
        unknown, names = sorted(sizes.keys() - known), ", ".join(sorted(known))
        raise ValueError(f"sizes must be among {names}, got {', '.join(unknown)}")
    missing = {field.name for field in fields(Config) if field.default is MISSING} - sizes.keys()
    if missing:
        raise ValueError(f"all sizes must be given, got none for {', '.join(sorted(missing))}")
    return Config(**sizes)


def to_operand(x: Tensor, precision: str) -> Tensor:
    """Rounds x in float32 to nearest, as the matrix products of a precision read it."""
    if precision != "tf32":
        return x.to(OPERAND_DTYPES[precision])
    # tf32 has the upper 10 of the 23 bits of a mantissa; tensor cores would cut the others off.
    rounded = ((x.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return torch.where(x.isnan(), x, rounded)
