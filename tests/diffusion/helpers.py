"""Functions that several tests share."""

import pytest
import torch
from click.testing import CliRunner

from flashpoint.diffusion import (
    plots,
    report,
    run_record,
    run_validation,
    saved_run,
    states_points,
)
from flashpoint.diffusion.cli import main
from flashpoint.diffusion.data import DATASETS
from flashpoint.diffusion.metrics import inputs
from flashpoint.diffusion.viewer import payload

STATES = states_points(250)


def flashpoint(*arguments):
    """Runs a command in this process; returns click's result."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def smooth(model):
    """Makes the weights smaller, so that the network is as smooth as trained denoisers are."""
    with torch.no_grad():
        for layer in model.linears():
            layer.weight.mul_(0.7)
    return model


@pytest.fixture(scope="module", autouse=True)
def few_points():
    """Fewer points, samples, steps, frames and cells than a user gets, where it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_STEP_COUNTS", (2, 5, 900))
        patch.setattr(report, "_SAMPLES_PER_COUNT", 40)
        patch.setattr(report, "_PATH_STEPS", 8)
        patch.setattr(report, "_FRAMES_SHOWN", 4)
        patch.setattr(report, "_FRAME_SAMPLES", 50)
        patch.setattr(report, "_TRUE_POINTS", 200)
        patch.setattr(report, "VALIDATION_SAMPLES", 50)
        patch.setattr(run_validation, "VALIDATION_SAMPLES", 50)
        patch.setattr(run_record, "_DENSITY_POINTS", 500)
        patch.setattr(inputs, "_MOST_POINTS", 500)
        patch.setattr(saved_run, "_NUM_SAMPLES", 50)
        patch.setattr(plots.clouds, "_GRID", 20)
        patch.setattr(payload, "_FRAMES", 8)
        patch.setattr(payload, "_FIELDS", 3)
        patch.setattr(payload, "_GRID", 16)
        patch.setitem(DATASETS, "states", lambda: STATES)
        yield
