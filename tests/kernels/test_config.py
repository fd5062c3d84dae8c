"""Configurations: their files, the choice by rows, and the kernels with large tiles of rows."""

import json
from dataclasses import MISSING, fields, replace

import pytest
import torch

from flashpoint.kernels import MLPShape, train_step, training_sums, workspace_of
from flashpoint.kernels.mlp import config
from flashpoint.kernels.mlp import kernel as mlp
from flashpoint.kernels.mlp.config import (
    CONFIGS,
    FORMS,
    HOPPER_KERNELS,
    KERNELS,
    OPERAND_DTYPES,
    PROGRAMS,
    Config,
    config_for,
    steps_of,
)
from flashpoint.kernels.reduce_grad import mean_of

from .networks import check, make_batch, make_network, run
from .training import make_data, relative_difference

CAPABILITIES = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]


@pytest.fixture
def large_tiles(monkeypatch):
    """The configuration of many rows for any number of them."""
    largest = config.steps_of("fp16", (9, 0), "training")[-1][1]
    assert largest.rows == 128
    monkeypatch.setattr(config, "steps_of", lambda *_: ((0, largest),))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_tiles_fit_each_other(capability):
    for precision in OPERAND_DTYPES:
        for kernel in KERNELS:
            for _, one in steps_of(precision, capability, kernel):
                assert one.rows % one.grad_rows == 0
                assert one.form == "portable" or one.hopper_rows % one.grad_rows == 0
                assert config.saved_rows(1) % one.rows == 0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*")), ids=lambda path: path.name)
def test_files_name_precisions_kernels_and_fields_that_exist(path):
    assert path.name in ("sm_80.json", "sm_90.json", "sm_100.json")
    sizes = {field.name for field in fields(Config) if field.type is int}
    needed = {field.name for field in fields(Config) if field.default is MISSING}
    for precision, table in json.loads(path.read_text()).items():
        assert precision in {"half", *OPERAND_DTYPES}
        assert table.pop("all").keys() - {"why"} == needed
        assert table.keys() <= set(KERNELS)
        for changes in table.values():
            starts = [change.get("tiles", 0) for change in changes]
            assert starts == sorted(set(starts))
            assert all(change.keys() <= {"tiles", "form", "why", *sizes} for change in changes)
            assert all(change.get(size, 1) > 0 for change in changes for size in sizes)
            assert all(change.get("form", "portable") in FORMS for change in changes)
        # An update does not depend on rows.
        assert not any(change.get("tiles") for change in table.get("adamw", ()))


def test_the_oldest_file_has_every_precision():
    oldest = json.loads((CONFIGS / "sm_80.json").read_text())
    assert oldest.keys() == {"half", "tf32", "tf32x3", "fp32"}


@pytest.mark.parametrize(
    ("capability", "like"),
    [((8, 9), (8, 0)), ((9, 1), (9, 0)), ((10, 3), (10, 0)), ((12, 0), (8, 0))],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_gpu_without_a_file_has_the_tiles_of_the_nearest_one(capability, like, kernel):
    for precision in OPERAND_DTYPES:
        assert steps_of(precision, capability, kernel) == steps_of(precision, like, kernel)
    assert steps_of("fp16", (9, 0), kernel) != steps_of("fp16", (8, 0), kernel)
    assert steps_of("tf32", (9, 0), kernel) == steps_of("tf32", (8, 0), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_choice_is_that_of_the_rounded_rows(capability, kernel):
    for precision in ("fp16", "tf32"):
        for models, rows in ((1, 8448), (1, 8449), (1, 16_897), (3, 2816), (3, 2817), (200, 1)):
            chosen = config_for(precision, capability, rows, models, kernel)
            rounded = -(-rows // chosen.rows) * chosen.rows
            assert config_for(precision, capability, rounded, models, kernel) == chosen


def test_more_programs_than_fill_a_gpu_are_made_fewer():
    assert config_for("fp16", (9, 0), 64 * PROGRAMS, 1).rows == 64
    assert config_for("fp16", (9, 0), 64 * PROGRAMS + 1, 1).rows == 128
    assert config_for("fp16", (9, 0), 1, PROGRAMS + 1).rows == 128


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that makes entries a kernel's part of a copy of the file of sm_90."""

    def write(kernel, *entries):
        files = {name: (CONFIGS / name).read_text() for name in ("sm_80.json", "sm_90.json")}
        hopper = json.loads(files["sm_90.json"])
        hopper["half"][kernel] = entries
        for name, text in (files | {"sm_90.json": json.dumps(hopper)}).items():
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(config, "CONFIGS", tmp_path)
        steps_of.cache_clear()

    yield write
    steps_of.cache_clear()


@pytest.mark.parametrize("kernel", [each for each in HOPPER_KERNELS if each != "perceptron"])
def test_an_entry_turns_a_form_on_and_off_from_so_many_tiles(kernel, written):
    written(kernel)
    before = config_for("fp16", (9, 0), 1, 1, kernel)
    written(
        kernel,
        {"tiles": 2, "form": "hopper", "hopper_ring": 4},
        {"tiles": 133, "hopper_rows": 128},
        {"tiles": 265, "form": "portable", "rows": 128},
    )
    few, some, many, most = (
        config_for("bf16", (9, 0), 64 * tiles, 1, kernel) for tiles in (1, 2, 133, 265)
    )
    assert few == before
    assert some == replace(before, form="hopper", hopper_ring=4)
    assert many == replace(some, hopper_rows=128)
    assert most == replace(many, form="portable", rows=128)


def test_the_perceptron_has_one_form_for_all_rows(written):
    """Compiled code must not depend on the number of rows."""
    written("perceptron", {"form": "hopper"}, {"tiles": 133, "hopper_rows": 128})
    few, many = (config_for("fp16", (9, 0), 64 * n, 1, "perceptron") for n in (1, 133))
    assert (few.form, few.hopper_rows) == ("hopper", 64)
    assert (many.form, many.hopper_rows) == ("hopper", 128)
    written("perceptron", {"tiles": 133, "form": "hopper"})
    message = "perceptron: form must be the same for all tiles, got portable, hopper"
    with pytest.raises(ValueError, match=message):
        config_for("fp16", (9, 0), 64, 1, "perceptron")


def test_the_portable_form_is_shipped_everywhere():
    """Until the other one has been measured."""
    for capability in CAPABILITIES:
        for precision in OPERAND_DTYPES:
            for kernel in KERNELS:
                steps = steps_of(precision, capability, kernel)
                assert {one.form for _, one in steps} == {"portable"}


@pytest.mark.parametrize(
    ("kernel", "entry", "message"),
    [
        ("chain", {"form": "hoper"}, "form must be one of portable, hopper, got 'hoper'"),
        ("chain", {"hopper_rows": 96}, "hopper_rows must be 64 or 128, got 96"),
        ("chain", {"hopper_rows": 64.0}, "hopper_rows must be 64 or 128, got 64.0"),
        ("chain", {"tiles": -1}, "tiles must be integers that grow, got -1"),
        ("chain", {"tiles": "2"}, "tiles must be integers that grow, got '2'"),
        ("chain", {"hopper_ring": 1}, "hopper_ring must be an integer of at least 3, got 1"),
        ("chain", {"hopper_ring": "6"}, "hopper_ring must be an integer of at least 3, got '6'"),
        ("chain", {"stages": 2.5}, "stages must be an integer of at least 1, got 2.5"),
        ("chain", {"columns": 64}, r"sizes must be among adamw_block, .*warps, got columns"),
        ("adamw", {"form": "hopper"}, "form must be portable, others are for .*, got 'hopper'"),
    ],
)
def test_a_wrong_value_in_a_file_is_named(kernel, entry, message, written):
    written(kernel, entry)
    with pytest.raises(ValueError, match=f"^kernels/configs for sm_90, half, {kernel}: {message}$"):
        config_for("fp16", (9, 0), 64, 1, kernel)


def test_kernels_and_sizes_of_a_file_are_those_that_exist(monkeypatch):
    def refused(table, message):
        monkeypatch.setattr(config, "table_of", lambda *_: table)
        with pytest.raises(ValueError, match=message):
            steps_of.__wrapped__("fp16", (9, 0), "chain")

    sizes = config.table_of("half", (9, 0))["all"]
    refused({"all": sizes, "chian": []}, "kernels must be among all, training, .*, got chian$")
    refused({"chain": []}, "all sizes must be given, got none for adamw_block, .*, warps$")
    few = {name: size for name, size in sizes.items() if name != "out"}
    refused({"all": few}, "all sizes must be given, got none for out$")
    refused({"all": sizes, "chain": [{"tiles": 9}, {"tiles": 3}]}, "integers that grow, got 3$")


@pytest.mark.parametrize("rows", [1, 65, 129])
@pytest.mark.parametrize("activation", ["prelu", "relu", "gelu"])
@pytest.mark.usefixtures("poisoned", "large_tiles")
def test_large_tiles_of_a_perceptron(device, rows, activation):
    shape = MLPShape((3, 20, 20, 2), activation)
    flat = make_network(shape, 2, device=device)
    check(flat, shape, *make_batch(shape, rows, 2, device=device), "fp16")


@pytest.mark.usefixtures("poisoned", "large_tiles")
def test_large_tiles_without_weight_gradients(device):
    shape = MLPShape((3, 20, 20, 2))
    flat = make_network(shape, 2, device=device)
    x, grad_y = make_batch(shape, 129, 2, device=device)
    y, grad_x, _ = run(flat, shape, x, grad_y, "fp16")
    saved = mlp.forward_flat(x, flat, shape, "fp16")[1]
    assert torch.equal(mlp.forward_flat(x, flat, shape, "fp16", save=False)[0], y)
    alone, _ = mlp.backward(grad_y, saved, shape, "fp16", need_weights=False)
    assert torch.equal(alone, grad_x)


@pytest.mark.usefixtures("large_tiles")
def test_shapes_of_large_tiles_are_foreseen(device):
    shape = MLPShape((3, 20, 2))
    weights, biases, slope = shape.unpack(make_network(shape, 2, device=device))
    x, _ = make_batch(shape, 65, 2, device=device)
    arguments = (x, weights, biases, slope, "prelu", 0.01, False, "fp16")
    torch.library.opcheck(
        torch.ops.flashpoint.mlp.default, arguments, {"save": True}, test_utils="test_faketensor"
    )
    acts = torch.ops.flashpoint.mlp(*arguments, save=True)[1][0]
    assert acts.shape[1] == 128


@pytest.mark.parametrize("rows", [129, 64, 20])
@pytest.mark.usefixtures("poisoned", "large_tiles")
def test_a_workspace_of_large_tiles_fits_fewer_rows(device, rows):
    shape, data = MLPShape((3, 20, 20, 2)), make_data(device, "denoiser", 2)
    flat = make_network(shape, 2, device=device)
    options = {"batch_size": 129, "rows": rows, "step": 3}
    seed = torch.arange(2, device=device)
    workspace = workspace_of(flat, shape, data, 129, precision="fp16", backend="triton")
    assert workspace.buffers.config.rows == 128
    sums = training_sums(flat, shape, data, workspace, seed=seed, **options)
    grad, loss = mean_of(sums)
    expected_loss, expected = train_step(flat, shape, data, seed=seed, backend="torch", **options)
    assert relative_difference(loss, expected_loss) <= 2e-3
    assert relative_difference(grad, expected) <= 2e-2
