"""Fewer points, samples, steps, frames and cells than a user gets, for tests of machinery."""

from contextlib import contextmanager

import pytest

from flashpoint.diffusion import plots, report, run_record, run_validation, saved_run
from flashpoint.diffusion.data import DATASETS
from flashpoint.diffusion.metrics import inputs
from flashpoint.diffusion.viewer import payload

from .helpers import STATES


@contextmanager
def few_points():
    """Makes reports, pages, validations and metrics small, and STATES a set of 250 points."""
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
