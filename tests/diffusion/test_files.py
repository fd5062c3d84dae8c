"""Models in files: plain state_dicts and safetensors, a run's folder, what is refused."""

import json
from dataclasses import asdict

import pytest
import safetensors.torch
import torch

import flashpoint.diffusion as fd
from flashpoint.diffusion import MLP, Denoiser, Schedule, UserError
from flashpoint.diffusion.compat import BlockMLP
from flashpoint.diffusion.models import ConditionalMLP, class_table

SCHEDULE = Schedule(40, "cosine", time_feature="centered")
DIM = 2


def networks():
    torch.manual_seed(0)
    return {
        "prelu": MLP(3, DIM, [8, 6]),
        "gelu": MLP(3, DIM, [8, 6], activation="gelu"),
        "linear input": MLP(3, DIM, [8, 6], activation="relu", linear_input=True),
        "blocks": BlockMLP(3, DIM, [8, 8]),
        "conditional": ConditionalMLP(3, DIM, [8], class_features=class_table(3)),
        "one layer": MLP(3, DIM),
    }


def assert_same(got, want):
    assert type(got) is type(want)
    assert got.shape == want.shape
    states = got.state_dict(), want.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


@pytest.fixture
def run(tmp_path):
    """A run's folder, as training leaves it."""
    (tmp_path / "checkpoints").mkdir()
    config = {"schedule": asdict(SCHEDULE), "denoiser": {}, "classifier": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    models = {"denoiser": MLP(3, DIM, [8]), "classifier": MLP(3, 5, [6])}
    for name, model in models.items():
        torch.save(model.state_dict(), tmp_path / "checkpoints" / f"{name}.pt")
    return tmp_path, models


@pytest.mark.parametrize("name", networks())
def test_safetensors_hold_architecture_and_schedule(name, tmp_path):
    model = networks()[name]
    Denoiser(model, SCHEDULE).save(tmp_path / "model.safetensors")
    loaded = fd.load(tmp_path / "model.safetensors")
    assert_same(loaded.model, model)
    assert loaded.schedule == SCHEDULE


def test_safetensors_are_read_by_the_library_into_the_plain_module(tmp_path):
    model = networks()["prelu"]
    Denoiser(model, SCHEDULE).save(tmp_path / "model.safetensors")
    other = MLP(3, DIM, [8, 6])
    safetensors.torch.load_model(other, tmp_path / "model.safetensors", strict=True)
    assert_same(other, model)


@pytest.mark.parametrize("name", networks())
def test_pt_files_are_plain_state_dicts(name, tmp_path):
    model = networks()[name]
    Denoiser(model, SCHEDULE).save(tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert list(state) == list(model.state_dict())
    loaded = fd.load(tmp_path / "model.pt", schedule=SCHEDULE, activation=model.shape.activation)
    assert_same(loaded.model, model)


def test_a_run_is_loaded_with_schedule_and_classifier(run):
    folder, models = run
    loaded = fd.load(folder)
    assert loaded.schedule == SCHEDULE
    assert_same(loaded.model, models["denoiser"])
    assert_same(loaded.classifier, models["classifier"])
    alone = fd.load(folder / "checkpoints" / "denoiser.pt")
    assert alone.schedule == SCHEDULE
    assert alone.classifier is None


def test_a_loaded_model_draws_the_samples_of_its_network(run):
    folder, models = run
    loaded = fd.load(str(folder))
    options = {"seed": 3, "num_steps": 5, "device": "cpu"}
    want = fd.sample(models["denoiser"], SCHEDULE, 6, **options).x
    assert torch.equal(loaded.sample(6, **options).x, want)
    guided = fd.sample(
        models["denoiser"], SCHEDULE, 6, classifier=models["classifier"], label=4, **options
    ).x
    assert torch.equal(loaded.sample(6, label=4, **options).x, guided)
    assert not torch.equal(guided, want)


def test_a_conditional_model_is_told_the_label_itself(run):
    _, models = run
    model, options = networks()["conditional"], {"num_steps": 5, "device": "cpu"}
    got = Denoiser(model, SCHEDULE, models["classifier"]).sample(6, label=1, **options).x
    assert torch.equal(got, fd.sample(model, SCHEDULE, 6, label=1, **options).x)


def test_a_folder_of_safetensors(run, tmp_path):
    folder, models = run
    loaded, target = fd.load(folder), tmp_path / "exports"
    target.mkdir()
    loaded.save(target / "denoiser.safetensors")
    Denoiser(loaded.classifier, SCHEDULE).save(target / "classifier.safetensors")
    again = fd.load(target)
    assert_same(again.model, models["denoiser"])
    assert_same(again.classifier, models["classifier"])


def test_what_cannot_be_loaded_is_said(tmp_path):
    def refused(path, message, **options):
        with pytest.raises(UserError, match=message):
            fd.load(path, **options)

    refused(tmp_path / "nothing", "nothing does not exist")
    refused(tmp_path, "holds no model: neither checkpoints")
    plain, damaged = tmp_path / "model.pt", tmp_path / "damaged.safetensors"
    Denoiser(networks()["prelu"], SCHEDULE).save(plain)
    (tmp_path / "model.onnx").touch()
    refused(plain, "schedule must be given")
    refused(tmp_path / "model.onnx", "must be a folder, a .safetensors file or a .pt file")
    damaged.write_bytes(b"not this")
    refused(damaged, "no safetensors file, or damaged")
    safetensors.torch.save_file({"a": torch.zeros(2)}, damaged)
    refused(damaged, "does not say its network and schedule")
    strange = {"network": '{"layout": "MLP", "widths": [0]}', "schedule": "{}"}
    safetensors.torch.save_file({"a": torch.zeros(2)}, damaged, strange)
    refused(damaged, "describes no network and schedule of this package")
    with pytest.raises(UserError, match=r"must end in \.safetensors or \.pt"):
        Denoiser(networks()["prelu"], SCHEDULE).save(tmp_path / "model.bin")


def test_a_damaged_config_is_named(run):
    folder, _ = run
    (folder / "config.json").write_text('{"schedule": {"steps": 5}}')
    with pytest.raises(UserError, match=r"config\.json does not hold the settings of a run"):
        fd.load(folder)


def test_tensors_that_do_not_fit_the_metadata_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    Denoiser(networks()["prelu"], SCHEDULE).save(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    del tensors["model.0.bias"]
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(UserError, match="holds other tensors than its metadata says"):
        fd.load(path)
