"""Times work: CUDA events, CUDA graphs, and paired ratios with bootstrap intervals."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap

from ..kernels.cuda import capture, side_stream

Work = Callable[[], object]
Clock = Callable[[], float]

# Works in one graph, and the least time of a round, so large that neither the launch of a graph nor
# the resolution of an event matters.
GRAPH_WORKS = 20
ROUND_SECONDS, LONG_RUN = 2e-3, 0.25
_LARGEST = sys.float_info.max
# On a CPU the threads of a library go on waiting, busily, for some milliseconds after their work.
# A pause lets them rest before another library is timed.
_PAUSE = 0.02
# The interval of three is their range, which holds the median in 75% of cases.
MIN_ROUNDS = 6


class Runner(NamedTuple):
    """A work that is ready to run.

    Attributes:
        run: does the work ``works`` times.
        works: number of works in one run.
        wait: returns when all works are done, if the CUDA events of torch do not see them; None for
            work on torch's stream or on the CPU.
    """

    run: Work
    works: int = 1
    wait: Work | None = None


class Interval(NamedTuple):
    """A median and its bootstrap 95% interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """Microseconds of ours and of a peer, and the speedup of ours with its 95% interval."""

    ours_us: float
    peer_us: float
    speedup: float
    low: float
    high: float
    rounds: int

    @property
    def sound(self) -> bool:
        """True if all numbers can be measurements: finite, above zero, the interval in order."""
        numbers = (self.ours_us, self.peer_us, self.low, self.speedup, self.high, self.rounds)
        positive = all(0 < number < _LARGEST for number in numbers)
        return positive and self.low <= self.speedup <= self.high


def median_interval(values: Sequence[float]) -> Interval:
    """Returns the median of at least two values with its bootstrap 95% interval (percentiles)."""
    values = np.asarray(values, dtype=float)
    found = bootstrap((values,), np.median, method="percentile", rng=0).confidence_interval
    return Interval(float(np.median(values)), float(found.low), float(found.high))


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """Returns the exact 95% interval of a rate (Clopper and Pearson 1934); 0 to 1 if no trials."""
    if trials == 0:
        return 0.0, 1.0
    found = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="exact")
    return float(found.low), float(found.high)


def from_graph(work: Work, works: int = GRAPH_WORKS) -> Runner:
    """Returns a runner of a CUDA graph in which the work stands ``works`` times.

    Raises:
        RuntimeError: it cannot be captured.
    """

    def repeated(count: int) -> None:
        for _ in range(count):
            work()

    with side_stream():
        repeated(3)
    return Runner(capture(lambda: repeated(works)).replay, works)


def seconds(
    runner: Runner, repeats: int, device: torch.device, clock: Clock = time.perf_counter
) -> float:
    """Returns the seconds of one work, the mean over ``repeats`` runs."""
    works = repeats * runner.works
    if device.type == "cuda" and runner.wait is None:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            runner.run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / works
    began = clock()
    for _ in range(repeats):
        runner.run()
    if runner.wait is not None:
        runner.wait()
    return (clock() - began) / works


def warm_up(runner: Runner, device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Runs until warm and returns the seconds of one run."""
    seconds(runner, 1, device, clock)
    once = seconds(runner, 1, device, clock) * runner.works
    if once < LONG_RUN:  # short enough to warm up more, and to measure better
        once = seconds(runner, 3, device, clock) * runner.works
    return once


def paired(
    ours: Runner,
    peer: Runner,
    rounds: int,
    device: torch.device,
    budget: float = float("inf"),
    clock: Clock = time.perf_counter,
) -> Timing:
    """Times two runners in turn, A B B A: ours first in even rounds and last in odd ones.

    Args:
        ours, peer: the runners that are compared.
        rounds: number of times that each is timed.
        device: device on which they run.
        budget: seconds. If all rounds would take longer, there are fewer, but at least six.
        clock: clock in seconds, for works on the CPU.
    """
    runners = (ours, peer)
    once = [warm_up(runner, device, clock) for runner in runners]
    # Both work about equally long in a round, so that neither adds more noise to the ratio.
    target = max(ROUND_SECONDS, min(LONG_RUN, max(once)))
    repeats = [max(1, round(target / cost)) for cost in once]
    round_cost = sum(cost * count for cost, count in zip(once, repeats, strict=True))
    rounds = int(max(min(rounds, MIN_ROUNDS), min(rounds, budget / round_cost)))
    times = np.empty((rounds, 2))  # columns: ours, the peer
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            if device.type == "cpu":
                time.sleep(_PAUSE)
            times[number, which] = seconds(runners[which], repeats[which], device, clock)
    speedup = median_interval(times[:, 1] / times[:, 0])
    ours_us, peer_us = (np.median(times, axis=0) * 1e6).tolist()
    return Timing(ours_us, peer_us, *speedup, rounds)


def timer(device: torch.device) -> Callable[[], float]:
    """Returns a clock in seconds for pytest-benchmark: CUDA events on a GPU, else perf_counter."""
    if device.type != "cuda":
        return time.perf_counter
    origin = torch.cuda.Event(enable_timing=True)
    origin.record()

    def now() -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return origin.elapsed_time(event) / 1000

    return now
