"""The command line as a user meets it: every command, its files, and wrong input."""

import json
import os
import signal
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from flashpoint.diffusion import MLP, ConditionalMLP, Denoiser, load, load_points
from flashpoint.diffusion.commands import info
from flashpoint.diffusion.experiment import Run
from flashpoint.kernels import MLPShape, forms

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

SMALL = ["--quick", "--steps", "60", "--classifier-steps", "20", "--batch-size", "64",
         "--samples", "200", "--device", "cpu"]  # fmt: skip
NARROW = [*SMALL, "--hidden-layers", "8,8", "--classifier-hidden-layers", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    result = flashpoint("states", *SMALL, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_states_leaves_every_file(run):
    folder, output = run
    state = torch.load(folder / "checkpoints/denoiser.pt", weights_only=True)
    MLP(3, 2, [256] * 4).load_state_dict(state, strict=True)
    state = torch.load(folder / "checkpoints/classifier.pt", weights_only=True)
    MLP(3, 5, [100, 200, 500]).load_state_dict(state, strict=True)
    names = ["uncond_gen_samples", *(f"cond_gen_samples_{label}" for label in range(5))]
    for name in names:
        x = torch.load(folder / f"outputs/{name}.pt", weights_only=True)
        assert x.shape == (200, 2)
        assert x.isfinite().all()
    figures = ["data", "unconditional", "conditional", "training_curves", "classifier"]
    for name in [*figures, *(f"conditional_{label}" for label in range(5))]:
        assert (folder / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert list(metrics) == ["unconditional", "Michigan", "Idaho", "Ohio", "Oklahoma", "Wisconsin"]
    for name, numbers in metrics.items():
        assert f"| {name} | {numbers['nll']:.3f} |" in output
    config = json.loads((folder / "config.json").read_text())
    assert config["denoiser"]["steps"] == 60
    assert config["schedule"]["num_steps"] == 500


def test_quick_says_what_it_reduces(run):
    assert "quick: 60 training steps" in run[1]
    assert "20 of 500 reverse steps" in run[1]
    assert "fine outlines, which blur" in run[1]


def test_sample_and_evaluate(run, tmp_path):
    folder, _ = run
    out = tmp_path / "new" / "x.pt"
    result = flashpoint("sample", folder, "-n", 50, "--label", 2, "--steps", 10, "--out", out)
    assert result.exit_code == 0, result.output
    assert torch.load(out, weights_only=True).shape == (50, 2)
    assert out.with_suffix(".png").exists()
    result = flashpoint("evaluate", out, "--label", 2, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["purity"] >= 0
    named = flashpoint("evaluate", out, "--label", "Ohio", "--json")
    assert named.stdout == result.stdout


def test_a_finished_run_resumes_to_the_same_samples(run):
    folder, _ = run
    before = torch.load(folder / "outputs/uncond_gen_samples.pt", weights_only=True)
    result = flashpoint("states", *SMALL, "--out", folder, "--resume")
    assert result.exit_code == 0, result.output
    assert "resumed" in result.output
    after = torch.load(folder / "outputs/uncond_gen_samples.pt", weights_only=True)
    assert torch.equal(before, after)


@pytest.mark.parametrize(("dim", "labels"), [(1, False), (3, True), (64, False)])
def test_own_data_of_any_dimension(tmp_path, dim, labels):
    content = {"data": np.random.default_rng(0).normal(size=(300, dim))}
    if labels:
        content["labels"] = np.arange(300) % 2
    np.savez(tmp_path / "own.npz", **content)
    result = flashpoint("states", *NARROW, "--data", tmp_path / "own.npz", "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output
    made = {path.name for path in (tmp_path / "r/outputs").iterdir()}
    guided = {"cond_gen_samples_0.pt", "cond_gen_samples_1.pt"} if labels else set()
    assert made == {"uncond_gen_samples.pt", *guided}


def test_data_in_a_plane_is_trained_on_without_a_likelihood(tmp_path):
    data = np.random.default_rng(0).normal(size=(200, 3))
    data[:, 1] = 1
    np.savez(tmp_path / "flat.npz", data=data, labels=np.arange(200) % 2)
    result = flashpoint("states", *NARROW, "--data", tmp_path / "flat.npz", "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "r/metrics.json").read_text())["metrics"]["unconditional"]
    assert metrics["nll"] is None
    assert "must not lie in a plane" in metrics["left_out"]["kde_nll"]
    assert "the likelihood under a density estimate is left out" in result.output
    assert "| not defined | not defined |" in result.output


def test_too_few_points_to_measure_with_are_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "train", lambda _: pytest.fail("trained"))
    data, labels = torch.randn(11, 2), torch.tensor([0] * 8 + [1] * 3)
    torch.save({"data": data, "labels": labels}, tmp_path / "few.pt")
    result = flashpoint("states", "--data", tmp_path / "few.pt", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "error: evaluation needs at least 8 data points of class 1, got 3\n" in result.output


def test_a_data_set_by_its_name(tmp_path):
    result = flashpoint("train", *SMALL, "--data", "digits", "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output
    assert "digits: 1797 points in 64 dimensions" in result.output
    state = torch.load(tmp_path / "r/checkpoints/denoiser.pt", weights_only=True)
    MLP(65, 64, [256] * 4).load_state_dict(state, strict=True)


def test_a_picture_and_the_parts_of_a_data_set(tmp_path):
    out = tmp_path / "new" / "blobs.png"
    result = flashpoint("data", "blobs", "--test-fraction", 0.25, "--out", out)
    assert result.exit_code == 0, result.output
    assert "two blobs: 1567" in result.output
    assert out.read_bytes().startswith(b"\x89PNG")
    test = load_points(tmp_path / "new/blobs_test.pt")
    assert len(test) == 2000
    assert test.num_classes == 2
    one = flashpoint("data", "digits", "--only-class", 7, "--out", tmp_path / "7.png")
    assert "digits_7: 179 points in 64 dimensions" in one.output


def test_a_conditional_denoiser_of_another_network(tmp_path):
    folder = tmp_path / "r"
    arguments = [*SMALL, "--data", "moons", "--p-uncond", 0.2, "--class-embedding", "sinusoidal",
                 "--hidden-layers", "32,32,32", "--activation", "relu", "--linear-input",
                 "--time-feature", "sinusoidal", "--scale", 1.5, "--out", folder]  # fmt: skip
    result = flashpoint("states", *arguments)
    assert result.exit_code == 0, result.output
    assert not (folder / "checkpoints/classifier.pt").exists()
    model = load(folder).model
    assert isinstance(model, ConditionalMLP)
    assert model.shape == MLPShape((2 + 16 + 16, 32, 32, 32, 2), "relu", linear_input=True)
    for label in range(2):
        x = torch.load(folder / f"outputs/cond_gen_samples_{label}.pt", weights_only=True)
        assert x.shape == (200, 2)
    assert (folder / "figures/conditional.png").exists()
    config = json.loads((folder / "config.json").read_text())
    assert config["scale"] == 1.5
    for wrong, message in (
        (["--data", "sin_5_5", "--p-uncond", 0.1], "a conditional denoiser needs labels"),
        (["--p-uncond", 2], "--p-uncond must be from 0 to 1"),
        (["--hidden-layers", "a,b"], "--hidden-layers must be widths like"),
        (["--time-feature", "sin"], "did you mean 'sinusoidal'"),
        (["--linear-input", "--activation", "silu"], "--linear-input must be False unless"),
    ):
        result = flashpoint("train", *SMALL, *wrong, "--out", tmp_path / "w")
        assert result.exit_code == 2, (wrong, result.output, result.exception)
        assert message in result.output


def test_train_alone(tmp_path):
    result = flashpoint("train", *SMALL, "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "r/checkpoints/denoiser.pt").exists()
    assert not (tmp_path / "r/metrics.json").exists()


def test_an_interrupt_saves_and_says_how_to_go_on(tmp_path, monkeypatch):
    from flashpoint.diffusion.training import engine

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert flashpoint("train", *SMALL, "--out", whole).exit_code == 0
    real, calls = engine.training_sums, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 31:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(engine, "training_sums", interrupted)
    result = flashpoint("train", *SMALL, "--out", cut)
    monkeypatch.undo()
    assert result.exit_code == 130
    assert "interrupted at step 50" in result.output
    assert "--resume" in result.output
    result = flashpoint("train", *SMALL, "--out", cut, "--resume")
    assert "resumed" in result.output
    for name in ("denoiser", "classifier"):
        a, b = (torch.load(folder / f"checkpoints/{name}.pt", weights_only=True)
                for folder in (whole, cut))  # fmt: skip
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_an_interrupt_of_other_work_is_one_line(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Denoiser, "sample", interrupted)
    result = flashpoint("sample", run[0])
    assert result.exit_code == 130
    assert result.output.strip() == "interrupted"


def test_a_classic_recipe_of_another_schedule(tmp_path):
    np.save(tmp_path / "own.npy", np.random.default_rng(0).normal(size=(60, 2)))
    result = flashpoint(
        "states", "--recipe", "classic-a", "--epochs", 2, "--timesteps", 10, "--schedule", "cosine",
        "--batch-size", 100, "--samples", 50, "--data", tmp_path / "own.npy", "--device", "cpu",
        "--out", tmp_path / "r",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "r/config.json").read_text())
    assert config["schedule"]["name"] == "cosine"
    assert config["denoiser"]["epochs"] == 2
    state = torch.load(tmp_path / "r/checkpoints/training.pt", weights_only=True)
    assert state["denoiser"]["step"] == 12


def test_info_and_help():
    result = flashpoint("info")
    for word in ("python", "torch", "triton", "cuda", "cpu"):
        assert word in result.output
    for command in ([], ["states"], ["train"], ["sample"], ["evaluate"], ["info"], ["data"]):
        assert flashpoint(*command, "--help").exit_code == 0


def forms_in(output):
    """The lines of the table of forms, each of which fits a terminal."""
    lines = output.split("\n\n")[1].splitlines()
    assert lines[0].startswith("operation ")
    assert max(map(len, lines)) <= 80
    return [" ".join(line.split()) for line in lines[1:]]


def test_info_says_which_form_each_operation_takes_and_why(monkeypatch):
    def on_gpu(capability, problem=None):
        monkeypatch.setattr(forms, "problem_of", lambda _: problem)
        monkeypatch.setattr(forms, "capability_of", lambda _: capability)
        return forms_in(flashpoint("info").output)

    monkeypatch.setattr(info, "choose_device", lambda: torch.device("cpu"))
    operations = (
        "training step", "perceptron", "chain", "classifier-free chain", "guided chain", "AdamW",
    )  # fmt: skip
    expected = [f"{name} PyTorch needs a CUDA device" for name in operations]
    assert forms_in(flashpoint("info").output) == expected
    monkeypatch.setattr(info, "choose_device", lambda: torch.device("cuda"))
    missing = "needs the package triton, which is not installed"
    assert on_gpu((9, 0), missing) == [f"{name} PyTorch {missing}" for name in operations]
    on_blackwell = on_gpu((10, 0))
    why = "the Hopper form needs capability 9.0, got 10.0"
    assert on_blackwell[:-1] == [f"{name} portable {why}" for name in operations[:-1]]
    assert on_blackwell[-1] == "AdamW portable its only form"
    assert on_gpu((9, 0))[2] == "chain portable no measurement shows the Hopper form faster"
    monkeypatch.setattr(forms, "form_of", lambda *_: forms.Form("hopper", "measured to be faster"))
    assert on_gpu((9, 0))[3] == "classifier-free chain Hopper measured to be faster"
    monkeypatch.setattr(forms, "steps_of", Mock(side_effect=ValueError("tiles must grow")))
    assert flashpoint("info").output.endswith("\nforms of kernels: tiles must grow\n")


def test_wrong_input_is_one_line_and_exit_code_2(run, tmp_path):
    folder, _ = run
    (tmp_path / "foreign.pt").write_bytes(b"hello")
    (tmp_path / "file").write_text("")
    np.save(tmp_path / "3d.npy", np.zeros((9, 3)))
    np.save(tmp_path / "nan.npy", np.full((9, 2), np.nan))
    np.save(tmp_path / "empty.npy", np.zeros((0, 2)))
    np.savez(tmp_path / "labels.npz", data=np.zeros((9, 2)), labels=np.zeros(4))
    (tmp_path / "data.xlsx").write_text("1 2")
    broken = tmp_path / "broken"
    (broken / "checkpoints").mkdir(parents=True)
    (broken / "config.json").write_text((folder / "config.json").read_text())
    torch.save({"a": torch.zeros(3)}, broken / "checkpoints/denoiser.pt")
    cases = [
        (["states", "--data", tmp_path / "missing.pt"], "does not exist"),
        (["states", "--data", tmp_path / "foreign.pt"], "cannot be read"),
        (["states", "--data", tmp_path / "nan.npy"], "must be finite"),
        (["states", "--steps", 0], "--steps must be at least 1, got 0"),
        (["states", "--steps", 2.5], "--steps must be a whole number, got '2.5'"),
        (["states", "--timesteps", 99999999999], "--timesteps must be at most 1000000, got"),
        (["states", "--samples", 10**12], "--samples must be at most 100000000, got"),
        (["export", folder, "--format", "foo"], "--format must be one of safetensors"),
        (["study", "betas", "--quick", "--page", tmp_path], "cannot be written: it is a folder"),
        (["study", "betas", "--quick", "--page", "x.html"], "x.html must end in .md"),
        (["train", "--out", ""], "--out must be a path, got ''"),
        (["data", "moons", "--out", ""], "--out must be a path, got ''"),
        (["trian"], "No such command 'trian'"),
        (["--foo"], "No such option '--foo'"),
        (["sample"], "Missing argument 'RUN'"),
        (["report", tmp_path / "missing"], "missing does not exist"),
        (["view", tmp_path], "is no folder of a run: it has no config.json"),
        (["train", "--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
        (["states", "--samples", -1], "--samples must be at least 2, got -1"),
        (["states", "--seed", -1], "--seed must be from 0 to 2**63 - 1, got -1"),
        (["sample", folder, "--seed", 2**63], "--seed must be from 0 to 2**63 - 1"),
        (["states", "--scale", "nan"], "--scale must be finite, a number, got nan"),
        (["states", "--timesteps", 0], "--timesteps must be at least 1, got 0"),
        (["states", "--reverse-steps", 501], "--reverse-steps must be from 1 to 500, got 501"),
        (["states", "--classifier-lr", -1], "--classifier-lr must be positive and finite, got -1"),
        (["states", "--ema", 2], "--ema-decay must be in [0, 1), got 2"),
        (["states", "--schedule", "linar"], "did you mean 'linear'"),
        (["states", "--beta-end", 1.5], "--beta-end must be between 0 and 1"),
        (["states", "--beta-start", -1], "--beta-start must be between 0 and 1"),
        (["states", "--batch-size", -5], "--batch-size must be at least 1"),
        (["states", "--hidden-layers", "8,0"], "--hidden-layers must be at least 1, got 0"),
        (["states", "--classifier-steps", 0], "--classifier-steps must be at least 1, got 0"),
        (["states", "--checkpoint-every", 0], "--checkpoint-every must be at least 1"),
        (["states", "--recipe", "classic"], "did you mean 'classic-"),
        (["states", "--recipe", "classic-a", "--epochs", 0], "--epochs must be at least 1"),
        (["states", "--recipe", "classic-a", "--steps", 5], "--steps is not for a classic recipe"),
        (["states", "--recipe", "classic-a", "--quick"], "--quick is for the recipes fast and"),
        (["states", "--epochs", 3], "--epochs is for the classic recipes"),
        (["states", "--data", tmp_path / "data.xlsx"], "must be one of .pt, .pth, .npy"),
        (["states", "--data", tmp_path / "labels.npz"], "labels must be [9]"),
        (["states", "--data", "mons"], "did you mean 'moons'"),
        (
            ["states", "--data", "moons", "--only-class", 2],
            "--only-class must be from 0 to 1",
        ),
        (["data", "helix", "--test-fraction", 2], "--test-fraction must be between 0 and 1"),
        (["states", "--data", tmp_path / "empty.npy"], "at least one row"),
        (["states", "--device", "cuda:7"], "does not exist"),
        (["states", "--device", "gpu"], "--device must be cpu"),
        (["states", "--out", tmp_path / "file" / "run"], "cannot be written"),
        (["train", *SMALL, "--lr", 0.5, "--resume", "--out", folder], "other settings"),
        (["train", *SMALL, "--steps", 50, "--resume", "--out", folder], "--steps must be at least"),
        (["sample", tmp_path], "holds no model"),
        (["sample", broken], "no state_dict of an MLP"),
        (["sample", folder, "--compare", tmp_path / "missing.pt"], "missing.pt does not exist"),
        (["sample", folder / "checkpoints/classifier.pt"], "is it a denoiser for this schedule"),
        (["sample", folder / "checkpoints/training.pt"], "no state_dict of an MLP"),
        (["sample", folder, "--steps", 501], "--steps must be from 1 to 500"),
        (["sample", folder, "--label", 9, "-n", 3], "--label must be from 0 to 4"),
        (["sample", folder, "--out", tmp_path], "cannot be written: it is a folder"),
        (["sample", folder, "--out", tmp_path / "x.png"], "x.png must end in .pt"),
        (["sample", folder, "--out", tmp_path / "file" / "x.pt"], "cannot be written"),
        (["data", "moons", "--out", tmp_path / "x.foo"], "x.foo must end in .png"),
        (["view", folder, "--out", tmp_path], "cannot be written: it is a folder"),
        (["interpolate", folder, "--pairs", 0], "--pairs must be at least 1, got 0"),
        (["interpolate", folder, "--pairs", 126], "--pairs must be from 1 to 125, got 126"),
        (["evaluate", tmp_path / "3d.npy"], "must have dimension 2"),
        (["evaluate", tmp_path / "3d.npy", "--label", 7], "--label must be from 0 to 4"),
    ]
    for arguments, message in cases:
        result = flashpoint(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.output
        assert result.output.startswith("error: "), result.output
        assert result.output.count("\n") == 1, result.output
