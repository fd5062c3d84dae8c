"""Other tile sizes for a kernel, and what their compiled code says about them, without a GPU.

The candidates of a kernel are all combinations of the values in :data:`TUNED`, and on Hopper GPUs
those of :data:`HOPPER_SIZES` if it has a form for these. Those that differ in the fewest sizes from
the shipped configuration are tried first.
"""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product, zip_longest
from multiprocessing import get_context

from ..diffusion.errors import UserError
from ..kernels.forms import HOPPER, problem_of_gluon
from ..kernels.mlp import config as table
from ..kernels.mlp.config import Config
from .operations import one_line
from .tables import duration
from .timing import Timing

Changes = dict[str, int | str]

_SHARED = 227 * 1024  # bytes of shared memory that a program may have on the largest GPUs
# Bytes that a kernel may spill. In the Hopper form registers hold whole layers, so that it spills a
# little before loops and between layers; that is timed, not ruled out.
_SPILLED = {"portable": 64, "hopper": 1024}
# Accumulators of a thread, beside which a kernel has too few registers for all else.
_ACCUMULATORS = 128
_OPERAND_BYTES = 2


@dataclass(frozen=True)
class Tuned:
    """A kernel whose tile sizes are tuned.

    Attributes:
        kernel: the configuration that it uses, one of :data:`~..kernels.mlp.config.KERNELS`.
        case: the call of :data:`~..kernels.resources.CASES` that launches it.
        sizes: values of each size that is tuned.
        warps: the size that is the number of its warps.
        tile: rows and columns of its products, and length and stages of their sums, by size; None
            if it has no products.
        hopper: True if it has a form for Hopper GPUs.
    """

    kernel: str
    case: str
    sizes: dict[str, tuple[int, ...]]
    warps: str
    tile: tuple[str, str, str, str] | None = None
    hopper: bool = False


_TILES = {
    "rows": (64, 128),
    "out": (256, 128, 64),
    "reduce": (64, 32, 128),
    "stages": (3, 4, 2),
    "warps": (8, 4),
}
_TILE = ("rows", "out", "reduce", "stages")
_GRADIENT_TILES = {
    "grad_in": (128, 64, 256),
    "grad_out": (128, 64, 256),
    "grad_rows": (64, 32, 128),
    "grad_stages": (3, 4, 2),
    "grad_warps": (8, 4),
    "grad_programs": (132, 264, 66),
}
_GRADIENT_TILE = ("grad_in", "grad_out", "grad_rows", "grad_stages")
HOPPER_SIZES = {"hopper_rows": (64, 128), "hopper_ring": (6, 5, 4)}
TUNED = {
    "training": Tuned("training", "train fp16", _TILES, "warps", _TILE, True),
    "weight gradients": Tuned(
        "training", "train fp16", _GRADIENT_TILES, "grad_warps", _GRADIENT_TILE
    ),
    "drop-in": Tuned("perceptron", "autocast fp16", _TILES, "warps", _TILE, True),
    "drop-in weight gradients": Tuned(
        "perceptron", "autocast fp16", _GRADIENT_TILES, "grad_warps", _GRADIENT_TILE
    ),
    "chain": Tuned("chain", "sample fp16", _TILES, "warps", _TILE, True),
    "classifier-free chain": Tuned(
        "classifier-free chain", "classifier-free fp16", _TILES, "warps", _TILE, True
    ),
    "guided chain": Tuned("guided chain", "guided fp16", _TILES, "warps", _TILE, True),
    "AdamW": Tuned(
        "adamw",
        "adamw",
        {"adamw_block": (512, 1024, 256), "adamw_warps": (4, 8, 2)},
        "adamw_warps",
    ),
}


def forms_of(tuned: Tuned, capability: tuple[int, int]) -> tuple[str, ...]:
    """Returns the forms of a kernel that can run on a GPU."""
    hopper = tuned.hopper and capability == HOPPER
    return table.FORMS if hopper and problem_of_gluon() is None else ("portable",)


def candidates(tuned: Tuned, shipped: Config, forms: tuple[str, ...]) -> list[Changes]:
    """Returns the changes that make each candidate of the shipped configuration.

    Those that cannot be fast come last.
    """
    found = []
    # The more promising form comes first. Kernels that have one form leave that of others alone.
    for form in reversed(forms) if tuned.hopper else (shipped.form,):
        tried = HOPPER_SIZES if form == "hopper" and tuned.hopper else tuned.sizes
        for values in product(*tried.values()):
            sizes = {"form": form, **dict(zip(tried, values, strict=True))}
            found.append({n: size for n, size in sizes.items() if size != getattr(shipped, n)})
    return sorted(
        filter(None, found),
        key=lambda changes: (
            too_large(tuned, replace(shipped, **changes)) is not None,
            len(changes),
        ),
    )


def too_large(tuned: Tuned, config: Config) -> str | None:
    """Returns why a candidate cannot be fast, as far as its sizes tell, or None."""
    if tuned.tile is None:
        return None
    tile = config.hopper_rows if config.form == "hopper" else config.rows
    if tile % config.grad_rows:
        return f"tiles of {tile} rows are not multiples of grad_rows={config.grad_rows}"
    if config.form == "hopper":
        return None
    sizes = asdict(config)
    rows, columns, length, stages = (sizes[name] for name in tuned.tile)
    accumulators = rows * columns // (32 * sizes[tuned.warps])
    if accumulators >= _ACCUMULATORS:
        return f"{accumulators} accumulators in each thread"
    shared = stages * (rows + columns) * length * _OPERAND_BYTES
    if shared > _SHARED:
        return f"{shared // 1024} KiB of shared memory"
    return None


def _launches(arch: int, case: str) -> list:
    """Returns the launches of a case, with the configuration that is in use."""
    from ..kernels.resources import CASES, launches

    return [*launches(arch, {case: CASES[case]}).values()]


_shipped_launches = cache(_launches)


def compile_candidate(arch: int, tuned: Tuned, config: Config) -> str | None:
    """Compiles a candidate into Triton's cache; returns why it is not worth a time, or None."""
    # Only these functions need triton.
    from ..kernels.resources import compile_offline
    from ..kernels.resources.record import SHARED_MEMORY

    shipped = _shipped_launches(arch, tuned.case)
    with table.in_use(tuned.kernel, config):
        found = _launches(arch, tuned.case)
    for launch in found:
        if launch not in shipped:
            resources = compile_offline(launch, keep=True)
            spilled = max(resources.spill_stores, resources.spill_loads)
            if spilled > _SPILLED[config.form]:
                return f"{launch.kernel} spills {spilled} bytes"
            if resources.shared > SHARED_MEMORY[arch]:
                return f"{launch.kernel} takes {resources.shared // 1024} KiB of shared memory"
            for kind, fault in resources.faults.items():
                return f"{launch.kernel}, {kind}: {fault}"
    return None


def written(fields: Changes) -> str:
    """Returns the sizes of a configuration in a line."""
    return ", ".join(f"{field}={value}" for field, value in fields.items())


@dataclass(frozen=True)
class TunedWork:
    """A work whose tile sizes are tuned, on ``rows`` points at once.

    Attributes:
        kernel: the configuration that it uses.
        rows: number of points.
        kernels: names in :data:`TUNED`.
        tiles: number of tiles from which on a faster configuration is used.
    """

    kernel: str
    rows: int
    kernels: tuple[str, ...]
    tiles: int = 0

    @property
    def title(self) -> str:
        return f"{_TITLES.get(self.kernel, self.kernel)}, {self.rows:,} rows"

    @property
    def trains(self) -> bool:
        """True if it is a training step."""
        return self.kernel in ("training", "adamw")

    def shipped(self, capability: tuple[int, int]) -> Config:
        """Returns the configuration of half precision."""
        return table.config_for("fp16", capability, self.rows, 1, self.kernel)


_TITLES = {
    "training": "training step",
    "perceptron": "drop-in forward and backward",
    "adamw": "AdamW in a training step",
}
_STEP = ("training", "weight gradients")
_DROP_IN = ("drop-in", "drop-in weight gradients")
WORKS = (
    TunedWork("training", 2048, _STEP),
    TunedWork("training", 10_000, _STEP, 133),
    TunedWork("training", 16_896, _STEP, 197),
    TunedWork("perceptron", 2048, _DROP_IN),
    TunedWork("perceptron", 10_000, _DROP_IN, 133),
    TunedWork("chain", 5000, ("chain",)),
    TunedWork("classifier-free chain", 5000, ("classifier-free chain",)),
    TunedWork("guided chain", 25_000, ("guided chain",), 133),
    TunedWork("adamw", 2048, ("AdamW",)),
)
# Chunks of the rows, of which the shipped one is 16,896.
CHUNKED, CHUNK_ROWS = TunedWork("training", 131_072, ()), (8448, 33_792)


@dataclass
class Candidate:
    """A candidate at a work, and its outcome; without a timing it fell out.

    Attributes:
        kernel: name in :data:`TUNED`, ``crossed``, or ``chunks``.
        timing: ``peer`` is the shipped configuration.
    """

    work: TunedWork
    kernel: str
    changes: Changes
    config: Config
    error: float | None = None
    timing: Timing | None = None
    unavailable: str | None = None

    @property
    def tuned(self) -> Tuned:
        """The kernel that it changes, of several the first."""
        return TUNED[self.kernel if self.kernel in TUNED else self.work.kernels[0]]

    @property
    def line(self) -> str:
        name = written(self.changes)
        if self.timing is None:
            return f"    {name:40} {self.unavailable}"
        one = self.timing
        return (
            f"    {name:40} {duration(one.ours_us)}, shipped {duration(one.peer_us)}: "
            f"{one.speedup:.3f} times as fast (95% {one.low:.3f} to {one.high:.3f})"
        )

    @property
    def faster(self) -> bool:
        """True if it is faster than the shipped configuration, with 95% confidence."""
        return self.timing is not None and self.timing.low > 1

    def to_dict(self) -> dict:
        return asdict(self) | {"work": self.work.title}


def queue(
    works: Sequence[TunedWork],
    capability: tuple[int, int],
    kernels: Sequence[str],
    most: int | None,
) -> list[Candidate]:
    """Returns the candidates of some kernels: first the most promising one of each work and kernel.

    At most ``most`` of each are returned.
    """
    columns = [
        [
            Candidate(work, name, changes, replace(shipped, **changes))
            for changes in candidates(TUNED[name], shipped, forms)[:most]
        ]
        for work in works
        for shipped in (work.shipped(capability),)
        for name in work.kernels
        if name in kernels
        for forms in (forms_of(TUNED[name], capability),)
    ]
    return [one for row in zip_longest(*columns) for one in row if one is not None]


def chunks(capability: tuple[int, int]) -> list[Candidate]:
    """Returns candidates for the number of rows that go through a network at once."""
    shipped = CHUNKED.shipped(capability)
    return [Candidate(CHUNKED, "chunks", {"chunk_rows": rows}, shipped) for rows in CHUNK_ROWS]


class Compiler:
    """Compiles candidates in other processes, each configuration once.

    Args:
        capability: compute capability to compile for.
        processes: number of processes.
    """

    def __init__(self, capability: tuple[int, int], processes: int):
        if os.environ.get("TRITON_INTERPRET") == "1":
            raise UserError("TRITON_INTERPRET must not be 1: interpreted kernels are not compiled")
        self.arch, self.processes = 10 * capability[0] + capability[1], processes
        self.pool = self._new_pool()
        self.futures: dict[tuple[str, Config], Future[str | None]] = {}

    def _new_pool(self) -> ProcessPoolExecutor:
        # Spawned, because a fork of a process with threads, such as those of torch, may hang.
        return ProcessPoolExecutor(self.processes, get_context("spawn"))

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, *_) -> None:
        for process in list((self.pool._processes or {}).values()):
            process.terminate()  # what is still being compiled came too late
        self.pool.shutdown(wait=False, cancel_futures=True)

    def submit(self, waiting: Sequence[Candidate]) -> None:
        """Starts to compile candidates; too large ones fall out at once."""
        for one in waiting:
            one.unavailable = too_large(one.tuned, one.config)
            key = one.tuned.case, one.config
            if one.unavailable is None and key not in self.futures:
                arguments = self.arch, one.tuned, one.config
                try:
                    self.futures[key] = self.pool.submit(compile_candidate, *arguments)
                except BrokenProcessPool:  # one of its processes was killed
                    self.pool = self._new_pool()
                    self.futures[key] = self.pool.submit(compile_candidate, *arguments)

    def ready(self, waiting: Sequence[Candidate], until: float) -> Iterator[Candidate]:
        """Yields the candidates that fell out or are compiled, the most promising of them first.

        Those that are not compiled at the time ``until`` fall out.
        """
        coming = {id(one): self.futures.get((one.tuned.case, one.config)) for one in waiting}
        waiting = list(waiting)
        while waiting:
            late = time.monotonic() > until
            one = next(
                (one for one in waiting if one.unavailable or coming[id(one)].done()),
                waiting[0] if late else None,
            )
            if one is None:
                wait([coming[id(one)] for one in waiting], 0.5, FIRST_COMPLETED)
                continue
            waiting.remove(one)
            one.unavailable = one.unavailable or _outcome(coming[id(one)])
            yield one


def _outcome(verdict: Future[str | None]) -> str | None:
    """Returns why a candidate falls out, or None."""
    if not verdict.done():
        return "not compiled in time"
    error = verdict.exception()  # the compiler raises various ones
    return verdict.result() if error is None else one_line(error)
