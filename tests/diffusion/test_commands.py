"""The commands on a run's networks: samples made again, interpolation, classification."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from flashpoint.diffusion import (
    MLP,
    ConditionalMLP,
    Points,
    Schedule,
    UserError,
    class_table,
    dataset,
    files,
    sample,
)
from flashpoint.diffusion.checkpoints import load_mlp
from flashpoint.diffusion.metrics.knn import fit_knn

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")


def make_run(folder, model, time_feature="linspace"):
    """A run of 20 timesteps with a network as it came from its initialisation."""
    (folder / "checkpoints").mkdir(parents=True)
    schedule = Schedule(20, time_feature=time_feature)
    config = {"data": "any", "schedule": asdict(schedule), "denoiser": {}, "classifier": {}}
    files.save_json(folder / "config.json", config)
    files.save(folder / "checkpoints/denoiser.pt", model.state_dict())
    return folder, schedule


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", MLP(3, 2, [16]))[0]


@pytest.fixture
def told_run(tmp_path):
    return make_run(
        tmp_path / "conditional", ConditionalMLP(3, 2, [16], class_features=class_table(2))
    )[0]


def test_checkpoint_and_prior_alone_decide_the_samples(run, tmp_path):
    x_T = torch.randn(70, 2)
    files.save(tmp_path / "prior.pt", x_T)
    first, second = tmp_path / "a.pt", tmp_path / "b.pt"
    arguments = ["sample", run, "--prior", tmp_path / "prior.pt", "--device", "cpu"]
    result = flashpoint(*arguments, "--out", first)
    assert result.exit_code == 0, result.output
    result = flashpoint(*arguments, "--seed", 9, "--out", second, "--compare", first)
    assert result.exit_code == 0, result.output
    assert "bit for bit" in result.output
    assert first.read_bytes() == second.read_bytes()
    # Line 4 of algorithm 2 with z = 0, written out.
    model, schedule, x = load_mlp(run / "checkpoints/denoiser.pt"), Schedule(20), x_T.double()
    for t in reversed(range(20)):
        feature = schedule.time_features[t].float().expand(70, -1)
        eps = model(torch.cat((x.float(), feature), dim=1)).detach()
        beta, alpha_bar = schedule.beta[t], schedule.alpha_bar[t]
        x = (x - beta / (1 - alpha_bar).sqrt() * eps) / (1 - beta).sqrt()
    torch.testing.assert_close(files.load(first), x.float(), atol=1e-5, rtol=1e-5)


def test_samples_that_differ_are_told(run, tmp_path):
    x_T = np.random.default_rng(0).normal(size=(9, 2))
    np.save(tmp_path / "prior.npy", x_T)
    arguments = ["sample", run, "--prior", tmp_path / "prior.npy", "--device", "cpu"]
    assert flashpoint(*arguments, "--out", tmp_path / "a.pt").exit_code == 0
    saved = files.load(tmp_path / "a.pt")
    saved[3, 0] += 1e-3
    files.save(tmp_path / "changed.pt", saved)
    result = flashpoint(
        *arguments, "--out", tmp_path / "b.pt", "--compare", tmp_path / "changed.pt"
    )
    assert result.exit_code == 2
    assert "in 1 of 9 rows, by up to 0.001" in result.output
    files.save(tmp_path / "shorter.pt", saved[:5])
    result = flashpoint(
        *arguments, "--out", tmp_path / "b.pt", "--compare", tmp_path / "shorter.pt"
    )
    assert "samples are [9, 2]" in result.output
    for extra, message in (
        (["-n", 5], "exclude each other"),
        (["--scale", 1], "--scale needs a --label"),
        (["--label", 0], "classifier and label must be given together"),
    ):
        result = flashpoint(*arguments, *extra)
        assert result.exit_code == 2
        assert message in result.output


def test_a_conditional_run_is_told_the_label(told_run, tmp_path):
    out = tmp_path / "x.pt"
    arguments = ["-n", 30, "--label", 1, "--scale", 2, "--device", "cpu", "--out", out]
    result = flashpoint("sample", told_run, *arguments)
    assert result.exit_code == 0, result.output
    model = load_mlp(told_run / "checkpoints/denoiser.pt")
    want = sample(model, Schedule(20), 30, label=1, scale=2.0, device="cpu").x
    assert torch.equal(files.load(out), want)


def test_interpolation_of_data_points(run, tmp_path):
    out = tmp_path / "ways.pt"
    result = flashpoint(
        "interpolate", run, "--data", "moons", "--pairs", 3, "--count", 4, "--device", "cpu",
        "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ways = files.load(out)
    assert ways.shape == (4, 3, 2)
    data = dataset("moons").data
    assert torch.cdist(ways[0], data).amin(dim=1).max() < 1e-3
    assert out.with_suffix(".png").exists()
    result = flashpoint("interpolate", run, "--data", "moons", "--between", 3, 8000)
    assert "between must be rows from 0 to 7999" in result.output
    result = flashpoint("interpolate", run, "--data", "moons", "--between", 10**30, 0)
    assert "between must be rows from 0 to 7999" in result.output
    result = flashpoint("interpolate", run, "--data", "helix")
    assert "was trained on dimension 2, helix has 3" in result.output


@pytest.mark.parametrize(("name", "width"), [("digits", 64), ("helix", 3)])
def test_interpolation_of_images_and_in_space(tmp_path, name, width):
    folder, _ = make_run(tmp_path / "r", MLP(width + 16, width, [8]), "sinusoidal")
    result = flashpoint(
        "interpolate", folder, "--data", name, "--between", 0, 1, "--count", 3, "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    ends = files.load(folder / "outputs/interpolation.pt")[[0, -1], 0]
    torch.testing.assert_close(ends, dataset(name).data[:2], atol=1e-2, rtol=0)
    assert (folder / "outputs/interpolation.png").exists()


def test_classification_beside_a_trained_classifier(told_run, run):
    arguments = ["--data", "moons", "-n", 40, "--noises", 1, "--device", "cpu"]
    result = flashpoint("classify", told_run, *arguments)
    assert result.exit_code == 0, result.output
    assert "40 points of moons, new" in result.output
    assert "classify: 40 of 40 points" in result.stderr
    assert "classify:" not in flashpoint("classify", told_run, *arguments, "-q").stderr
    assert "by nearest neighbours 1.0000" in result.output
    result = flashpoint("classify", run, *arguments)
    assert "has no conditional model" in result.output
    result = flashpoint("classify", told_run, "--data", "manycircles")
    assert "knows 2 classes, manycircles has 8" in result.output


def test_nearest_neighbours_tell_their_own_held_out_accuracy():
    points = dataset("blobs")
    classifier, test = fit_knn(points), points.fresh(4000, 5)
    held_out = classifier.score(test.data, test.labels)
    assert held_out == pytest.approx(classifier.best_score_, abs=0.02)
    assert held_out == pytest.approx(0.96, abs=0.02)
    with pytest.raises(UserError, match="needs labels"):
        fit_knn(dataset("sin_5_5"))
    with pytest.raises(UserError, match="needs 10 points, got 4"):
        fit_knn(Points(torch.randn(4, 2), torch.tensor([0, 1, 0, 1])))
    with pytest.raises(UserError, match="distribution is not known"):
        dataset("digits").fresh(5, 0)
