"""Reverse processes from noise, with and without guidance; on a CPU with few steps."""

import pytest
import torch

from flashpoint.bench import costs
from flashpoint.bench.workloads import CHAIN_ROWS, CLASSES

ROWS, STEPS = {"cuda": CHAIN_ROWS, "cpu": 500}, {"cuda": 500, "cpu": 4}


@pytest.mark.parametrize("guided", [False, True])
def test_chain(ours, problem, device, timed, guided):
    each, steps = ROWS[device.type], STEPS[device.type]
    rows = each * (CLASSES if guided else 1)
    labels = torch.arange(CLASSES).repeat_interleave(each) if guided else None
    runner = ours.sampling(problem.chain(steps, "ddpm", guided), rows, labels)
    classifier = problem.classifier.shape.widths if guided else None
    cost = costs.chain(problem.denoiser.shape.widths, classifier, rows, steps)
    x = timed(runner, cost, rounds=5)
    assert x.shape == (rows, 2)
    assert x.isfinite().all()
