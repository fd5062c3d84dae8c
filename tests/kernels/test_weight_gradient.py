"""The kernel of the weight gradients against float64, and how it divides rows among programs."""

from dataclasses import replace

import pytest
import torch

from flashpoint.kernels.mlp import MLPShape
from flashpoint.kernels.mlp.config import (
    OPERAND_DTYPES,
    config_for,
    to_operand,
)
from flashpoint.kernels.mlp.layout import layout_of
from flashpoint.kernels.mlp.weight_gradient import split_rows, tasks_of, weight_gradients
from flashpoint.kernels.reduce_grad.reference import empty_parts

from .networks import relative_error

# A layer has few inputs, few outputs, or many of both; each kind has tiles of its own.
WIDTHS = [
    (1, 1),
    (2, 3),
    (3, 16, 16, 2),
    (3, 17, 130, 16, 100),
    (500, 2),
    (3, 100, 500, 1),
    (16, 260, 5),
    (40, 300),
]


def columns_of(net, models, rows, first, precision, device):
    """Returns random numbers for the layers from ``first`` on, with NaN in all of the padding."""
    dtype = OPERAND_DTYPES[precision]
    end = net.columns[-1] if first else net.columns[-2]
    start, widths = net.columns[first], net.shape.widths
    buffer = torch.full((models, rows, end - start), torch.nan, dtype=dtype, device=device)
    for layer in range(first, net.layers + bool(first)):
        values = to_operand(torch.randn(models, rows, widths[layer], device=device), precision)
        buffer[..., net.columns[layer] - start :][..., : widths[layer]] = values
    return buffer


def as_they_lie(buffer, net, first):
    """Returns the numbers of all layers from ``first`` on, hidden ones in their order."""
    columns = torch.arange(buffer.shape[2], device=buffer.device)
    if net.fragments:
        start, end = (net.columns[layer] - net.columns[first] for layer in (1, net.layers))
        columns[start:end] = columns[start:end].view(-1, 4, 4, 2).transpose(1, 2).flatten()
    return buffer[..., columns]


def expected_gradient(net, acts, grads):
    """Returns the flat gradients of weights and biases [M, P] in float64."""
    parts = []
    for layer in range(net.layers):
        width_in, width_out = net.shape.widths[layer : layer + 2]
        h = acts[..., net.columns[layer] :][..., :width_in].double()
        dz = grads[..., net.columns[layer + 1] - net.columns[1] :][..., :width_out].double()
        parts.append((dz.mT @ h).flatten(1))
        if net.shape.bias:
            parts.append(dz.sum(dim=1))
    return torch.cat(parts, dim=1)


def check(device, widths, precision, *, models=1, rows=192, bias=True, part=0, **options):
    net = layout_of(MLPShape(widths, "relu", bias=bias), precision, part)
    config = config_for(precision, (9, 0), rows, models)
    acts = columns_of(net, models, rows, 0, precision, device)
    grads = columns_of(net, models, rows, 1, precision, device)
    tile_parts = torch.ones(models, net.layers + 1, rows // config.rows, device=device)
    splits, _ = split_rows(net, config, models, rows)
    results = []
    for _ in range(2):
        parts = empty_parts(tile_parts, models, splits, net.shape.num_parameters)
        weight_gradients(
            as_they_lie(acts, net, 0), as_they_lie(grads, net, 1), tile_parts, parts, net, config,
            **options,
        )  # fmt: skip
        results.append(parts.clone())
    assert torch.equal(*results)
    actual = results[0].double().sum(dim=1)
    wanted = expected_gradient(net, acts, grads)
    for one, other in zip(_tensors(net, actual), _tensors(net, wanted), strict=True):
        assert relative_error(one, other) <= 1e-5
    return splits


def _tensors(net, flat):
    weights, biases, _ = net.shape.unpack(flat)
    return [*weights, *(biases or ())]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.usefixtures("poisoned")
def test_every_kind_of_layer(device, widths, precision):
    check(device, widths, precision)


@pytest.mark.parametrize(
    "precision", ["tf32", "tf32x3", pytest.param("bf16", marks=pytest.mark.gpu)]
)
@pytest.mark.usefixtures("poisoned")
def test_every_precision(device, precision):
    check(device, (3, 130, 70, 2), precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.usefixtures("poisoned")
def test_without_biases(device, precision):
    check(device, (3, 33, 20, 2), precision, bias=False)


@pytest.mark.parametrize(
    ("widths", "part"),
    [((3, 64, 40, 2), 64), ((3, 100, 256, 2), 128), ((20, 130, 128, 40), 128)],
    ids=str,
)
@pytest.mark.usefixtures("poisoned")
def test_hidden_features_in_fragment_order(device, widths, part):
    check(device, widths, "fp16", part=part)


@pytest.mark.usefixtures("poisoned")
def test_several_models_and_parts(device):
    assert check(device, (3, 17, 20, 2), "fp16", models=3, rows=1024) > 1


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_gradients_of_a_further_chunk_are_added(device, precision):
    net = layout_of(MLPShape((3, 20, 17, 2), "relu"), precision)
    config = config_for(precision, (9, 0), 128, 1)
    rows, tile_parts = 128, torch.tensor([2.0, 5.0], device=device).expand(1, net.layers + 1, 2)
    acts = columns_of(net, 1, rows, 0, precision, device)
    grads = columns_of(net, 1, rows, 1, precision, device)
    splits, _ = split_rows(net, config, 1, rows)
    parts = empty_parts(tile_parts, 1, splits, net.shape.num_parameters + 2)
    tile_parts = tile_parts.contiguous()
    weight_gradients(acts, grads, tile_parts, parts, net, config, loss=True, factor=0.5)
    once = parts.clone()
    weight_gradients(acts, grads, tile_parts, parts, net, config, loss=True, factor=0.5, add=True)
    assert torch.equal(parts, 2 * once)
    total = once.double().sum(dim=1)
    assert relative_error(total[:, :-2], expected_gradient(net, acts, grads) / 2) <= 1e-5
    assert total[:, -2:].tolist() == [[7.0, 7.0]]  # loss and terms carry no factor


@pytest.mark.parametrize("rows", [64, 128, 2048, 10_048, 16_896, 1_000_000 // 64 * 64])
@pytest.mark.parametrize("models", [1, 3, 10, 200])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_every_part_has_rows_and_all_rows_are_in_one(rows, models, precision):
    for widths in WIDTHS:
        net, config = (
            layout_of(MLPShape(widths), precision),
            config_for(precision, (9, 0), rows, models),
        )
        splits, chunk = split_rows(net, config, models, rows)
        assert chunk % config.grad_rows == 0
        assert (splits - 1) * chunk < rows <= splits * chunk


@pytest.mark.parametrize("rows", [10_112, 16_896])
def test_long_tasks_fill_the_multiprocessors_once(rows):
    net = layout_of(MLPShape((3, 256, 256, 256, 256, 2)), "fp16")
    config = config_for("fp16", (9, 0), rows, 1)
    splits, _ = split_rows(net, config, 1, rows)
    programs = config.grad_programs
    assert 0.9 * programs <= splits * tasks_of(net, config) <= programs


def test_twice_the_programs_have_about_twice_the_parts():
    net = layout_of(MLPShape((3, 256, 256, 256, 256, 2)), "fp16")
    config = config_for("fp16", (9, 0), 16_896, 1)
    parts = {
        programs: split_rows(net, replace(config, grad_programs=programs), 1, 16_896)[0]
        for programs in (132, 264)
    }
    assert 1.8 * parts[132] <= parts[264] <= 2.2 * parts[132]


@pytest.mark.parametrize("rows", [64, 192, 512])
@pytest.mark.usefixtures("poisoned")
def test_fewer_rows_than_the_buffers_have(device, rows):
    net, config = (
        layout_of(MLPShape((3, 20, 2), "relu"), "fp16"),
        config_for("fp16", (9, 0), 512, 2),
    )
    acts = columns_of(net, 2, 512, 0, "fp16", device)
    grads = columns_of(net, 2, 512, 1, "fp16", device)
    tile_parts = torch.ones(2, net.layers + 1, rows // config.rows, device=device)
    splits, _ = split_rows(net, config, 2, 512)
    assert splits == 2
    parts = empty_parts(tile_parts, 2, splits, net.shape.num_parameters)
    weight_gradients(acts, grads, tile_parts, parts, net, config, rows=rows)
    wanted = expected_gradient(net, acts[:, :rows], grads[:, :rows])
    assert relative_error(parts.double().sum(dim=1), wanted) <= 1e-5
