"""Training steps of the STATES denoiser and classifier."""

import pytest

from flashpoint.bench.costs import training_step


@pytest.mark.parametrize("rows", [256, 2048, 10_000])
def test_denoiser(ours, problem, timed, rows):
    timed(ours.training(rows), training_step(problem.denoiser.shape.widths, rows))


def test_classifier(ours, problem, timed):
    runner = ours.training(2048, classify=True)
    timed(runner, training_step(problem.classifier.shape.widths, 2048))
