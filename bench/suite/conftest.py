"""Times the works of flashpoint under pytest-benchmark: ``python -m pytest bench/``.

On a GPU the kernels run and CUDA events are the clock; without a GPU the reference runs and
``perf_counter`` is the clock. ``--benchmark-disable`` runs each work once, without a clock. Store
results under the name of the GPU: ``--benchmark-storage .benchmarks/<name> --benchmark-autosave``.
"""

import pytest
import torch

from flashpoint.bench import machine, timing
from flashpoint.bench.peers.ours import Ours
from flashpoint.bench.problem import states_problem
from flashpoint.bench.pytest_skips import (  # noqa: F401
    pytest_make_collect_report,
    pytest_runtest_makereport,
)
from flashpoint.bench.race import TOLERANCE, Referee

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_collection_modifyitems(items):
    clock = timing.timer(DEVICE)
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock))


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["flashpoint"] = machine.describe() | {"name": machine.short_name(DEVICE)}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device():
    return DEVICE


@pytest.fixture(scope="session")
def problem():
    return states_problem()


@pytest.fixture(scope="session")
def ours(problem):
    """Ours, checked against float64, because a wrong answer is not timed."""
    precision, referee = "half" if DEVICE.type == "cuda" else "fp32", Referee(problem, DEVICE)
    for check in ("training", "classifier", "sampling", "guided"):
        assert referee.error("ours", precision, check) <= TOLERANCE[precision], check
    return Ours(problem, DEVICE, precision)


@pytest.fixture
def timed(benchmark):
    """Times a runner after a few warm rounds and returns the result of the last round."""

    def run(runner, cost, rounds=20):
        benchmark.extra_info.update(flops=cost.flops, bytes=cost.bytes, works=runner.works)
        return benchmark.pedantic(runner.run, rounds=rounds, warmup_rounds=3, iterations=1)

    return run
