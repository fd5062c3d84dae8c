"""One set of tests for both machines: with CUDA on the GPU, without in Triton's interpreter."""

import os
import signal
from pathlib import Path

import pytest

# Read when OpenMP is loaded: threads that spin while they wait take the cores of other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    # Read when a kernel is decorated, so before anything imports triton.
    os.environ["TRITON_INTERPRET"] = "1"

from flashpoint.bench.pytest_skips import (  # noqa: E402, F401
    pytest_make_collect_report,
    pytest_runtest_makereport,
)

from . import quick_figures  # noqa: E402

quick_figures.install()
if not CUDA:
    from . import quick_interpreter

    quick_interpreter.install()
MOST_PROCESSES = 8  # each takes a gigabyte
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by a shell that runs them in background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the number
def pytest_cmdline_main(config):
    """Shares whole folders of tests among processes, one for each core of a machine without GPU.

    ``-n`` has the last word. Single files run in this process, which starts sooner.
    """
    given = vars(config.option).get("numprocesses", 0)  # 0 without pytest-xdist
    alone = CUDA or config.option.usepdb or config.option.collectonly
    if given is not None or alone or hasattr(config, "workerinput"):
        return
    if all(Path(argument).is_dir() for argument in config.args):
        config.option.numprocesses = "auto"
        config.option.maxprocesses = MOST_PROCESSES
        config.option.dist = "worksteal"  # neighbours, which share fixtures, stay together
        # Works are too small to gain from more threads than cores.
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    if CUDA:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if CUDA else "cpu")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def poisoned():
    """New tensors hold NaN, or the largest integer, until something is written to them."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def whole_figures(monkeypatch):
    """Lets figures be written as users get them, arranged and in all their pixels."""
    monkeypatch.setattr(quick_figures.Figure, "savefig", quick_figures.savefig)


@pytest.fixture(scope="module")
def few_points():
    """Lets runs, reports and pages be small, where only what they do matters."""
    from .diffusion.few_points import few_points  # here, because it imports all of the experiment

    with few_points():
        yield
