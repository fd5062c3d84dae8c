"""The works of the gate: what is measured each night, and the checks of their answers.

The frozen reference beside a work need not be the same work: it is a yardstick of a like size,
plain sampling beside guided sampling and a training step of one network beside one of many.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from .classifier_free import ClassifierFree
from .peers.eager import Exact
from .peers.ours import Ours
from .problem import Problem
from .race import TOLERANCE, Referee
from .reference_work import Sampling, Training
from .timing import Runner, Timing, from_graph, paired
from .workloads import CLASSES

_CHECK_MODELS, _CHECK_ROWS, _CHECK_STEPS = 3, 512, 3
_REFERENCE_STEPS = 20  # training steps of the reference in one CUDA graph


@dataclass(frozen=True)
class Sizes:
    """Sizes of the works.

    Attributes:
        training: rows of the training steps.
        chain, guided: rows and reverse steps of sampling, without and with guidance.
        many: networks of one launch, and rows of each.
    """

    training: tuple[int, ...]
    chain: tuple[int, int]
    guided: tuple[int, int]
    many: tuple[int, int]


SIZES = {
    "cuda": Sizes((2048, 10_000), (5000, 500), (5000, 100), (8, 2048)),
    "cpu": Sizes((2048,), (2000, 10), (1000, 4), (4, 256)),
}
SMALL = Sizes((40,), (20, 2), (20, 2), (2, 20))


@dataclass(frozen=True)
class GateWork:
    """A work of the gate, as two functions that prepare a runner with all its data."""

    name: str
    ours: Callable[[], Runner]
    reference: Callable[[], Runner]


def precision_on(device: torch.device) -> str:
    """Returns the precision of ours, as :data:`.race.TOLERANCE` names it."""
    return "half" if device.type == "cuda" else "fp32"


def works(
    problem: Problem, device: torch.device, extra_rows: float = 0.0, small: bool = False
) -> Iterator[GateWork]:
    """Yields the works that are timed.

    Args:
        problem: data and networks of ours.
        device: device to measure on.
        extra_rows: additional fraction of rows for ours, to test the gate.
        small: toy sizes, to test the command.
    """
    ours, sizes = Ours(problem, device, precision_on(device)), _sizes(device, small)

    def more(rows: int) -> int:
        return round(rows * (1 + extra_rows))

    def runner(work: Callable[[], object], count: int = 1) -> Runner:
        return from_graph(work, count) if device.type == "cuda" else Runner(work)

    def training(rows: int) -> Runner:
        return runner(Training(rows, device).step, _REFERENCE_STEPS)

    for rows in sizes.training:
        yield GateWork(
            f"training step, {rows:,} rows",
            lambda rows=rows: ours.training(more(rows)),
            lambda rows=rows: training(rows),
        )
    rows, steps = sizes.chain
    chain = problem.chain(steps, "ddpm", guided=False)
    yield GateWork(
        f"sampling, {rows:,} rows, {steps} steps",
        lambda: ours.sampling(chain, more(rows)),
        lambda: runner(Sampling(rows, steps, device).chain),
    )
    rows, steps = sizes.guided
    guided = problem.chain(steps, "ddpm", guided=True)
    yield GateWork(
        f"guided sampling, {rows:,} rows, {steps} steps",
        lambda: ours.sampling(guided, more(rows), torch.arange(more(rows)) % CLASSES),
        lambda: runner(Sampling(rows, steps, device).chain),
    )
    yield GateWork(
        f"classifier-free sampling, {rows:,} rows, {steps} steps",
        lambda: runner(ClassifierFree(problem, device).work(guided, more(rows))),
        lambda: runner(Sampling(rows, steps, device).chain),
    )
    models, each = sizes.many
    yield GateWork(
        f"training step of {models} networks, {each:,} rows each",
        lambda: ours.many(models, more(each)),
        lambda: training(models * each),
    )


def _sizes(device: torch.device, small: bool) -> Sizes:
    return SMALL if small else SIZES[device.type]


def measure(
    todo: list[GateWork], rounds: int, device: torch.device, seconds: float
) -> dict[str, Timing]:
    """Returns the paired timing of ours and the reference for each work.

    Args:
        todo: the works.
        rounds: paired rounds of each; fewer if they would take longer than ``seconds``.
        device: device to measure on.
        seconds: limit of the rounds of one work.
    """
    return {
        work.name: paired(work.ours(), work.reference(), rounds, device, seconds) for work in todo
    }


def errors(problem: Problem, device: torch.device) -> Iterator[tuple[str, float]]:
    """Yields each check, and the relative error of ours in it against float64."""
    referee = Referee(problem, device)
    for check in ("training", "sampling", "guided"):
        yield check, referee.error("ours", precision_on(device), check)
    yield "classifier-free", ClassifierFree(problem, device).error()
    yield "training of many", error_of_many(problem, device)


def allowed(device: torch.device) -> float:
    """Returns the largest relative error that is accepted."""
    return TOLERANCE[precision_on(device)]


def error_of_many(problem: Problem, device: torch.device) -> float:
    """Returns the relative error of the first losses of networks that are trained together.

    Each is compared with a network that trains alone on the same batches in float64.
    """
    cpu = torch.device("cpu")
    trainer = Ours(problem, device, precision_on(device)).many_trainer(_CHECK_MODELS, _CHECK_ROWS)
    found = torch.empty(_CHECK_MODELS, _CHECK_STEPS, dtype=torch.float64)
    for step in range(_CHECK_STEPS):
        trainer.run(1)
        losses = trainer.state_dict()["0"]["losses"]  # [M, steps], 0 where nothing is recorded yet
        found[:, step] = losses[:, losses.any(0)][:, -1]
    expected = torch.empty_like(found)
    for seed, task in enumerate(trainer.tasks):
        batches = Ours(problem, cpu, "fp32").first_batches(_CHECK_ROWS, _CHECK_STEPS, False, seed)
        alone = Exact(replace(problem, denoiser=task.initial()), cpu, "fp32")
        expected[seed] = torch.tensor(alone.losses(batches, False))
    return ((found - expected).abs().max() / expected.abs().max()).item()
