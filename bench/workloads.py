"""The works of the race: training and sampling that a user waits for.

On a slow device a chain or an epoch is cut to fewer steps, so that one run stays within a time
limit, and its title says so. A training step that alone takes longer is left out.
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
EXPERIMENT_STEPS = (5000, 2500)  # steps of denoiser and classifier in the recipe "fast"
_LEAST_STEPS = 4

# Names and rows of all works, in the order of the tables.
EVERY_WORK = (
    *(("training step", rows) for rows in sorted(STEP_ROWS)),
    ("epoch of 2.5 million pairs", EPOCH_ROWS),
    ("sampling", CHAIN_ROWS),
    ("guided sampling", CHAIN_ROWS * CLASSES),
    ("whole STATES experiment", EXPERIMENT_ROWS),
)


@dataclass(frozen=True)
class Workload:
    """One work of the race.

    Attributes:
        name: name of the work.
        rows: points at once.
        steps: training or reverse steps in one work.
        full_steps: the same if the work were not cut.
        cost: least cost of the work.
        prepare: prepares a peer for the work.
        checks: checks that a peer must pass first: ``training``, ``classifier``, ``sampling``,
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
    """All works, the most important first.

    Args:
        problem: data and networks of the works.
        flop_rate: operations per second of ours on this device, to foresee the time of a work.
        seconds: limit of one run of a work.
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
        """Returns how many of the steps, which together have this cost, fit into one run."""
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
        """Returns sampling of ``each`` rows; guided, of ``each`` rows of each class."""
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
        """Returns both trainings and both samplings of ``flashpoint states``, cut by one factor."""
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
    """Returns all parts as one work; each part is done at least as often as its count says."""
    waits = [part.wait for part in parts if part.wait is not None]

    def run() -> None:
        for part, count in zip(parts, counts, strict=True):
            for _ in range(-(-count // part.works)):
                part.run()

    def wait() -> None:
        for part_wait in waits:
            part_wait()

    return Runner(run, 1, wait if waits else None)
