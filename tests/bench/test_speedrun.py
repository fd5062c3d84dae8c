"""Time to quality: batteries detect bad samples, real draws pass, the clock includes training."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import gaussian_kde

from flashpoint.bench import speedrun
from flashpoint.bench.__main__ import main
from flashpoint.bench.battery import (
    Band,
    MixtureBattery,
    SmoothLogDensity,
    StatesBattery,
    band_of,
    component,
    five_gaussians,
    leave_one_out_nll,
    mixture_points,
    occupancy_of_cells,
    unwhiten,
    whiten,
)
from flashpoint.bench.speedrun import (
    TRACKS,
    calibrate_tau,
    mean_excess,
    mixture_track,
    on_the_clock,
    read_calibration,
    summary,
)
from flashpoint.diffusion import Schedule, kde_nll, states_points
from flashpoint.diffusion.reverse_steps import reverse_table, timesteps

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mixture():
    battery = MixtureBattery(400)
    return battery, battery.calibrate(25, 20)


@pytest.fixture(scope="module")
def states():
    battery = StatesBattery(states_points(500), 2000)
    return battery, battery.calibrate(12, 0)


def test_real_draws_pass_jointly(mixture):
    battery, calibration = mixture
    assert calibration.repeats == 20
    assert calibration.passed >= 19
    assert len(calibration.bands) == 20
    assert battery.failed(battery.draw(77), calibration.bands) == []


@pytest.mark.parametrize(
    ("spoil", "noticed"),
    [
        (lambda x: x + 0.15, "log density"),
        (lambda x: 1.25 * (x - x.mean(0)) + x.mean(0), "log density"),
        (lambda x: x[:40].repeat(10, 1), "sample by sample"),
        (lambda x: torch.cat((x[x[:, 1] > x[:, 1].median()],) * 2), "distance of occupancy"),
    ],
)
def test_the_mixture_battery_notices(mixture, spoil, noticed):
    battery, calibration = mixture
    sets = battery.draw(78)
    sets[2] = spoil(sets[2])
    failed = battery.failed(sets, calibration.bands)
    assert f"{noticed} 2" in failed
    assert not any(name.endswith(("0", "1", "3", "4")) for name in failed)


@pytest.mark.parametrize(
    ("spoil", "noticed"),
    [
        (lambda _, x: x[:1] + 0.01 * torch.randn_like(x), "sample by sample Ohio"),
        (lambda _, x: 0.9 * x, "NLL Ohio"),
        (lambda data, _: data.repeat(20, 1), "memorisation Ohio"),
    ],
)
def test_the_states_battery_notices(states, spoil, noticed):
    battery, calibration = states
    sets = battery.draw(78)
    ohio = battery.labels.index(2)
    sets[ohio] = spoil(battery.data[ohio], sets[ohio])
    assert noticed in battery.failed(sets, calibration.bands)


def test_the_tolerance_of_the_nll_is_set_not_calibrated(states):
    _, calibration = states
    assert calibration.bands["NLL of all"] == Band(-0.01, 0.01)
    assert len(calibration.bands) == 30


def test_the_band_has_the_level_it_says():
    values = np.random.default_rng(0).normal(size=200_000)
    band = band_of(values, 0.01, one_sided=False)
    assert np.mean((values < band.low) | (values > band.high)) == pytest.approx(0.01, rel=0.1)
    chi = np.random.default_rng(0).chisquare(47, size=200_000)
    band = band_of(chi, 0.01, one_sided=True)
    assert band.low == 0
    assert np.mean(chi > band.high) == pytest.approx(0.01, rel=0.1)


def test_whitened_samples_are_standard_normal_and_fill_the_cells():
    x = component(3).draw(20_000, 5)
    white = whiten(x, 3)
    torch.testing.assert_close(white.T.cov(), torch.eye(2).double(), atol=0.03, rtol=0)
    torch.testing.assert_close(unwhiten(white, 3), x)
    assert occupancy_of_cells(white) == pytest.approx(47, abs=5 * (2 * 47) ** 0.5)


def test_the_five_gaussians_are_the_mixture():
    mixture, points = five_gaussians(), mixture_points(5000)
    assert torch.bincount(points.labels).tolist() == [1000] * 5
    draw = mixture.draw(20_000, 1).float()
    torch.testing.assert_close(points.data.mean(0), draw.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(points.data.T.cov(), draw.T.cov(), atol=0.05, rtol=0)


def test_the_smooth_density_is_that_of_the_kde():
    points = states_points(300)
    x = torch.cat((points.redraw(500, 3)[0], torch.tensor([[3.5, 0.0], [0.0, -4.0]])))
    smooth = SmoothLogDensity(points.data)
    assert smooth.nll(x) == pytest.approx(kde_nll(x, points.data), abs=1e-5)


def test_the_clock_starts_anew_for_every_seed():
    track = mixture_track(small=True)
    first, again, other = (on_the_clock(track, seed, CPU) for seed in (0, 0, 1))
    assert first[0] > 0
    for a, b, c in zip(*(run[1] for run in (first, again, other)), strict=True):
        assert torch.equal(a.model[0].weight, b.model[0].weight)
        assert not torch.equal(a.model[0].weight, c.model[0].weight)
    assert first[1][0].shape.widths == (3, 16, 2)
    assert first[1][1].shape.widths == (3, 16, 5)


def test_tau_is_the_best_of_long_runs_and_their_spread(monkeypatch):
    track, excess = mixture_track(small=True), iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(speedrun, "mean_excess", lambda *_: next(excess))
    found = calibrate_tau(track, 3, CPU)
    assert found["tau"] == pytest.approx(0.1 + 0.1)
    assert found["long runs"] == track.long_runs
    assert "num_steps=8" in track.long_runs
    assert ", Recipe(steps=6" in track.long_runs
    assert calibrate_tau(TRACKS["states"](True), 3, CPU) == {"tau": None}


@pytest.mark.slow
def test_the_closed_form_denoiser_passes_the_mixture_track():
    track = mixture_track()
    table = reverse_table(
        track.schedule, timesteps(track.schedule, None), variance=speedrun.VARIANCE
    ).tolist()
    generator, sets = torch.Generator().manual_seed(0), []
    for label in track.battery.labels:
        x = torch.randn(track.battery.size, 2, generator=generator).double()  # x_T
        best = component(label)
        for t, (of_x, of_eps, of_z, _) in zip(reversed(range(len(table))), table, strict=True):
            eps = best.optimal_noise(x, track.schedule.alpha_bar[t].item())
            x = of_x * x + of_eps * eps + of_z * torch.randn(x.shape, generator=generator)
        sets.append(x)
    bands = read_calibration(speedrun.CALIBRATION, track)[0].bands
    assert track.battery.failed(sets, bands) == []
    narrow = [0.97 * (x - x.mean(0)) + x.mean(0) for x in sets]  # would a denoiser's error be seen?
    assert [name for name in track.battery.failed(narrow, bands) if "log density" in name]


def test_training_lowers_the_excess_loss():
    track = mixture_track(small=True)
    before, after = (
        mean_excess(track, on_the_clock(replace(
            track, denoiser=replace(track.denoiser, steps=steps)), 0, CPU)[1][0])
        for steps in (1, 100)
    )  # fmt: skip
    assert after < 0.95 * before


def test_the_summary_has_exact_and_bootstrap_intervals():
    seeds = [{"seconds": s, "passed": s < 9} for s in range(10)]
    found = summary("mixture", seeds, 3.0)
    assert found["pass_rate"] == pytest.approx([0.9, 0.5550, 0.9975], abs=1e-4)
    middle, low, high = found["median_seconds"]
    assert low < middle == 4.5 < high
    assert found["p95_seconds"][0] == pytest.approx(8.55)


def test_the_command_records_every_seed(tmp_path):
    done = CliRunner().invoke(main, [
        "speedrun", "--small", "--seeds", "2", "--device", "cpu", "--record", str(tmp_path),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    stage = json.loads((tmp_path / "record.json").read_text())["stages"]["speedrun"]
    assert [track["track"] for track in stage["results"]] == ["mixture", "states"]
    assert [seed["seed"] for seed in stage["results"][1]["seeds"]] == [0, 1]
    assert not stage["results"][0]["seeds"][0]["passed"]  # six steps are not enough
    assert stage["calibration"]["states"]["tests"] == 30
    assert (tmp_path / "speedrun.png").exists()


def test_without_bands_or_with_other_ones_it_says_so(tmp_path, monkeypatch):
    track, path = mixture_track(small=True), tmp_path / "calibration.json"
    with pytest.raises(ValueError, match=r"^track mixture is not calibrated; run the command"):
        read_calibration(path, track)
    monkeypatch.setitem(speedrun.TRACKS, "mixture", lambda _: track)
    arguments = ["calibrate", "--track", "mixture", "--draws", "3", "--repeats", "2",
                 "--calibration", str(path), "--device", "cpu"]  # fmt: skip
    done = CliRunner().invoke(main, [*arguments, "--long-runs", "0"])
    assert done.exit_code == 0, done.output
    with pytest.raises(ValueError, match="not calibrated"):  # tau is missing
        read_calibration(path, track)
    done = CliRunner().invoke(main, [*arguments, "--tau-only", "--long-runs", "2"])
    assert done.exit_code == 0, done.output
    calibration, tau = read_calibration(path, track)
    assert tau > 0
    assert calibration.repeats == 2
    with pytest.raises(ValueError, match=r"it is now Schedule\(num_steps=9.*calibrate again"):
        read_calibration(path, replace(track, schedule=Schedule(9, beta_end=0.01)))
    track.battery.definition = "another"
    with pytest.raises(ValueError, match="it is now 'another'; run the command calibrate again"):
        read_calibration(path, track)


def test_an_unknown_track_is_one_line():
    done = CliRunner().invoke(main, ["speedrun", "--track", "mixtures"])
    assert done.exit_code == 2
    assert done.output.startswith("error: track must be one of mixture, states, got 'mixtures'")


def test_no_datum_counts_in_the_density_that_it_is_scored_by():
    data = states_points(50).data.double()
    kde = gaussian_kde(data.numpy().T)
    gaps = data[:, None] - data
    log_kernel = torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=torch.float64), torch.from_numpy(kde.covariance)
    ).log_prob(gaps)
    log_kernel.fill_diagonal_(-torch.inf)
    log_p = (log_kernel.logsumexp(dim=1) - math.log(len(data) - 1))[10:20]
    assert leave_one_out_nll(data[10:20], data) == pytest.approx(-log_p.mean().item())
