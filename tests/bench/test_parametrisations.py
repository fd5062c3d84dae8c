"""The comparison of parametrisations: its unit, its data, its table and its command."""

import json

import torch
from click.testing import CliRunner

from flashpoint.bench.__main__ import main
from flashpoint.bench.parametrisations import (
    SIGMAS,
    Result,
    parametrisations,
    points_of,
    standardised_gaussians,
    steps_at,
    table,
)
from flashpoint.diffusion import Recipe

TARGET = standardised_gaussians()


def test_the_mixture_has_unit_scale_and_labelled_points():
    x = TARGET.draw(100_000, 1)
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(2).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(x.std(dim=0), torch.ones(2).double(), atol=0.02, rtol=0)
    points = points_of(TARGET, 5000, seed=0)
    nearest = torch.cdist(points.data.double(), TARGET.means).argmin(dim=1)
    assert (points.labels == nearest).double().mean() > 0.95
    assert points.redraw(10, 3)[0].dtype == torch.float32


def test_all_schedules_have_the_noise_levels():
    for entry in parametrisations(Recipe()).values():
        found = entry.schedule.sigma[steps_at(entry.schedule, SIGMAS)]
        torch.testing.assert_close(found.log(), SIGMAS.log(), atol=0.4, rtol=0)


def test_the_table_compares_with_eps_of_the_same_schedule():
    results = [
        Result("eps, linear", 0, 1.0, 2.0, [], ["emd"], 9),
        Result("eps, linear", 1, 3.0, 2.0, [], [], 9),
        Result("v, linear", 0, 2.8, 3.2, [], [], 9),
        Result("eps, cosine", 0, 0.5, 0.5, [], [], 9),
        Result("v, cosine", 0, 1.0, 0.4, [], [], 9),
    ]
    lines = table(results).splitlines()
    assert "| eps, linear | 2.00000 (1.00) | 2.00000 (1.00) | 1, 0 of 9 |" in lines
    assert "| v, linear | 2.80000 (1.40) | 3.20000 (1.60) ✗ | 0 of 9 |" in lines
    assert "| v, cosine | 1.00000 (2.00) ✗ | 0.40000 (0.80) | 0 of 9 |" in lines


def test_the_command_records_every_network(tmp_path):
    arguments = ["parametrisations", "--small", "--seeds", "1", "--device", "cpu"]
    done = CliRunner().invoke(main, [*arguments, "--record", str(tmp_path)])
    assert done.exit_code == 0, done.output
    stage = json.loads((tmp_path / "record.json").read_text())["stages"]["parametrisations"]
    names = list(parametrisations(Recipe()))
    assert [result["name"] for result in stage["results"]] == names
    assert all(f"| {name} |" in done.output for name in names)
