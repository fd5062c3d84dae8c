"""Metrics take points of any kind, wherever they lie, and answer wrong ones with one line."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import gaussian_kde
from sklearn.datasets import load_digits

from flashpoint.diffusion import (
    GaussianMixture,
    PointMasses,
    Points,
    UserError,
    emd,
    evaluate,
    kde_nll,
    kernel_nll,
    memorisation,
    mmd,
    nearest_distances,
    nearest_neighbour_test,
    occupancy,
    sliced_wasserstein,
)
from flashpoint.diffusion.metrics import label_of_nearest
from flashpoint.diffusion.metrics.distances import nearest
from flashpoint.diffusion.metrics.inputs import as_points
from flashpoint.diffusion.metrics.knn import fit_knn

from .helpers import flashpoint

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(150, 2)), 1.1 * RNG.normal(size=(200, 2))
C = RNG.normal(size=(120, 2))
LABELS = torch.from_numpy((B[:, 0] > 0).astype(np.int64))

METRICS = {
    "kde_nll": kde_nll,
    "kernel_nll": kernel_nll,
    "nearest_distances": lambda a, b: nearest_distances(a, b).numpy(),
    "sliced_wasserstein": sliced_wasserstein,
    "emd": emd,
    "mmd": mmd,
    "biased mmd": lambda a, b: mmd(a, b, unbiased=False),
    "nearest_neighbour_test": nearest_neighbour_test,
    "memorisation": lambda a, b: memorisation(a, b, C - A.mean() + float(_origin(b))),
    "evaluate": lambda a, b: list(_values(evaluate(a, b, repeats=3, full=True))),
}


def _origin(b):
    """The offset, a multiple of ten, that points of this file were moved by."""
    return as_points("b", b).mean().round(decimals=-1)


def _values(result):
    for score in (result.scores | result.battery).values():
        yield from (score.value, score.real, score.high)


@pytest.mark.parametrize("offset", [1e4, 1e6, 3e7])
@pytest.mark.parametrize("name", METRICS)
def test_no_metric_depends_on_the_origin(name, offset):
    here, there = METRICS[name](A, B), METRICS[name](A + offset, B + offset)
    # The points themselves are rounded there, to 4e-9 at the furthest.
    np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("offset", "scale"), [(0, 1), (1e4, 1), (1e6, 1), (3e7, 1), (0, 1e-9), (0, 1e9), (10, 1e-6)]
)
def test_kde_nll_is_that_of_scipy_wherever_the_points_lie(offset, scale):
    a, b = scale * A + offset, scale * B + offset
    want = -gaussian_kde(((b - offset) / scale).T).logpdf(((a - offset) / scale).T).mean()
    assert kde_nll(a, b) == pytest.approx(want + 2 * np.log(scale), abs=1e-6)


def test_kde_nll_of_a_thin_ellipse_far_away_is_that_of_scipy():
    turn = np.array([[1, 1], [0, 1e-6]])
    want = -gaussian_kde(B.T).logpdf(A.T).mean() + np.log(1e-6)
    assert kde_nll(A @ turn + 1e5, B @ turn + 1e5) == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("dim", [1, 2, 13, 64, 65, 100])
def test_neighbours_are_found_in_clusters_that_are_small_and_far_away(dim):
    x = 1e-3 * RNG.normal(size=(60, dim)) + 1e6
    y = 1e-3 * RNG.normal(size=(80, dim)) + 1e6
    distance, index = nearest(x, y, 2)
    want = cdist(x, y)
    assert (index[:, 0].numpy() == want.argmin(axis=1)).all()
    np.testing.assert_allclose(distance, np.sort(want, axis=1)[:, :2], rtol=1e-9)


def test_the_best_denoiser_of_points_does_not_depend_on_the_origin():
    data = torch.from_numpy(B)
    x = 0.9**0.5 * data[:50] + 0.1**0.5 * torch.from_numpy(A[:50])
    moved = x + 0.9**0.5 * 1e6
    here = PointMasses(data).optimal_noise(x, 0.9)
    torch.testing.assert_close(
        PointMasses(data + 1e6).optimal_noise(moved, 0.9), here, rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("offset", [0, 1e6])
def test_the_classifier_by_neighbours_does_not_depend_on_the_origin(offset):
    digits, labels = load_digits(return_X_y=True)
    data = torch.from_numpy(digits[:400] / 16 + offset)
    points = Points(data, torch.from_numpy(labels[:400]).long())
    assert fit_knn(points).best_score_ > 0.9


KINDS = {
    "numpy": lambda x: x,
    "list": lambda x: x.tolist(),
    "float32": lambda x: torch.from_numpy(x).float(),
    "half": lambda x: torch.from_numpy(x).half(),
    "bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "integers": lambda x: torch.from_numpy(100 * x).long(),
    "numpy integers": lambda x: (100 * x).astype(np.int16),
    "requires_grad": lambda x: torch.from_numpy(x).requires_grad_(),
    "not contiguous": lambda x: torch.from_numpy(x).repeat(2, 2)[::2, ::2],
    "sparse": lambda x: torch.from_numpy(x).to_sparse(),
    "Points": lambda x: Points(torch.from_numpy(x)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METRICS)
def test_every_metric_takes_points_of_every_kind(name, kind):
    a, b = KINDS[kind](A), KINDS[kind](B)
    plain = [
        (x.data if isinstance(x, Points) else torch.as_tensor(x)).detach().to_dense().double()
        for x in (a, b)
    ]
    np.testing.assert_allclose(METRICS[name](a, b), METRICS[name](*plain), rtol=1e-5, atol=1e-7)
    assert np.isfinite(METRICS[name](a, b)).all()


def test_distributions_with_a_known_denoiser_take_arrays():
    exact = PointMasses(B)
    want = PointMasses(torch.from_numpy(B)).optimal_noise(torch.from_numpy(A), 0.5)
    assert torch.equal(exact.optimal_noise(A, 0.5), want)
    means, covariances = np.zeros((1, 2)), np.eye(2)[None]
    assert GaussianMixture([1], means, covariances).draw(7, 0).shape == (7, 2)
    for wrong, message in [
        (lambda: PointMasses(B[:0]), "data must be at least 1 points, got 0"),
        (lambda: exact.optimal_noise(A[:, :1], 0.5), r"x must be \[n, 2\] like the data"),
        (lambda: GaussianMixture([1], means * np.nan, covariances), "means must be finite"),
        (lambda: GaussianMixture("cat", means, covariances), "weights must be an array of real"),
    ]:
        with pytest.raises(UserError, match=message):
            wrong()


def test_labels_are_found_for_points_of_every_kind():
    points = Points(torch.from_numpy(B), LABELS)
    want = label_of_nearest(torch.from_numpy(A), points)
    assert torch.equal(label_of_nearest(A, points), want)
    assert occupancy(A, B, points) == occupancy(torch.from_numpy(A), points, points)
    with pytest.raises(UserError, match="needs labels, got none"):
        label_of_nearest(A, Points(torch.from_numpy(B)))


WRONG = {
    "NaN": (np.where(np.arange(300).reshape(150, 2) == 7, np.nan, A), "finite, .* in row 3"),
    "infinity": (np.where(np.arange(300).reshape(150, 2) == 0, np.inf, A), "finite, .* in row 0"),
    "empty": (A[:0], "must be at least . points, got 0"),
    "no columns": (A[:, :0], r"\[n, d\]"),
    "one dimension": (A[:, 0], r"\[n, d\]"),
    "three dimensions": (A[None], r"\[n, d\]"),
    "other width": (RNG.normal(size=(150, 3)), "like"),
    "complex": (torch.complex(torch.ones(9, 2), torch.ones(9, 2)), "real numbers"),
    "text": ([["a", "b"]], "real numbers"),
    "ragged": ([[1.0], [1.0, 2.0]], "real numbers"),
    "nothing": (None, "real numbers"),
    "meta": (torch.ones(9, 2, device="meta"), "without numbers"),
    "another object": (SimpleNamespace(), "real numbers"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", METRICS)
def test_every_metric_answers_wrong_points_with_one_line(name, kind):
    wrong, message = WRONG[kind]
    with pytest.raises(UserError, match=message) as error:
        METRICS[name](wrong, B)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate(A, B, repeats=2.5), "repeats must be an integer, got 2.5"),
        (lambda: evaluate(A, B, repeats=True), "repeats must be an integer, got True"),
        (
            lambda: evaluate(A, B, label=0),
            "label must be left out: no classes, got 0",
        ),
        (lambda: evaluate(A, Points(torch.from_numpy(B), LABELS), label="cat"), "label must be an"),
        (lambda: evaluate(A, Points(torch.from_numpy(B), LABELS), label=0.5), "label must be an"),
        (lambda: evaluate(A, B, held_out=A[:, :1]), r"held_out must be \[n, 2\] like the data"),
        (lambda: evaluate(A, B, seed=-1), "seed must be from 0 to .*, got -1"),
        (lambda: mmd(A, B, seed="cat"), "seed must be an integer, got 'cat'"),
        (lambda: sliced_wasserstein(A, B, seed=None), "seed must be an integer, got None"),
        (lambda: emd(A, B, size=2.5), "size must be an integer, got 2.5"),
        (lambda: mmd(A, B, size=1), "size must be at least 2, got 1"),
        (lambda: sliced_wasserstein(A, B, projections=0), "projections must be at least 1, got 0"),
        (lambda: kde_nll(A, B, most=1), "most must be at least 2, got 1"),
        (lambda: kde_nll(A, B[:1]), "at least 3 points in 2 dimensions, got 1"),
        (lambda: kernel_nll(A, B, temperature=np.nan), "temperature must be positive"),
    ],
)
def test_every_wrong_option_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


@contextmanager
def default(change, value, before):
    change(value)
    try:
        yield
    finally:
        change(before)


MODES = {
    "default device": lambda: default(torch.set_default_device, "meta", None),
    "default dtype": lambda: default(torch.set_default_dtype, torch.float16, torch.float32),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@pytest.mark.parametrize("mode", MODES)
def test_an_evaluation_does_not_depend_on_the_state_of_torch(mode):
    points = Points(torch.from_numpy(B), LABELS)
    want, before = evaluate(A, points, repeats=3, full=True), torch.get_rng_state()
    with MODES[mode]():
        found = evaluate(A, points, repeats=3, full=True, seed=np.int64(0))
    assert found == want
    assert torch.equal(torch.get_rng_state(), before)


def test_kde_nll_of_many_points_reads_some():
    many = RNG.normal(size=(200_000, 2))
    own = kde_nll(many, many, most=2000)
    # The entropy of a normal distribution, of which a kernel of 2,000 points adds about 0.06.
    assert own == pytest.approx(1 + np.log(2 * np.pi), abs=0.15)
    assert own == kde_nll(many, many, most=2000) != kde_nll(many, many, most=2000, seed=1)
    assert kde_nll(A, B, most=200) == pytest.approx(kde_nll(A, B), rel=1e-12)


@pytest.fixture
def own_files(tmp_path):
    np.save(tmp_path / "data.npy", B)
    np.save(tmp_path / "samples.npy", A)
    np.save(tmp_path / "few.npy", C[:7])
    np.savez(tmp_path / "labelled.npz", data=B, labels=LABELS.numpy())
    return tmp_path


def test_json_stands_alone_on_stdout(own_files):
    arguments = ["evaluate", own_files / "samples.npy", "--data", own_files / "data.npy"]
    result = flashpoint(*arguments, "--real-draws", 3, "--json")
    assert result.exit_code == 0
    content = json.loads(result.stdout)
    assert content["sample_to_data"]["passed"] is None
    assert content["notes"]
    assert "measuring 150 samples against 3 real draws" in result.stderr
    tables = flashpoint(*arguments, "--real-draws", 3).stdout
    assert "{" not in tables
    assert "undecided: 3 draws" in tables
    assert content["notes"][0] in tables


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            "data.npy",
            ["--label", "0"],
            "--label must be left out: no classes, got '0'",
        ),
        ("labelled.npz", ["--label", "2"], "--label must be from 0 to 1, got '2'"),
        ("labelled.npz", ["--label", "cat"], "--label must be from 0 to 1, got 'cat'"),
        ("labelled.npz", ["--label", "-1"], "--label must be from 0 to 1, got '-1'"),
        ("data.npy", ["--held-out", "few.npy"], "--held-out must be at least 8 points, got 7"),
    ],
)
def test_the_command_names_its_flags(own_files, monkeypatch, data, options, message):
    monkeypatch.chdir(own_files)
    result = flashpoint("evaluate", own_files / "samples.npy", "--data", own_files / data, *options)
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines()[-1] == f"error: {message}"


@pytest.mark.parametrize(
    ("count", "message"),
    [
        ("1", "must be at least 2, got 1"),
        ("10001", "must be at most 10000, got 10001"),
        ("2.5", "must be a whole number, got '2.5'"),
    ],
)
def test_the_number_of_real_draws_is_checked(own_files, count, message):
    file = own_files / "samples.npy"
    result = flashpoint("evaluate", file, "--data", file, "--real-draws", count)
    assert result.exit_code == 2
    assert result.stderr == f"error: --real-draws {message}\n"
