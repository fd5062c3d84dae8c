"""Small trained runs for the tests of what is made from a run."""

from pathlib import Path

import pytest
import torch

from flashpoint.diffusion import Points, Recipe, Schedule, states_points
from flashpoint.diffusion.experiment import Run, Settings


def small_run(
    folder: Path, points: Points, schedule: Schedule | None = None
) -> tuple[Path, Points]:
    """A run of some steps of small networks, with samples and metrics."""
    recipe = Recipe(steps=300, hidden_layers=(32, 32), batch_size=128, ema_decay=0.98)
    schedule = schedule or Schedule(num_steps=30, beta_end=0.3)
    settings = Settings(0, schedule, recipe, recipe, n_samples=60, real_draws=2)
    run = Run(points, settings, folder, device=torch.device("cpu"), say=lambda _: None)
    run.train()
    run.measure(run.generate())
    return folder, points


@pytest.fixture(scope="session")
def make_run():
    """:func:`small_run`."""
    return small_run


@pytest.fixture(scope="session")
def states_run(tmp_path_factory):
    """(folder, points) of the STATES data: two dimensions, five classes, outlines."""
    return small_run(tmp_path_factory.mktemp("run") / "states & <more>", states_points(250))


@pytest.fixture(scope="session")
def flow_run(tmp_path_factory):
    """(folder, points) of the STATES data, of a flow, which leaves no data at its end."""
    return small_run(
        tmp_path_factory.mktemp("run") / "flow", states_points(50), Schedule(20, "flow")
    )


@pytest.fixture(scope="session")
def solid_run(tmp_path_factory):
    """(folder, points) of points without labels in three dimensions."""
    generator = torch.Generator().manual_seed(0)
    points = Points(torch.randn(80, 3, generator=generator), name="cloud")
    return small_run(tmp_path_factory.mktemp("run") / "cloud", points)
