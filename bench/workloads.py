"""What is raced: the works of training and sampling that a user waits for.

On a slow device long works are cut: a chain or an epoch to fewer steps, so that one run lasts at
most so many seconds; a training step that alone lasts longer is left out. What was cut says so.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from . import costs
from .costs import Cost
from .peers import Peer
from .problem import Problem
from .timing import Runner

STEP_ROWS = (10_000, 2048, 256, 131_072, 1_000_000)
CHAIN_ROWS, CLASSES = 5000, 5
EPOCH_ROWS, EXPERIMENT_ROWS = 10_000, 2048
EXPERIMENT_STEPS = (5000, 2500)  # of denoiser and classifier: the recipe "fast"
_LEAST_STEPS = 4

# Names and rows of all works, in the order of a reader.
EVERY_WORK = (
    *(("training step", rows) for rows in sorted(STEP_ROWS)),
    ("epoch of 2.5 million pairs", EPOCH_ROWS),
    ("sampling", CHAIN_ROWS),
    ("guided sampling", CHAIN_ROWS * CLASSES),
    ("whole STATES experiment", EXPERIMENT_ROWS),
)


@dataclass(frozen=True)
class Workload:
    """One work.

    Attributes:
        name: what is done.
        rows: points at once.
        steps: training or reverse steps in one work.
        full_steps: how many they would be, were they not cut.
        cost: the least it needs.
        prepare: makes a peer ready to do it.
        checks: what of a peer must be right first: ``training``, ``classifier``, ``sampling``,
            ``guided``.
    """

    name: str
    rows: int
    steps: int
    full_steps: int
    cost: Cost
    prepare: Callable[[Peer], Runner]
    checks: tuple[str, ...]

    @property
    def title(self) -> str:
        cut = f" (cut to {self.steps} of {self.full_steps} steps)"
        return f"{self.name}, {self.rows:,} rows" + cut * (self.steps < self.full_steps)


class Workloads:
    """All works, the most telling first.

    Args:
        problem: that they are about.
        flop_rate: operations per second of ours on this device, to foresee how long a work takes.
        seconds: that one run of a work may take.
    """

    def __init__(self, problem: Problem, flop_rate: float, seconds: float):
        self.problem, self.flop_rate, self.seconds = problem, flop_rate, seconds
        self.denoiser = problem.denoiser.shape.widths
        self.classifier = problem.classifier.shape.widths
        self.left_out: list[str] = []

    def __iter__(self) -> Iterator[Workload]:
        yield from self.steps(STEP_ROWS[:2])
        yield self.chain(guided=False)
        yield self.chain(guided=True)
        yield from self.steps(STEP_ROWS[2:])
        yield self.epoch()
        yield self.experiment()  # slow peers take longest for it

    def _fitting(self, steps: int, cost: Cost) -> int:
        """How many of the steps, which together cost this, can be done in the time for one run."""
        foreseen = cost.flops / self.flop_rate
        return min(steps, max(_LEAST_STEPS, int(steps * self.seconds / foreseen)))

    def steps(self, sizes: Sequence[int]) -> Iterator[Workload]:
        for rows in sizes:
            cost = costs.training_step(self.denoiser, rows)
            foreseen = cost.flops / self.flop_rate
            if foreseen > self.seconds:
                self.left_out.append(
                    f"training step, {rows:,} rows: would take about {foreseen:.0f} s a step, "
                    f"allowed {self.seconds:g} s"
                )
                continue
            yield Workload(
                "training step", rows, 1, 1, cost,
                lambda peer, rows=rows: peer.training(rows), ("training",),
            )  # fmt: skip

    def chain(self, guided: bool, each: int = CHAIN_ROWS) -> Workload:
        """``each`` rows, or guided so many of each class."""
        rows = each * (CLASSES if guided else 1)
        classifier = self.classifier if guided else None
        total = self.problem.schedule.num_steps
        steps = self._fitting(total, costs.chain(self.denoiser, classifier, rows, total))
        chain = self.problem.chain(steps, "ddpm", guided)
        labels = torch.arange(CLASSES).repeat_interleave(each) if guided else None
        return Workload(
            "guided sampling" if guided else "sampling", rows, steps, total,
            costs.chain(self.denoiser, classifier, rows, steps),
            lambda peer: peer.sampling(chain, rows, labels), ("guided" if guided else "sampling",),
        )  # fmt: skip

    def epoch(self) -> Workload:
        total = len(self.problem.points) * self.problem.schedule.num_steps // EPOCH_ROWS
        one = costs.training_step(self.denoiser, EPOCH_ROWS)
        steps = self._fitting(total, one * total)
        return Workload(
            "epoch of 2.5 million pairs", EPOCH_ROWS, steps, total, one * steps,
            lambda peer: peer.epoch(EPOCH_ROWS, steps), ("training",),
        )  # fmt: skip

    def experiment(self) -> Workload:
        """Both trainings and both samplings of ``flashpoint states``, cut by one factor."""
        total, rows = sum(EXPERIMENT_STEPS), EXPERIMENT_ROWS
        samplings = [self.chain(guided) for guided in (False, True)]
        training = [
            costs.training_step(widths, rows) * steps
            for widths, steps in zip(
                (self.denoiser, self.classifier), EXPERIMENT_STEPS, strict=True
            )
        ]
        steps = self._fitting(total, training[0] + training[1])
        fraction = steps / total
        counts = [round(count * fraction) for count in EXPERIMENT_STEPS]

        def prepare(peer: Peer) -> Runner:
            parts = [peer.training(rows, classify) for classify in (False, True)]
            parts += [sampling.prepare(peer) for sampling in samplings]
            return one_after_another(parts, (*counts, 1, 1))

        cost = training[0] * fraction + training[1] * fraction
        for sampling in samplings:
            cost = cost + sampling.cost
        return Workload(
            "whole STATES experiment", rows, steps, total, cost, prepare,
            ("training", "classifier", "sampling", "guided"),
        )  # fmt: skip


def one_after_another(parts: Sequence[Runner], counts: Sequence[int]) -> Runner:
    """All parts, each at least so many times, as one work."""
    waits = [part.wait for part in parts if part.wait is not None]

    def run() -> None:
        for part, count in zip(parts, counts, strict=True):
            for _ in range(-(-count // part.works)):
                part.run()

    def wait() -> None:
        for part_wait in waits:
            part_wait()

    return Runner(run, 1, wait if waits else None)
