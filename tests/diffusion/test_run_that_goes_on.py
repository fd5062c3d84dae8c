"""What ``--resume`` takes over from the first part of a run, and what it refuses."""

import json

import pytest

from .helpers import flashpoint

SMALL = ("--data", "moons", "--steps", 4, "--classifier-steps", 2, "--hidden-layers", 4,
         "--classifier-hidden-layers", 4, "--batch-size", 8, "--timesteps", 3, "--schedule",
         "cosine", "--device", "cpu")  # fmt: skip


@pytest.fixture
def train(tmp_path):
    """Returns a function that trains in the folder of one run."""

    def train(*options):
        return flashpoint("train", *SMALL, "--out", tmp_path / "run", *options)

    return train


def test_points_to_test_with_do_not_become_points_to_validate_with(train, tmp_path):
    assert train("--test-fraction", 0.25).exit_code == 0
    result = train("--validation-fraction", 0.25, "--resume")
    assert result.exit_code == 2
    assert "test_fraction 0.25, now None; validation_fraction None, now 0.25" in result.output
    assert json.loads((tmp_path / "run/config.json").read_text())["source"]["test_fraction"] == 0.25
    assert train("--test-fraction", 0.25, "--resume").exit_code == 0


def test_training_curves_are_those_of_the_whole_training(train, tmp_path):
    assert train("--format", "svg").exit_code == 0
    assert train("--steps", 6, "--resume").exit_code == 0
    curves = {path.name for path in (tmp_path / "run/figures").glob("training_curves*")}
    assert curves == {"training_curves.png"}
