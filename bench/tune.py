"""Looks for faster tile sizes and forms on this GPU, and writes the file that the kernels read.

    python -m flashpoint.bench tune [--device cuda] [--record FOLDER]
    python -m flashpoint.bench tune --dry      without a GPU: which candidates are worth a time

Candidates (:mod:`.candidates`) are compiled in parallel, and left out if their code is bad. Each
that is ready is checked against float64. Then it and the shipped configuration do a whole training
step, a chain, or both passes of the perceptron in turn, A B B A, in a CUDA graph and in half
precision. First one kernel at a time changes; then the best two of each kernel are crossed.

The best ones are written into the folder of the record as ``tiles-<GPU>-triton-<version>.json``,
and without a record only printed. To ship them, copy this file to ``kernels/configs/`` under the
name of the architecture, and update the record of resources.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from math import prod
from pathlib import Path

import click
import torch

from ..diffusion import Recipe, UserError
from ..diffusion.files import save_json
from ..kernels.mlp import config as table
from ..kernels.mlp.config import Config
from .candidates import (
    CHUNKED,
    TUNED,
    WORKS,
    Candidate,
    Compiler,
    TunedWork,
    chunks,
    queue,
)
from .classifier_free import ClassifierFree
from .machine import free_device, short_name
from .operations import one_line, optimiser_error, perceptron, training_step
from .options import budget_option, rounds_option
from .peers.ours import Ours
from .problem import states_problem
from .race import TOLERANCE, Referee
from .record import Record, record_option
from .timing import Runner, Work, from_graph, paired, seconds
from .workloads import CLASSES

_SECONDS = 0.5  # seconds of a comparison
# Shares of the budget until which candidates are waited for, and timed before the crossed ones.
_COMPILING, _ALONE = 0.5, 0.75
_CROSSED = 2  # candidates of each kernel that are crossed
_CHAIN_STEPS = {"cuda": 500, "cpu": 4}
# Comparisons of the gradients that a kernel computes.
_GRADIENTS = {"training": training_step, "perceptron": partial(perceptron, training=True)}


class _Chunked(Ours):
    """Ours, with a number of rows that go through the network at once."""

    chunk_rows: int | None = None

    def recipe(self, rows: int, classify: bool) -> Recipe:
        return replace(super().recipe(rows, classify), chunk_rows=self.chunk_rows)


class TuneBench:
    """Checks and times ours at a work, with the shipped configuration or a candidate."""

    def __init__(self, device: torch.device):
        self.device, self.problem = device, states_problem()
        self.precision = {"cuda": "half", "cpu": "fp32"}[device.type]
        self.operand = {"cuda": "fp16", "cpu": "fp32"}[device.type]
        self.referee = Referee(self.problem, device)
        self.classifier_free = ClassifierFree(self.problem, device)
        self.peers: dict[TunedWork, Runner] = {}

    def runner(self, work: TunedWork, config: Config | None, chunk: int | None = None) -> Runner:
        """Prepares a work and does it once."""
        ours = _Chunked(self.problem, self.device, self.precision)
        ours.chunk_rows = chunk
        with table.in_use(work.kernel, config):
            if work.trains:
                made = ours.training(work.rows)
            else:
                once = self._work(work, ours)
                made = from_graph(once, 1) if self.device.type == "cuda" else Runner(once)
            seconds(made, 2, self.device)

        def run() -> None:
            with table.in_use(work.kernel, config):  # a training that ends begins anew
                made.run()

        return made._replace(run=run)

    def _work(self, work: TunedWork, ours: Ours) -> Work:
        """Returns a work that is no training step: a chain, or the perceptron alone."""
        if work.kernel == "perceptron":
            return _GRADIENTS[work.kernel](self.device, work.rows, self.operand).ours
        guided = work.kernel != "chain"
        chain = self.problem.chain(_CHAIN_STEPS[self.device.type], "ddpm", guided)
        if work.kernel == "classifier-free chain":
            return self.classifier_free.work(chain, work.rows)
        labels = torch.arange(work.rows) % CLASSES if guided else None
        return ours.chain_work(chain, work.rows, labels)

    def error(self, work: TunedWork, config: Config | None) -> tuple[float, float]:
        """Returns the relative error of a candidate against float64, and its tolerance."""
        with table.in_use(work.kernel, config):
            if work.kernel == "adamw":
                return optimiser_error(self.device), TOLERANCE["fp32"]
            if work.kernel in _GRADIENTS:
                gradients = _GRADIENTS[work.kernel](self.device, work.rows, self.operand)
                return gradients.error(), gradients.tolerance
            if work.kernel == "classifier-free chain":
                return self.classifier_free.error(), TOLERANCE[self.precision]
            self.referee.error.cache_clear()  # the error of another candidate
            check = "guided" if work.kernel == "guided chain" else "sampling"
            return self.referee.error("ours", self.precision, check), TOLERANCE[self.precision]

    def peer(self, work: TunedWork) -> Runner:
        """Returns the work with the shipped configuration, which was found right."""
        if work not in self.peers:
            error, tolerance = self.error(work, None)
            if not error <= tolerance:
                raise UserError(f"{work.title}: the shipped sizes are wrong, error {error:.1e}")
            self.peers[work] = self.runner(work, None)
        return self.peers[work]

    def measure(self, one: Candidate, rounds: int) -> None:
        """Checks a candidate and, if it is right, times it beside the shipped configuration."""
        try:
            peer = self.peer(one.work)
            one.error, tolerance = self.error(one.work, one.config)
            if one.error <= tolerance:
                ours = self.runner(one.work, one.config, one.changes.get("chunk_rows"))
                one.timing = paired(ours, peer, rounds, self.device, _SECONDS)
            else:
                one.unavailable = f"wrong: error {one.error:.1e}, allowed {tolerance:g}"
        except UserError:
            raise
        except Exception as reason:  # the compiler and the driver raise various errors
            one.unavailable = one_line(reason)


def crossed(found: Sequence[Candidate], works: Sequence[TunedWork]) -> list[Candidate]:
    """Returns the combinations of the fastest candidates of all kernels of each work."""
    made = []
    for work in works:
        best = [_fastest(found, work, name)[:_CROSSED] for name in work.kernels]
        if len(best) > 1:
            for parts in product(*best):
                changes = {name: size for one in parts for name, size in one.changes.items()}
                config = replace(parts[0].config, **changes)
                made.append(Candidate(work, "crossed", changes, config))
    return made


def _fastest(
    found: Sequence[Candidate], work: TunedWork, kernel: str | None = None
) -> list[Candidate]:
    """Returns the candidates of a work that are faster than the shipped one, the fastest first."""
    faster = [
        one for one in found
        if one.work == work and kernel in (None, one.kernel) and one.faster
    ]  # fmt: skip
    return sorted(faster, key=lambda one: -one.timing.speedup)


def tuned_file(found: Sequence[Candidate], capability: tuple[int, int], source: str) -> dict:
    """Returns the file of an architecture, with the fastest candidates in it.

    Args:
        found: candidates with their timings.
        capability: compute capability of the GPU.
        source: where the timings are from.
    """
    half = table.table_of("half", capability)
    for kernel in dict.fromkeys(work.kernel for work in WORKS):
        half[kernel] = _entries(found, half, kernel, capability, source)
    path = table.CONFIGS / f"sm_{capability[0]}{capability[1]}.json"
    others = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return others | {"half": {kernel: sizes for kernel, sizes in half.items() if sizes}}


def _entries(
    found: Sequence[Candidate], half: dict, kernel: str, capability: tuple[int, int], source: str
) -> list[dict]:
    """Returns what the file says of a kernel: shipped sizes, or faster ones where there are."""
    works = {work.tiles: work for work in WORKS if work.kernel == kernel}
    shipped = dict(table.steps_of("fp16", capability, kernel))
    reasons = {entry.get("tiles", 0): entry.get("why") for entry in half.get(kernel, ())}
    config = table.config_of(half["all"])
    before, entries = asdict(config), []
    winners = winners_of(found, capability)
    for tiles in sorted(works.keys() | shipped.keys()):
        config = shipped.get(tiles, config)
        best = winners[works[tiles]] if tiles in works else None
        sizes = asdict(best.config if best else config)
        why = reasons.get(tiles) or f"nothing is faster: {source}"
        if best:
            why = f"{best.timing.speedup:.2f} times as fast: {source}"
        new = {name: size for name, size in sizes.items() if size != before[name]}
        if new:
            entries.append({"tiles": tiles, **new, "why": why})
        before = sizes
    return entries


def winners_of(
    found: Sequence[Candidate], capability: tuple[int, int]
) -> dict[TunedWork, Candidate | None]:
    """Returns the fastest candidate of each work, or None where the shipped one stays.

    The works of the perceptron take the same form. It is one that is shipped, or faster at each of
    them, and of two such forms the one with the larger product of speedups.
    """
    best = {work: next(iter(_fastest(found, work)), None) for work in (*WORKS, CHUNKED)}
    works = [work for work in WORKS if work.kernel == "perceptron"]
    most = 0.0
    for form in table.FORMS:
        inside = [one for one in found if one.config.form == form]
        chosen = {work: next(iter(_fastest(inside, work)), None) for work in works}
        stays = all(one or work.shipped(capability).form == form for work, one in chosen.items())
        speedup = prod(one.timing.speedup for one in chosen.values() if one)
        if stays and speedup > most:
            most = speedup
            best |= chosen
    return best


@dataclass
class Search:
    """A search; what it finds is written at once.

    Attributes:
        capability: compute capability to tune for.
        record: record of the results.
        rounds: paired rounds of a comparison.
        bench: times the candidates; None times nothing.
        found: candidates that have an outcome.
    """

    capability: tuple[int, int]
    record: Record
    rounds: int
    bench: TuneBench | None
    found: list[Candidate] = field(default_factory=list)

    def run(self, coming: Iterable[Candidate], end: float) -> None:
        """Times candidates as they come, at the latest at the time ``end``."""
        try:
            for one in coming:
                if one.unavailable is None and self.bench is not None:
                    if time.monotonic() > end:
                        one.unavailable = "no time was left for it"
                    else:
                        self.bench.measure(one, self.rounds)
                self.found.append(one)
                if one.timing is not None:
                    click.echo(f"{one.work.title}, {one.kernel}\n{one.line}")
                    self.save()
        finally:  # after an interrupt the results are kept
            self.save()

    def save(self) -> None:
        """Writes the results, and the file of the fastest sizes if there are any."""
        self.record.put("tune", results=[one.to_dict() for one in self.found])
        if self.path is not None and any(one.faster for one in self.found):
            machine = self.record.content["machine"]
            source = f"{machine['gpu']}, triton {machine['triton']}"
            save_json(self.path, tuned_file(self.found, self.capability, source))

    @property
    def path(self) -> Path | None:
        """The file of the fastest sizes; None without a record."""
        if self.record.path is None or self.bench is None:
            return None
        triton = self.record.content["machine"]["triton"]
        return self.record.path.with_name(
            f"tiles-{short_name(self.bench.device)}-triton-{triton}.json"
        )

    def summary(self) -> Iterator[str]:
        """Yields how many candidates of each kernel are left, and why the others fell out."""
        for work, name in dict.fromkeys((one.work, one.kernel) for one in self.found):
            here = [one for one in self.found if (one.work, one.kernel) == (work, name)]
            out = [one for one in here if one.unavailable is not None]
            yield f"{work.title}, {name}: {len(here) - len(out)} of {len(here)} candidates are left"
            yield from (one.line for one in out)

    def winners(self) -> Iterator[str]:
        """Yields the fastest candidate of each work, and how to ship them."""
        chosen = winners_of(self.found, self.capability)
        for work in dict.fromkeys(one.work for one in self.found):
            best = chosen[work]
            yield f"{work.title}: {'the fastest is' if best else 'nothing is faster'}"
            if best:
                yield best.line
            others = _fastest(self.found, work)[:1]
            if others and others[0] is not best:
                yield f"    left out, all rows take the same form:\n{others[0].line}"
        if self.path is not None and self.path.exists():
            name = f"kernels/configs/sm_{self.capability[0]}{self.capability[1]}.json"
            yield f"to ship: cp {self.path} {name}"
            yield "         python -m flashpoint.kernels.resources --update"


def check_can_judge(capability: tuple[int, int]) -> None:
    """Raises UserError if triton is missing, or the code of candidates cannot be judged."""
    if find_spec("triton") is None:
        raise UserError("triton must be installed to compile candidates")
    from ..kernels.resources.record import SHARED_MEMORY

    known = [f"{arch // 10}.{arch % 10}" for arch in SHARED_MEMORY]
    found = f"{capability[0]}.{capability[1]}"
    if found not in known:
        raise UserError(f"device must have a compute capability of {', '.join(known)}, got {found}")


@click.command()
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@rounds_option(15)
@click.option("--small", is_flag=True, help="One work and two candidates, to test the command.")
@click.option("--dry", is_flag=True, help="Compile for sm_90 and time nothing; needs no GPU.")
@click.option(
    "--only", multiple=True, type=click.Choice(list(TUNED)), help="Kernels; may be repeated."
)
@click.option("--most", type=click.IntRange(min=1), help="Candidates of each kernel. Default: all.")
@budget_option(600.0)
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@record_option
def main(device, rounds, small, dry, only, most, budget, busy, folder) -> None:
    """Look for faster tile sizes of a training step, the perceptron and chains."""
    if dry and device is not None:
        raise UserError(f"device must not be given with --dry, got {device}")
    start, processors = time.monotonic(), len(os.sched_getaffinity(0))
    device = torch.device("cpu") if dry else free_device(device, busy)
    on_gpu = device.type == "cuda"
    if not (on_gpu or dry or small):
        raise UserError("device must be a CUDA device to time kernels; --dry needs none")
    capability = torch.cuda.get_device_capability(device) if on_gpu else (9, 0)
    check_can_judge(capability)
    record = Record(folder)
    torch.manual_seed(0)
    works, most = (WORKS[:1], 1) if small else (WORKS, most)
    waiting = queue(works, capability, only or tuple(TUNED), most)
    if not waiting:
        raise UserError(f"only must name a kernel of {works[0].title}, got {', '.join(only)}")
    # One processor is left for the process that measures.
    with Compiler(capability, processors if dry else max(1, processors - 1)) as compiler:
        compiler.submit(waiting)
        search = Search(capability, record, rounds, None if dry else TuneBench(device))
        shares = (1, 1) if dry else (_COMPILING, _ALONE)
        until, end = (start + share * budget for share in shares)
        search.run(compiler.ready(waiting, until), end)
        if on_gpu and any(one.work.kernel == "training" for one in waiting):
            search.run(chunks(capability), end)
        combined = crossed(search.found, works)
        compiler.submit(combined)
        search.run(compiler.ready(combined, start + budget), start + budget)
    for line in search.summary() if dry else search.winners():
        click.echo(line)
