"""``flashpoint sample``: formats of files, starts from given points, and errors in one line."""

import shutil

import numpy as np
import pytest
import torch

from flashpoint.diffusion import MLP, STATE_NAMES, Schedule, load, load_points, plots, sample
from flashpoint.diffusion.sampling import METHODS
from flashpoint.kernels import draw_prior

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")


@pytest.fixture
def run(states_run, tmp_path):
    """A copy of a run that may be broken."""
    return shutil.copytree(states_run[0], tmp_path / "run")


def drawn(run, *options, n=20):
    result = flashpoint("sample", run, "-n", n, "--steps", 5, *options)
    assert result.exit_code == 0, result.output
    return result


def test_samples_are_written_as_the_name_of_the_file_says(run, tmp_path):
    files = {suffix: tmp_path / f"x{suffix}" for suffix in (".pt", ".npy", ".csv", ".CSV")}
    for path in files.values():
        assert str(path) in drawn(run, "--out", path).output
        assert path.with_suffix(".png").is_file()
    x = torch.load(files[".pt"], weights_only=True)
    assert x.shape == (20, 2)
    assert x.dtype == torch.float32
    array = np.load(files[".npy"])
    assert array.dtype == np.float32
    assert np.array_equal(array, x.numpy())
    for suffix in (".csv", ".CSV"):
        assert files[suffix].read_text().splitlines()[0] == "x0,x1"
        assert torch.equal(load_points(files[suffix]).data, x)  # every bit
        table = np.loadtxt(files[suffix], delimiter=",", skiprows=1)
        assert np.array_equal(table, x.double().numpy())
    again = drawn(run, "--out", tmp_path / "y.npy", "--compare", files[".CSV"])
    assert "bit for bit" in again.output


def test_a_csv_of_one_class_has_a_column_of_labels(run, tmp_path):
    drawn(run, "--label", 3, "--out", tmp_path / "x.csv", n=4)
    header, *rows = (tmp_path / "x.csv").read_text().splitlines()
    assert header == "x0,x1,label"
    assert [row.split(",")[-1] for row in rows] == [STATE_NAMES[3]] * 4


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ((), ""),
        (("--label", "ohio"), "Ohio, guidance scale 1"),
        (("--label", 2, "--scale", 2.5), "Ohio, guidance scale 2.5"),
    ],
)
def test_the_picture_says_class_and_scale(run, tmp_path, monkeypatch, options, title):
    titles = []
    monkeypatch.setattr(plots, "scatter", lambda _, title, **_options: titles.append(title))
    drawn(run, *options, "--out", tmp_path / "x.pt")
    assert titles == [title]


def test_another_suffix_is_refused_before_anything_is_drawn(run, tmp_path):
    result = flashpoint("sample", run, "--out", tmp_path / "x.txt")
    assert result.exit_code == 2
    assert "x.txt must end in .pt, .npy, .csv" in result.output
    assert not list(tmp_path.glob("x*"))


def distance(run, points, *options):
    out = run / "near.npy"
    result = flashpoint("sample", run, "--init", points, "--out", out, *options)
    assert result.exit_code == 0, result.output
    return np.linalg.norm(np.load(out) - np.load(points), axis=1).mean()


def test_methods_spacings_and_lists_of_timesteps(run, tmp_path):
    """The command draws what the function draws."""
    model = load(run)
    edm = {"method": "edm", "s_churn": 2.0, "s_tmin": 0.1, "s_tmax": 4.0, "s_noise": 1.1}
    for options in (
        {"method": "euler", "num_steps": 6},
        {"num_steps": 6, **edm},
        {"method": "ddim", "num_steps": 6, "spacing": "trailing"},
        {"method": "heun", "timesteps": [28, 20, 6, 1]},
    ):
        words = []
        for name, value in options.items():
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            words += [f"--{name.removeprefix('num_').replace('_', '-')}", text]
        out = tmp_path / "x.npy"
        result = flashpoint("sample", run, "-n", 20, "--out", out, *words)
        assert result.exit_code == 0, result.output
        assert np.array_equal(np.load(out), model.sample(20, **options).x.numpy())
    np.save(tmp_path / "points.npy", np.load(out))
    words = ["--init", tmp_path / "points.npy", "--timesteps", "9,4", "--method", "heun"]
    result = flashpoint("sample", run, *words, "--out", out)
    assert result.exit_code == 0, result.output


def test_samples_resemble_the_points_that_they_start_from(run, states_run, tmp_path):
    points = tmp_path / "points.npy"
    np.save(points, states_run[1].data[:60].numpy())
    for method in ("ddpm", "ddim", "heun"):
        near, far, anew = (
            distance(run, points, "--from", t, "--method", method) for t in (0, 9, 29)
        )
        assert near < 0.1
        assert 1.5 * near < far < 0.8 * anew


def network():
    torch.manual_seed(0)
    return MLP(3, 2, [8])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_steps", [None, 4])
def test_a_chain_from_points_is_one_from_their_noisy_form(method, num_steps):
    schedule, points = Schedule(40, "cosine"), torch.randn(6, 2)
    options = {"method": method, "num_steps": num_steps, "seed": 3, "device": "cpu"}
    got = sample(
        network(), schedule, 6, init=points, start=20, batch_size=4, keep_every=1, **options
    )
    a = schedule.alpha_bar[20].item()
    x_T = a**0.5 * points + (1 - a) ** 0.5 * draw_prior(6, 2, seed=3)[0]
    assert torch.equal(got.trajectory[0], x_T)
    assert len(got.trajectory) == 1 + (num_steps or 21)
    assert torch.equal(got.x, sample(network(), schedule, 6, x_T=x_T, start=20, **options).x)


def test_the_noisiest_start_leaves_nothing_of_the_points_and_magnifies_nothing():
    schedule, points = Schedule(200, "cosine"), torch.randn(50, 2)
    options = {"method": "ddim", "num_steps": 20, "device": "cpu"}
    from_points = sample(network(), schedule, 50, init=points, start=199, **options).x
    anew = sample(network(), schedule, 50, **options).x
    assert (from_points - anew).abs().max() < 0.3 * anew.abs().max()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--eta", 0.5], "eta must be left out unless method is ddim, got 0.5 with ddpm"),
        (["--eta", 0], "eta must be left out unless method is ddim, got 0.0 with ddpm"),
        (
            ["--eta", 0.5, "--method", "heun"],
            "eta must be left out unless method is ddim, got 0.5 with heun",
        ),
        (["--eta", 2, "--method", "ddim"], "eta must be from 0 to 1, got 2.0"),
        (
            ["--variance", "beta", "--method", "ddim"],
            "variance must be left out unless method is ddpm",
        ),
        (["--s-churn", 3], "--s-churn must be left out unless method is edm, got 3.0 with ddpm"),
        (["--method", "edm", "--s-noise", -1], "--s-noise must be at least 0 and finite, got -1.0"),
        (
            ["--spacing", "even"],
            "--spacing must be one of linspace, karras, leading, trailing, got 'even'",
        ),
        (["--timesteps", "9,x"], "--timesteps must be numbers like 499,300,0, got '9,x'"),
        (["--timesteps", "3,9"], "timesteps must fall, from 29 at most to 0 at least, got [3, 9]"),
        (["--timesteps", "9,3", "--steps", 2], "--steps must be left out with timesteps, got 2"),
        (["--scale", 2], "--scale needs a --label"),
        (["--steps", 31], "must be from 1 to 30, got 31"),
        (["--init", "points.npy"], "--init needs --from"),
        (["--from", 3], "--from needs --init or --prior"),
        (["--init", "points.npy", "--from", 30], "must be from 0 to 29, got 30"),
        (
            ["--init", "points.npy", "--from", 3, "--steps", 5],
            "must be from 1 to 4, got 5",
        ),
        (["--init", "points.npy", "--from", 3, "--prior", "points.npy"], "exclude each other"),
        (["--init", "points.npy", "--from", 3, "-n", 4], "--samples and --init exclude each other"),
        (["--init", "wide.npy", "--from", 3], "init must be [4, 2], got [4, 3]"),
        (["--init", "none.npy", "--from", 3], "none.npy does not exist"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(
    run, tmp_path, monkeypatch, options, words
):
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", np.zeros((4, 2), np.float32))
    np.save("wide.npy", np.zeros((4, 3), np.float32))
    result = flashpoint("sample", run, "--out", "x.csv", *options)
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "x.csv").exists()


def test_weights_that_are_not_finite_are_named_and_nothing_is_written(run, tmp_path):
    path = run / "checkpoints/denoiser.pt"
    weights = torch.load(path, weights_only=True)
    weights["model.0.weight"][0, 0] = float("nan")
    torch.save(weights, path)
    result = flashpoint("sample", run, "--out", tmp_path / "x.pt")
    assert result.exit_code == 2
    assert "model must have finite weights, got NaN or infinity in 1 of" in result.output
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "x.pt").exists()


def test_the_schedule_of_a_folder_without_a_record_is_the_one_given(tmp_path):
    schedule = Schedule(40, "cosine")
    (tmp_path / "checkpoints").mkdir()
    for name, outputs in (("denoiser", 2), ("classifier", 5)):
        torch.save(MLP(3, outputs, [8]).state_dict(), tmp_path / f"checkpoints/{name}.pt")
    loaded = load(tmp_path, schedule=schedule)
    assert loaded.schedule == schedule
    assert loaded.classifier is not None
    assert loaded.sample(3, label=2).x.shape == (3, 2)
    with pytest.raises(ValueError, match="schedule must be given"):
        load(tmp_path)


def test_another_schedule_than_the_recorded_one_is_refused(run, tmp_path):
    recorded = load(run).schedule
    assert load(run, schedule=recorded).schedule == recorded
    load(run).save(tmp_path / "denoiser.safetensors")
    for path in (run, run / "checkpoints/denoiser.pt", tmp_path / "denoiser.safetensors", tmp_path):
        with pytest.raises(ValueError, match="schedule must be that of the training") as caught:
            load(path, schedule=Schedule(40, "cosine"))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="schedule must be a Schedule, got int"):
        load(run, schedule=30)
