"""Paired rounds: how many there are, whatever time there is."""

import pytest
import torch

from flashpoint.bench.timing import Runner, paired


@pytest.mark.parametrize(("asked", "budget", "done"), [(30, 0.0, 6), (3, 0.0, 3), (7, 1e9, 7)])
def test_at_least_six_rounds_unless_fewer_are_wanted(asked, budget, done):
    work = Runner(lambda: sum(range(1000)))
    found = paired(work, work, asked, torch.device("cpu"), budget)
    assert found.rounds == done
    assert found.low <= found.speedup <= found.high
