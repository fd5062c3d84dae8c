"""Exported networks, run by onnxruntime and by torch.export.load, against the network itself."""

import json

import onnxruntime
import pytest
import torch

import flashpoint.diffusion as fd
from flashpoint.diffusion import MLP, Denoiser, Schedule, UserError, export, export_model
from flashpoint.diffusion.choices import EXPORTS
from flashpoint.diffusion.compat import BlockMLP
from flashpoint.diffusion.models import ConditionalMLP, class_table

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

SCHEDULE = Schedule(40, "cosine", time_feature="sinusoidal")
FEATURES = SCHEDULE.time_features.shape[1]


def prelu():
    torch.manual_seed(0)
    return MLP(2 + FEATURES, 2, [8, 6])


def conditional():
    torch.manual_seed(0)
    return ConditionalMLP(2 + FEATURES, 2, [8], class_features=class_table(3))


def classifier():
    torch.manual_seed(0)
    return BlockMLP(3 + FEATURES, 5, [8, 8])


def inputs(model, rows):
    dim = 3 if isinstance(model, BlockMLP) else 2
    x, t = torch.randn(rows, dim), torch.randint(40, (rows,))
    labels = (torch.randint(4, (rows,)),) if isinstance(model, ConditionalMLP) else ()
    return x, t, *labels


def expected(model, x, t, *labels):
    with torch.no_grad():
        return model(torch.cat((x, SCHEDULE.time_features[t].float()), dim=1), *labels)


@pytest.mark.parametrize("make", [prelu, conditional, classifier])
def test_onnx_runs_in_onnxruntime(make, tmp_path):
    model, path = make(), tmp_path / "model.onnx"
    assert export_model(model, SCHEDULE, "onnx", path) < 1e-5
    session = onnxruntime.InferenceSession(path)
    for rows in (1, 5, 300):
        given = inputs(model, rows)
        names = [each.name for each in session.get_inputs()]
        (y,) = session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})
        torch.testing.assert_close(torch.from_numpy(y), expected(model, *given))
    metadata = session.get_modelmeta().custom_metadata_map
    assert Schedule(**json.loads(metadata["schedule"])) == SCHEDULE
    assert json.loads(metadata["network"])["widths"] == list(model.shape.widths)


@pytest.mark.parametrize("make", [prelu, conditional, classifier])
def test_torch_export_runs(make, tmp_path):
    model, path, extra = make(), tmp_path / "model.pt2", {"schedule": "", "network": ""}
    assert export_model(model, SCHEDULE, "torch.export", path) < 1e-5
    loaded = torch.export.load(path, extra_files=extra).module()
    for rows in (1, 5, 300):
        given = inputs(model, rows)
        torch.testing.assert_close(loaded(*given), expected(model, *given))
    assert Schedule(**json.loads(extra["schedule"])) == SCHEDULE


def test_what_differs_from_the_network_is_not_written(tmp_path, monkeypatch):
    """A wrong exporter is caught by running its result."""

    def wrong(plain, metadata):
        content, run = right(plain, metadata)
        return content, lambda *given: run(*given) + 1e-3

    right = export._torch_export
    monkeypatch.setattr(export, "_torch_export", wrong)
    with pytest.raises(UserError, match=r"would differ from the model by 1\.0e-03"):
        export_model(prelu(), SCHEDULE, "torch.export", tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(UserError, match="did you mean 'onnx'"):
        export_model(prelu(), SCHEDULE, "onxx", tmp_path / "model")


def test_the_command_exports_both_networks(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    config = {"schedule": {"num_steps": 40}, "denoiser": {}, "classifier": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name, outputs in (("denoiser", 2), ("classifier", 5)):
        Denoiser(MLP(3, outputs, [4]), Schedule(40)).save(tmp_path / "checkpoints" / f"{name}.pt")
    for format, suffix in EXPORTS.items():
        result = flashpoint("export", tmp_path, "--format", format)
        assert result.exit_code == 0, result.output
        assert "differs from the network by" in result.output
        assert (tmp_path / "exports" / f"denoiser{suffix}").is_file()
        assert (tmp_path / "exports" / f"classifier{suffix}").is_file()
    assert fd.load(tmp_path / "exports").schedule == Schedule(40)
    result = flashpoint("export", tmp_path, "--format", "tflite")
    assert result.exit_code == 2
    assert "format must be one of safetensors, onnx, torch.export" in result.output
