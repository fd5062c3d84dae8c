"""A user's units: standardised on the way in, and back in every file and every sample."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import flashpoint.diffusion as fd
from flashpoint.diffusion import (
    MLP,
    ConditionalMLP,
    Denoiser,
    Points,
    Schedule,
    Standardisation,
    UserError,
    class_table,
    files,
    report,
    viewer,
)
from flashpoint.diffusion.saved_run import SavedRun
from flashpoint.diffusion.viewer.payload import make_payload

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

UTM = Standardisation((500_000.0, 4_649_776.0), (100.0, 30.0))
CPU = torch.device("cpu")


@pytest.fixture
def utm(tmp_path):
    """A file of 300 points in metres, far from zero, of two classes."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 2)) * UTM.std + UTM.mean
    kind = np.where(x[:, 0] > UTM.mean[0], "east", "west")
    rows = "".join(f"{a:.3f},{b:.3f},{c}\n" for (a, b), c in zip(x, kind, strict=True))
    (tmp_path / "utm.csv").write_text(f"easting,northing,kind\n{rows}")
    return tmp_path / "utm.csv", torch.tensor(x)


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_run):
    """(folder, points) of a run on standardised points."""
    folder, generator = tmp_path_factory.mktemp("run"), torch.Generator().manual_seed(0)
    data = torch.randn(200, 2, generator=generator)
    labels = (data[:, 0] > 0).long()
    points = Points(data, labels, ("west", "east"), "utm", standardisation=UTM)
    return make_run(folder / "utm", points)


def assert_near(x, by=UTM):
    """Points in the user's units lie where the data does, however short the training."""
    assert x.dtype == torch.float64
    for dim in range(2):
        middle = x[:, dim].median().item()
        assert abs(middle - by.mean[dim]) < 2 * by.std[dim]


def test_files_of_a_run_are_in_the_users_units_and_read_back(run):
    folder, points = run
    saved = SavedRun(folder, points, CPU, 0)
    written = files.load(saved.folder.samples_file())
    assert_near(written)
    assert saved.samples.dtype == torch.float32
    torch.testing.assert_close(saved.samples, UTM.apply(written))
    assert len(saved.guided) == 2
    for label, x in enumerate(saved.guided):
        guided = files.load(saved.folder.samples_file(label))
        assert_near(guided)
        torch.testing.assert_close(x, UTM.apply(guided))


def test_the_viewer_and_the_report_say_the_units(run):
    folder, points = run
    saved = SavedRun(folder, points, CPU, 0)
    page = viewer.page(make_payload(saved, 20, lambda _: None), saved)
    assert "standardised: mean 500000, 4649776; std 100, 30" in page
    assert "Distances are in standard deviations of the data." in page
    assert '"classes": ["west", "east"]' in page
    assert ("standardised", "mean 500000, 4649776; std 100, 30") in report._about(saved)[0].rows
    plain = replace(points, standardisation=None)
    assert not plain.unit_of_distances


def test_a_loaded_run_draws_in_the_users_units_and_knows_its_classes(run):
    folder, _ = run
    for path in (folder, folder / "checkpoints" / "denoiser.pt"):
        assert fd.load(path).standardisation == UTM
    model, options = fd.load(folder), {"seed": 1, "num_steps": 5, "device": CPU}
    drawn = model.sample(50, label="east", keep_every=1, **options)
    want = fd.sample(
        model.model, model.schedule, 50, classifier=model.classifier, label=1, keep_every=1,
        **options,
    )  # fmt: skip
    assert torch.equal(drawn.x, UTM.undo(want.x))
    assert torch.equal(drawn.trajectory, UTM.undo(want.trajectory))
    assert model.class_names == ("west", "east")
    with pytest.raises(UserError, match="label must be one of west, east, got 'north'"):
        model.sample(5, label="north", **options)


def test_safetensors_keep_the_map_and_the_classes(run, tmp_path):
    model = fd.load(run[0])
    model.save(tmp_path / "a.safetensors")
    again = fd.load(tmp_path / "a.safetensors")
    assert (again.standardisation, again.class_names) == (UTM, ("west", "east"))
    options = {"seed": 1, "num_steps": 5, "device": CPU}
    assert torch.equal(again.sample(9, **options).x, model.sample(9, **options).x)
    Denoiser(model.model, model.schedule).save(tmp_path / "plain.safetensors")
    plain = fd.load(tmp_path / "plain.safetensors")
    assert (plain.standardisation, plain.class_names) == (None, ())
    assert plain.sample(9, **options).x.dtype == torch.float32


def test_files_of_before_the_map_was_written_still_load(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    model, schedule = MLP(3, 2, [4]), Schedule(20)
    Denoiser(model, schedule).save(tmp_path / "new.safetensors")
    with safetensors.safe_open(tmp_path / "new.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    old = {key: metadata[key] for key in ("format", "network", "schedule")}
    safetensors.torch.save_file(tensors, tmp_path / "old.safetensors", old)
    loaded = fd.load(tmp_path / "old.safetensors")
    assert (loaded.standardisation, loaded.schedule) == (None, schedule)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"schedule": asdict(schedule)}))
    torch.save(model.state_dict(), tmp_path / "checkpoints/denoiser.pt")
    assert fd.load(tmp_path).standardisation is None


@pytest.mark.parametrize(("format", "name"), [("onnx", "m.onnx"), ("torch.export", "m.pt2")])
def test_exports_keep_the_map(tmp_path, format, name):
    model = ConditionalMLP(3, 2, [4], class_features=class_table(2))
    fd.export_model(
        model, Schedule(20), format, tmp_path / name, standardisation=UTM, class_names=("a", "b")
    )
    if format == "onnx":
        onnx = pytest.importorskip("onnx")
        extra = {each.key: each.value for each in onnx.load(tmp_path / name).metadata_props}
    else:
        extra = {"standardisation": "", "class_names": ""}
        torch.export.load(tmp_path / name, extra_files=extra)
    assert json.loads(extra["standardisation"]) == {"mean": list(UTM.mean), "std": list(UTM.std)}
    assert json.loads(extra["class_names"]) == ["a", "b"]


def test_a_users_file_is_standardised_on_the_command_line(utm, tmp_path):
    path, x = utm
    arguments = ["data", path, "--out", tmp_path / "a.png", "--test-fraction", 0.5]
    result = flashpoint(*arguments, "--labels", "kind")
    assert result.exit_code == 0, result.output
    assert "utm.csv: columns easting, northing; labels from 'kind'\n" in result.output
    assert "utm.csv: classes east, west\n" in result.output
    assert "utm.csv: standardised: mean 499" in result.output
    assert "samples are in the file's units\n" in result.output
    halves = [fd.load_points(tmp_path / f"a_{part}.pt") for part in ("train", "test")]
    assert all(half.class_names == ("east", "west") for half in halves)
    both = torch.cat([files.load(tmp_path / f"a_{part}.pt")["data"] for part in ("train", "test")])
    np.testing.assert_allclose(both.sort(dim=0).values, x.sort(dim=0).values, atol=1e-3)
    result = flashpoint(*arguments, "--labels", "kind", "--no-standardise")
    assert "utm.csv: warning: the points have mean 499" in result.output
    assert "standardised:" not in result.output
    assert "east: " in flashpoint(*arguments, "--labels", "KIND").output
    result = flashpoint(*arguments, "--labels", "kind", "--only-class", "west")
    assert "utm_1: " in result.output
    result = flashpoint(*arguments, "--labels", "kind", "--only-class", "north")
    assert result.output == "error: --only-class must be one of east, west, got 'north'\n"


def test_options_for_files_are_refused_for_named_data():
    for arguments, message in (
        (["--no-standardise"], "--no-standardise is for a file: moons stays as it was published"),
        (["--labels", "x"], "--labels must be left out: moons has its own, got 'x'"),
        (["--only-class", "high"], "--only-class must be one of upper, lower, got 'high'"),
    ):
        result = flashpoint("data", "moons", *arguments)
        assert result.exit_code == 2
        assert result.output == f"error: {message}\n"


def test_samples_are_measured_in_the_units_of_the_data(utm, tmp_path):
    path, x = utm
    (tmp_path / "held.csv").write_text(path.read_text())
    np.save(tmp_path / "s.npy", x.numpy())
    result = flashpoint(
        "evaluate", tmp_path / "s.npy", "--data", path, "--labels", "kind", "--label", "west",
        "--real-draws", 3,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Distances are in standard deviations of the data" in result.output
    same = Points(UTM.apply(x), (x[:, 0] > UTM.mean[0]).long(), ("b", "a"), standardisation=UTM)
    others = Points(x.float(), torch.zeros(300, dtype=torch.int64), ("a",))
    assert len(same.same_class(others, 1)) == 300
    with pytest.raises(UserError, match="label must be one of a, got 'b'"):
        same.same_class(others, 0)


def test_a_saved_prior_and_samples_in_units_come_out_again(run, tmp_path):
    prior = torch.randn(20, 2)
    files.save(tmp_path / "prior.pt", prior)
    arguments = ["sample", run[0], "--prior", tmp_path / "prior.pt", "--device", "cpu"]
    assert flashpoint(*arguments, "--out", tmp_path / "a.pt").exit_code == 0
    assert_near(files.load(tmp_path / "a.pt"))
    result = flashpoint(*arguments, "--out", tmp_path / "b.pt", "--compare", tmp_path / "a.pt")
    assert "bit for bit" in result.output


def test_standardised_data_sets_draw_and_outline_alike():
    points = fd.dataset("states").standardised()
    torch.testing.assert_close(points.data.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    by = Standardisation((3.0, -2.0), (0.5, 2.0))
    moved = fd.dataset("states").standardised(by)
    torch.testing.assert_close(moved.in_units(moved.data).float(), fd.dataset("states").data)
    new = moved.fresh(50, 3)
    torch.testing.assert_close(new.data, by.apply(fd.dataset("states").fresh(50, 3).data))
    assert moved.standardised(UTM).standardisation == UTM
    torch.testing.assert_close(moved.outlines[0], by.apply(fd.dataset("states").outlines[0]))
    with pytest.raises(UserError, match="helix must have dimension 2, got 3"):
        fd.dataset("helix", standardise=UTM)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.0,), (1.0, 1.0)), ((), ()), ((0.0,), (0.0,)), ((float("nan"),), (1.0,)), (None, (1.0,))],
)
def test_a_map_that_is_none_is_refused(mean, std):
    with pytest.raises(UserError, match="mean and std must be"):
        Standardisation(mean, std)


def test_a_constant_column_keeps_its_value():
    data = torch.tensor([[0.1, 1], [0.1, 2], [0.1, 3]], dtype=torch.float64)
    by = Standardisation.of(data)
    assert by.std[0] == 1
    assert by.apply(data)[:, 0].abs().max() == 0
    assert torch.equal(by.undo(by.apply(data))[:, 0], data[:, 0])


def test_points_of_another_shape_are_not_repeated_along_the_dimensions(run):
    denoiser = fd.load(run[0])
    for init in (torch.zeros(2, 1), torch.zeros(2), torch.zeros(2, 3), [[1, 2], [3]], "ab"):
        with pytest.raises(UserError, match=r"init must be \[2, 2\]"):
            denoiser.sample(2, init=init, start=1)
    dense = torch.tensor([[5e5, 0.0], [0.0, 4e6]])
    drawn = [
        denoiser.sample(2, init=x, start=1).x for x in (dense, dense.to_sparse(), dense.tolist())
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    for change in (denoiser.standardisation.apply, denoiser.standardisation.undo):
        for x in (torch.zeros(2, 1), torch.zeros(()), torch.zeros(2, 3), [[1.0, 2.0]]):
            with pytest.raises(UserError, match=r"points must be a tensor \[..., 2\]"):
                change(x)
    with pytest.raises(UserError, match="path must be a name or a path, got NoneType"):
        fd.load(None)
