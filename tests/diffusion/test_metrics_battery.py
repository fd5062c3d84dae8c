"""Every metric against an independent library or a closed form, and all of them together."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import ot
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from scipy.stats import chi2, chi2_contingency, kstest
from sklearn.datasets import make_circles, make_moons
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from flashpoint.diffusion import (
    GaussianMixture,
    PointMasses,
    Points,
    Schedule,
    UserError,
    emd,
    emd_by_class,
    evaluate,
    excess_loss,
    kernel_nll,
    memorisation,
    mmd,
    nearest_distances,
    nearest_neighbour_test,
    occupancy,
    report,
    states_points,
    viewer,
)
from flashpoint.diffusion.data import DATASETS
from flashpoint.diffusion.metrics import METRICS, Metric, standard_metrics, summary
from flashpoint.diffusion.metrics.distances import subset
from flashpoint.diffusion.saved_run import SavedRun

from .helpers import flashpoint

STATES = states_points(1500)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moons(seed):
    return make_moons(8000, noise=0.04, random_state=seed)


def circles(seed):
    return make_circles(8000, noise=0.04, factor=0.7, random_state=seed)


def manycircles(seed):
    """Eight Gaussians, standard deviation 0.25, on the unit circle."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 8, 8000)
    centres = np.stack((np.cos(labels * np.pi / 4), np.sin(labels * np.pi / 4)), axis=1)
    return centres + 0.25 * rng.normal(size=(8000, 2)), labels


def blobs(seed):
    """A round Gaussian, and with probability 0.2 one of two that lie along the diagonals."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(8000) < 0.2).astype(int)
    part = np.where(labels, 1 + rng.integers(0, 2, 8000), 0)
    x = np.empty((8000, 2))
    parts = [((0.3, 0.4), 0.0), ((0.2, 0.3), 0.8), ((0.8, 0.8), -0.8)]
    for index, (mean, correlation) in enumerate(parts):
        covariance = 0.005 * np.array([[1, correlation], [correlation, 1]])
        rows = part == index
        x[rows] = rng.multivariate_normal(mean, covariance, rows.sum())
    return x, labels


def scaled(x):
    """Min-max scaled to [-1, 1]."""
    return torch.from_numpy(2 * (x - x.min(0)) / (x.max(0) - x.min(0)) - 1)


def halves(x, seed=0):
    order = np.random.default_rng(seed).permutation(len(x))
    return x[order[: len(x) // 2]], x[order[len(x) // 2 :]]


@pytest.mark.parametrize("dim", [1, 2, 3, 64])
def test_kernel_nll_is_the_log_of_one_mean(dim):
    x, y = normal(40, dim).double(), normal(60, dim, seed=1).double()
    log_kernel = -cdist(x, y, "sqeuclidean") / 0.4 - dim / 2 * math.log(2 * math.pi * 0.1)
    want = -(logsumexp(log_kernel) - math.log(40 * 60))
    assert kernel_nll(x, y) == pytest.approx(want, rel=1e-9)


def test_kernel_nll_of_a_gaussian_is_its_closed_form():
    x, y = 0.7 * normal(5000, 2), 0.7 * normal(5000, 2, seed=1)
    assert kernel_nll(x, y) == pytest.approx(math.log(2 * math.pi * (0.1 + 0.49)), abs=0.03)


@pytest.mark.parametrize(
    ("draw", "published"), [(moons, 0.949), (circles, 0.988), (manycircles, 0.597)]
)
def test_kernel_nll_of_real_data_is_the_published_one(draw, published):
    # The published data is one draw, whose extreme points set the scale of all others.
    parts = [[half[:2000] for half in halves(scaled(draw(seed)[0]))] for seed in range(8)]
    values = [kernel_nll(*pair) for pair in parts]
    assert np.std(values) < 0.04
    assert abs(np.mean(values) - published) < 3 * np.std(values, ddof=1)


def test_emd_is_that_of_pot():
    x, y = normal(300, 3).double(), 1.2 * normal(400, 3, seed=1).double()
    want = []
    for draw in range(3):
        cost = ot.dist(
            subset(x, 50, 4, 2 * draw).numpy(), subset(y, 50, 4, 2 * draw + 1).numpy(), "euclidean"
        )
        want.append(50 * ot.emd2(np.full(50, 1 / 50), np.full(50, 1 / 50), cost))
    assert emd(x, y, size=50, draws=3, seed=4) == pytest.approx(np.mean(want), rel=1e-9)


def test_emd_of_a_shift_is_its_length_times_the_number_of_points():
    x = normal(80, 2)
    assert emd(x, x + torch.tensor([3.0, 4.0]), size=80) == pytest.approx(400, rel=1e-5)
    assert emd(x, x, size=80) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("draw", "published", "spread"),
    [(moons, 27.9, 2.8), (circles, 29.0, 2.2), (blobs, 16.3, 1.9), (manycircles, 23.0, 1.6)],
)
def test_emd_of_real_data_is_the_published_one(draw, published, spread):
    values = [emd(*halves(scaled(draw(seed)[0])), seed=seed) for seed in range(12)]
    assert np.mean(values) == pytest.approx(published, abs=spread)
    assert np.std(values, ddof=1) == pytest.approx(spread, rel=0.8)


@pytest.mark.parametrize(
    ("draw", "published", "spread"), [(moons, 17.0, 0.9), (manycircles, 7.9, 0.3)]
)
def test_emd_by_class_of_real_data_is_the_published_one(draw, published, spread):
    values = []
    for seed in range(8):
        x, labels = draw(seed)
        points = Points(scaled(x).float(), torch.from_numpy(labels).long())
        classes = [points.of_class(label) for label in range(points.num_classes)]
        values.append(emd_by_class(classes, points, seed=seed))
    # Draws of the data differ in scale; the published number is that of one.
    error = math.hypot(np.std(values, ddof=1), spread)
    assert error < 0.12 * published
    assert abs(np.mean(values) - published) < 2 * error
    with pytest.raises(UserError, match=f"samples must be of {points.num_classes} classes, got 1"):
        emd_by_class(classes[:1], points)


def test_mmd_is_that_of_scikit_learns_kernel():
    x, y = normal(70, 3).double(), 0.8 * normal(90, 3, seed=1).double()
    bandwidth = np.median(
        ot.dist(*2 * [torch.cat((x, y)).numpy()], "euclidean")[np.triu_indices(160, 1)]
    )
    k = {
        (a, b): rbf_kernel(p, q, gamma=1 / (2 * bandwidth**2))
        for a, p in enumerate((x, y))
        for b, q in enumerate((x, y))
    }
    within = sum((k[a, a].sum() - n) / (n * (n - 1)) for a, n in ((0, 70), (1, 90)))
    assert mmd(x, y) == pytest.approx(within - 2 * k[0, 1].mean(), abs=1e-4)


def test_mmd_is_unbiased_and_sees_a_shift():
    same = [mmd(normal(200, 2, seed=s), normal(200, 2, seed=1000 + s)) for s in range(40)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(40)
    assert min(same) < 0
    assert mmd(normal(200, 2), normal(200, 2, seed=1) + 0.5) > 5 * np.std(same)


def test_occupancy_is_pearsons_statistic_and_has_its_distribution():
    centres = 100 * torch.eye(3)
    points = Points(centres.repeat(50, 1), torch.arange(3).repeat(50))
    rng = np.random.default_rng(0)
    found, p_values = [], []
    for _ in range(200):
        a, b = (rng.multinomial(300, [0.5, 0.3, 0.2]) for _ in range(2))
        x, y = (centres[torch.from_numpy(np.repeat(np.arange(3), n))] for n in (a, b))
        found.append(occupancy(x, y, points))
        assert found[-1] == pytest.approx(chi2_contingency([a, b], correction=False).statistic)
        assert found[-1] == pytest.approx(((a - b) ** 2 / (a + b)).sum())
        p_values.append(chi2.sf(found[-1], df=2))
    assert kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.parametrize("dim", [1, 2, 13, 64])
def test_nearest_distances_are_those_of_scikit_learn(dim):
    x, y = normal(200, dim).double(), normal(300, dim, seed=1).double()
    want = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(y).kneighbors(x)[0][:, 0]
    np.testing.assert_allclose(nearest_distances(x, y).numpy(), want, rtol=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 64])
def test_nearest_neighbour_test_is_leave_one_out_classification(dim):
    x, y = normal(60, dim).double(), 1.3 * normal(60, dim, seed=1).double()
    side = np.repeat([0, 1], 60)
    predicted = cross_val_predict(
        KNeighborsClassifier(1), torch.cat((x, y)).numpy(), side, cv=LeaveOneOut()
    )
    want = ((predicted == side)[:60].mean(), (predicted == side)[60:].mean())
    assert nearest_neighbour_test(x, y) == pytest.approx(want)


def test_nearest_neighbour_test_under_the_null_has_its_mean():
    found = np.array(
        [
            nearest_neighbour_test(normal(100, 2, seed=s), normal(100, 2, seed=500 + s))
            for s in range(60)
        ]
    )
    error = found.std(axis=0) / math.sqrt(60)
    assert (np.abs(found.mean(axis=0) - 99 / 199) < 3 * error).all()


def test_copies_of_the_data_are_never_beside_each_other():
    x = normal(100, 2)
    assert nearest_neighbour_test(x, x) == (0, 0)


def test_memorisation_of_copies_of_fresh_draws_and_of_both():
    train, held_out = normal(400, 2), normal(400, 2, seed=1)
    assert memorisation(train, train, held_out) == (1, 0)
    assert memorisation(held_out, train, held_out).nearer_to_training == 0
    # 1,000 fresh points: 3 standard deviations of a fair coin are 0.047.
    fresh = memorisation(normal(1000, 2, seed=2), train, held_out)
    assert fresh.nearer_to_training == pytest.approx(0.5, abs=0.08)
    assert fresh.distance_ratio == pytest.approx(1, abs=0.15)
    assert memorisation(normal(50, 2, seed=3), train, train) == (0.5, 1)


BATTERY = {
    "kde_nll", "kernel_nll", "emd", "emd_per_pair", "mmd", "occupancy", "sample_by_sample",
    "datum_by_datum", "nearer_to_training", "distance_ratio",
}  # fmt: skip


def failures(samples, points=STATES, **options):
    result = evaluate(samples, points, repeats=10, full=True, **options)
    return {name for name, score in (result.scores | result.battery).items() if not score.passed}


def test_real_draws_pass_the_battery():
    # Thirteen bands of 99%: two draws in a row both fail by chance in about 1 of 100 cases.
    assert any(not failures(STATES.redraw(1500, seed)[0]) for seed in (900, 901))


def test_the_battery_finds_copies():
    found = failures(STATES.data)
    assert {"sample_to_data", "datum_by_datum", "nearer_to_training", "distance_ratio"} <= found
    assert not found & {"kde_nll", "emd", "mmd", "occupancy"}


def test_the_battery_finds_a_missing_state():
    real, labels = STATES.redraw(2000, 900)
    found = failures(real[labels != 2])
    assert {"occupancy", "emd", "mmd", "sliced_wasserstein", "datum_by_datum"} <= found
    assert "nearer_to_training" not in found


def test_the_battery_finds_blur():
    real, _ = STATES.redraw(2000, 900)
    found = failures(real + 0.1 * normal(2000, 2))
    assert {"sample_by_sample", "datum_by_datum", "sample_to_data"} <= found
    assert "occupancy" not in found


def test_the_battery_of_one_class_and_its_table():
    result = evaluate(STATES.redraw(300, 7, 3)[0], STATES, label=3, repeats=4, full=True)
    assert set(result.battery) == BATTERY - {"occupancy"}
    assert set(result.to_dict()) > BATTERY - {"occupancy"}
    lines = result.table().splitlines()
    assert len(lines) == 2 + 3 + 9
    value = result.battery["emd"].value
    assert f"| EMD of up to 250 pairs, total | {value:.4g} |" in lines[2 + 3 + 2]
    assert f"| EMD of up to 250 pairs, per pair | {value / 250:.4g} |" in lines[2 + 3 + 3]
    again = evaluate(STATES.redraw(300, 7, 3)[0], STATES, label=3, repeats=4, full=True)
    assert again == result


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_the_battery_of_own_data_in_any_dimension(dim):
    points = Points(normal(400, dim), torch.arange(400) % 2)
    battery = BATTERY if dim < 64 else BATTERY - {"kernel_nll"}
    result = evaluate(normal(300, dim), points, repeats=10, full=True)
    assert set(result.battery) == battery - {"nearer_to_training", "distance_ratio"}
    assert ("kernel_nll" in result.left_out) == (dim == 64)
    held_out = normal(400, dim, seed=1)
    good, copies = (
        evaluate(x, points, repeats=10, full=True, held_out=held_out).battery
        for x in (normal(300, dim, seed=2), points.data)
    )
    assert set(good) == battery
    assert good["nearer_to_training"].passed
    assert not copies["nearer_to_training"].passed
    with pytest.raises(UserError, match="held_out must be at least 8 points, got 1"):
        evaluate(normal(9, dim), points, full=True, held_out=normal(1, dim))


def test_wrong_input_is_named():
    x = normal(9, 2)
    for call, message in [
        (lambda: kernel_nll(x, x, temperature=0), "temperature must be positive, got 0"),
        (lambda: kernel_nll(x, normal(9, 3)), r"samples must be \[n, 3\] like the data"),
        (lambda: emd(x, x, draws=0), "draws must be at least 1, got 0"),
        (lambda: mmd(x[:1], x), "a must be at least 2 points, got 1"),
        (lambda: nearest_neighbour_test(x, x[:1]), "data must be at least 2 points, got 1"),
        (lambda: memorisation(x, x, x[:0]), "held_out must be at least 1 points, got 0"),
        (lambda: evaluate(x, STATES, repeats=1), "repeats must be from 2 to 10000, got 1"),
        (
            lambda: excess_loss(torch.nn.Identity(), Schedule(100), PointMasses(x), steps=[100]),
            r"steps\[0\] must be from 0 to 99, got 100",
        ),
        (
            lambda: GaussianMixture(torch.ones(2), x[:2], torch.eye(2)),
            r"must be \[K\], \[K, d\] and \[K, d, d\], got \[2\], \[2, 2\] and \[2, 2\]",
        ),
        (lambda: GaussianMixture(torch.zeros(1), x[:1], torch.eye(2)[None]), "weights must be"),
        (lambda: GaussianMixture(torch.ones(1), x[:1], -torch.eye(2)[None]), "positive definite"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_what_is_not_defined_is_left_out_with_its_reason():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(400, 3, generator=generator)
    flat[:, 2] = 1
    result = evaluate(flat[:200], Points(flat), repeats=4, full=True)
    assert result.nll is None
    assert result.delta_nll is None
    assert "must not lie in a plane" in result.left_out["kde_nll"]
    assert "sliced_wasserstein" in result.scores
    assert "emd" in result.battery
    assert "| left out: " in result.table()
    one_place = evaluate(torch.zeros(9, 2), Points(torch.zeros(40, 2)), repeats=4)
    assert one_place.left_out["sliced_wasserstein"] == "not defined for these points"
    with pytest.raises(UserError, match=r"samples must be \[n, 3\]"):
        evaluate(torch.zeros(9, 2), Points(flat))


def test_a_metric_is_added_in_one_place(monkeypatch, states_run, tmp_path):
    toy = Metric(
        "toy metric", lambda c: 1 + c.samples.norm(dim=1).mean().item(), heading="toy heading"
    )
    monkeypatch.setitem(METRICS, "toy", toy)
    full = Metric("other toy", lambda c: c.samples.mean().item(), by_steps=True)
    monkeypatch.setitem(METRICS, "other", full)
    monkeypatch.setitem(METRICS, "never", replace(full, title="no toy", applies=lambda _: False))
    folder, points = states_run
    samples = torch.load(folder / "outputs/uncond_gen_samples.pt", weights_only=True)
    quick = evaluate(samples, points, repeats=2)
    assert list(quick.scores) == list(standard_metrics())
    assert {"sample_to_data", "data_to_sample", "sliced_wasserstein", "toy"} <= {*quick.scores}
    result = evaluate(samples, points, repeats=2, full=True)
    value = 1 + samples.norm(dim=1).mean().item()
    assert result.scores["toy"].value == pytest.approx(value)
    assert "other" in result.battery
    assert "never" not in result.to_dict()
    assert f"| toy metric | {value:.4g} |" in result.table()
    assert "| toy heading (real: 99% band) |" in summary({"samples": result})
    copy = shutil.copytree(folder, tmp_path / "run")
    run = SavedRun(copy, points, torch.device("cpu"), 0)
    content = json.loads(run.folder.metrics_file.read_text())
    for entry in content["metrics"].values():
        entry["toy"] = result.to_dict()["toy"]
    run.folder.metrics_file.write_text(json.dumps(content))
    assert "toy metric" in viewer.page({}, SavedRun(copy, points, torch.device("cpu"), 0))
    monkeypatch.setattr(report, "_STEP_COUNTS", (2,))
    monkeypatch.setattr(report, "_SAMPLES_PER_COUNT", 20)
    sections = {"steps": report._step_counts, "classes": report._guided}
    monkeypatch.setattr(report, "_SECTIONS", sections)
    path, _ = report.write_report(copy, points, real_draws=2, device="cpu", say=str)
    text = path.read_text()
    assert f"| toy metric | {value:.4g} |" in text
    assert "other toy, DDPM" in text
    assert "no toy" not in text
    assert "| toy metric (99% of real draws) |" in text
    file = tmp_path / "samples.pt"
    torch.save(samples, file)
    monkeypatch.setitem(DATASETS, "states", lambda: points)
    assert "| toy metric |" in flashpoint("evaluate", file, "--real-draws", 2).stdout
    output = flashpoint("evaluate", file, "--real-draws", 2, "--json").stdout
    assert "other" in json.loads(output)
