"""One set of tests for both machines: with CUDA on the GPU, without in Triton's interpreter."""

import os

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    # Read when a kernel is decorated, so before anything imports triton.
    os.environ["TRITON_INTERPRET"] = "1"

from flashpoint.bench.pytest_skips import (  # noqa: E402, F401
    pytest_make_collect_report,
    pytest_runtest_makereport,
)


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
