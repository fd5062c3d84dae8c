"""What a sweep will take: its groups, their memory, and how long, from a few timed steps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..metrics.table import markdown_table
from ..metrics.yardstick import Yardstick
from ..progress import Progress
from ..sampling import sample_many
from ..training import ManyTrainer
from .grid import Sweep
from .groups import Training, chunks_of
from .progress import duration

_TIMED_ON_CPU = 4  # networks whose steps are timed; on a CPU the time grows with their number
_STEPS_ON_CPU, _STEPS_ON_CUDA = 3, 200
_TIMED_REVERSE_STEPS = 3


class Group(NamedTuple):
    """Networks of one kind that train in the same launches, so many at once."""

    widths: tuple[int, ...]  # none of a user's own network
    batch_size: int
    steps: int  # of the longest training
    networks: int
    models: int
    together: int
    memory: int  # bytes on the device beside the data
    training: float  # seconds, estimated
    drawing: float


@dataclass(frozen=True)
class Plan:
    """What a sweep will take.

    Attributes:
        groups: its groups.
        measuring: seconds, estimated, to measure the samples of all models.
        device: the device.
    """

    groups: list[Group]
    measuring: float
    device: torch.device

    @property
    def models(self) -> int:
        """Number of models."""
        return sum(group.models for group in self.groups)

    @property
    def seconds(self) -> float:
        """Seconds in all, estimated."""
        return self.measuring + sum(group.training + group.drawing for group in self.groups)

    @property
    def memory(self) -> int:
        """Bytes on the device, beside the data, at the most."""
        return max((group.memory for group in self.groups), default=0)

    def to_markdown(self) -> str:
        """Returns a table of the groups, and what all take together."""
        rows = [
            [
                "-".join(map(str, group.widths)) or "own", f"{group.batch_size:,}",
                f"{group.steps:,}", f"{group.networks:,}", f"{group.together:,}",
                _bytes(group.memory),
                duration(group.training), duration(group.drawing),
            ]
            for group in self.groups
        ]  # fmt: skip
        header = [
            "widths",
            "batch",
            "steps",
            "networks",
            "at once",
            "memory",
            "training",
            "drawing",
        ]
        networks = sum(group.networks for group in self.groups)
        counted = f"{self.models:,} models" + (
            "" if networks == self.models else f" of {networks:,} networks"
        )
        in_groups = "1 group" if len(self.groups) == 1 else f"{len(self.groups)} groups"
        return (
            f"{markdown_table(header, rows)}\n\n"
            f"{counted} in {in_groups}; {_bytes(self.memory)} of memory at the most; about "
            f"{duration(self.seconds)} on {self.device}, {duration(self.measuring)} of it for the "
            "metrics: an estimate from a few timed steps on this machine"
        )


def plan_of(
    sweep: Sweep,
    trainings: Sequence[Training],
    device: torch.device,
    together: int | None = None,
    *,
    progress: bool = False,
) -> Plan:
    """Returns what trainings of a sweep, and the samples of their models, will take.

    Args:
        sweep: the sweep.
        trainings: trainings of the sweep.
        device: the device, on which a few steps of each group are timed.
        together: number of networks that train at once at most, see :func:`.chunks_of`.
        progress: shows on stderr how many of the groups are timed.
    """
    kinds: dict[tuple, list[list[Training]]] = {}
    for chunk in chunks_of(trainings, device, together):
        longest = max(one.task.total_steps for one in chunk)
        kinds.setdefault((chunk[0].task.kind(), longest), []).append(chunk)
    groups: list[Group] = []
    with Progress("time a few steps", len(kinds), "groups", shown=progress) as bar:
        for chunks in kinds.values():
            groups.append(_group(sweep, chunks, device))
            bar.to(len(groups))
    return Plan(groups, _measuring(sweep, sum(group.models for group in groups)), device)


def _group(sweep: Sweep, chunks: Sequence[Sequence[Training]], device: torch.device) -> Group:
    first = max(chunks, key=len)
    task, trainings = first[0].task, [one for chunk in chunks for one in chunk]
    models = [model for one in trainings for model in one.models]
    steps = max(one.task.total_steps for one in first)
    timed = first if device.type == "cuda" else first[:_TIMED_ON_CPU]
    # On a GPU a chunk takes as long as its first networks, until it is full.
    units = len(chunks) if device.type == "cuda" else len(trainings) / len(timed)
    return Group(
        task.shape().widths if task.model is None else (),
        task.recipe.batch_size,
        steps,
        len(trainings),
        len(models),
        len(first),
        sum(one.memory() for one in first),
        units * steps * _step_seconds(timed, device),
        sum(model.evaluations for model in models) * _evaluation_seconds(sweep, timed, device),
    )


def _step_seconds(trainings: Sequence[Training], device: torch.device) -> float:
    """Returns the seconds of a training step of some networks together."""
    trainer = ManyTrainer([one.task for one in trainings], device=device)
    count = _STEPS_ON_CUDA if device.type == "cuda" else _STEPS_ON_CPU
    count = min(count, trainer.total_steps)
    trainer.run(count)  # compiles
    again = min(count, trainer.total_steps - trainer.step)
    if not again:  # a training that is over so soon is timed with what its first step takes
        trainer, again = ManyTrainer([one.task for one in trainings], device=device), count
    return _seconds(lambda: trainer.run(again), device) / again


def _evaluation_seconds(sweep: Sweep, trainings: Sequence[Training], device: torch.device) -> float:
    """Returns the seconds of an evaluation for one model's samples, drawn with others'."""
    n, configs, evaluations = sweep.n_samples, [], 0
    for one in trainings:
        model = one.models[0]
        steps = min(_TIMED_REVERSE_STEPS, model.reverse_steps)
        short = replace(model, sampling={**model.sampling, "num_steps": steps})
        configs.append(short.config(one.task.initial(), sweep.points, n))
        evaluations += short.evaluations

    def draw() -> None:
        sample_many(configs, n, device=device)

    draw()  # compiles
    return _seconds(draw, device) / evaluations


def _measuring(sweep: Sweep, models: int) -> float:
    """Returns the seconds of measuring so many models, and the real draws beside them."""
    began = time.perf_counter()
    Yardstick(sweep.points, sweep.n_samples, sweep.metrics or (), repeats=2)
    one = (time.perf_counter() - began) / 2
    return one * (models + sweep.real_draws)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def _bytes(count: int) -> str:
    mib = count / 2**20
    return f"{mib:.1f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"
