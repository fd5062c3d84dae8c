"""Operand weights in chunks: their layout, the kernel that writes it, and what it covers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flashpoint.kernels import MLPShape
from flashpoint.kernels.mlp.activation import TABLE
from flashpoint.kernels.mlp.chunks import (
    SLICE,
    chunks_of,
    gap_of_chain,
    guide_chunks_of,
    ring_of,
)
from flashpoint.kernels.mlp.config import config_for, to_operand
from flashpoint.kernels.mlp.layout import layout_of

CONFIG = config_for("fp16", (9, 0), 5000, 1, "chain")
DENOISERS = {
    "two parts": ((3, 256, 200, 2), 2),
    "narrow": ((3, 64, 64, 2), 2),
    "uneven": ((9, 100, 200, 64, 3), 3),
    "many coordinates": ((21, 128, 100, 18), 18),
    "wide": ((3, 512, 300, 130, 2), 2),
}
CLASSIFIERS = {
    "one part, two parts": ((3, 100, 200, 70, 5), 2),
    "two slices in a chunk": ((4, 130, 64, 140, 40), 3),
    "two hidden layers": ((12, 200, 130, 3), 10),
}


def padded(weight: Tensor, rows: int, columns: int) -> Tensor:
    """Returns weights [M, out, in] with zeros around them."""
    return F.pad(weight, (0, columns - weight.shape[2], 0, rows - weight.shape[1]))


def pieces_of(weights: Tensor, net) -> list[Tensor]:
    """Returns each piece as a matrix [M, out, in], put together from its blocks."""
    found = []
    for piece, start in zip(net.pieces, net.starts, strict=False):
        blocks = weights[:, start : start + piece.size]
        order = (piece.across, piece.down) if piece.by_input else (piece.down, piece.across)
        blocks = blocks.unflatten(1, (*order, piece.height, piece.width))
        if piece.by_input:
            blocks = blocks.transpose(1, 2)
        found.append(blocks.transpose(2, 3).flatten(3, 4).flatten(1, 2))
    return found


def first_operand(weight: Tensor, net) -> Tensor:
    """Returns the weights of x_t twice, of which the second meet the rest of each coordinate."""
    of_points = padded(weight[..., : net.dim], net.parts[0] * net.part, net.points)
    return torch.cat((of_points, of_points), dim=2)


def written(net, models: int = 2) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Returns random weights of each layer, rounded, and the pieces that the kernel writes."""
    from flashpoint.kernels.mlp.operand_weights import operands_of

    shape, precision = net.net.shape, net.net.precision
    # Triton's interpreter truncates to bf16: these numbers need no rounding.
    flat = to_operand(torch.randn(models, shape.num_parameters), precision).float()
    weights = tuple(to_operand(weight, precision) for weight in shape.unpack(flat)[0])
    return weights, pieces_of(operands_of(flat, net), net)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", DENOISERS)
def test_chunks_of_a_denoiser_are_its_weights(name, precision):
    pytest.importorskip("triton")
    widths, dim = DENOISERS[name]
    net = chunks_of(layout_of(MLPShape(widths), precision), dim)
    weights, pieces = written(net)
    assert torch.equal(pieces[0], first_operand(weights[0], net))
    for layer, piece in enumerate(pieces[1:-1], start=1):
        rows, columns = net.parts[layer] * net.part, net.parts[layer - 1] * net.part
        assert torch.equal(piece, padded(weights[layer], rows, columns))
    assert torch.equal(pieces[-1], padded(weights[-1], net.points, net.parts[-1] * net.part))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_chunks_of_a_guide_go_forwards_and_back(name):
    pytest.importorskip("triton")
    widths, dim = CLASSIFIERS[name]
    net = guide_chunks_of(layout_of(MLPShape(widths), "fp16"), dim)
    weights, pieces = written(net)
    between = len(net.parts) - 1
    assert torch.equal(pieces[0], first_operand(weights[0], net))
    forwards, slices = pieces[1 : 1 + between], pieces[1 + between : 3 + between]
    for layer, piece in enumerate(forwards, start=1):
        rows, columns = net.parts[layer] * net.part, net.parts[layer - 1] * net.part
        assert torch.equal(piece, padded(weights[layer], rows, columns))
    for piece in slices:
        columns = net.parts[-1] * net.part
        assert torch.equal(piece, padded(weights[-2], net.slices * SLICE, columns))
    for there, back in zip(forwards, reversed(pieces[3 + between : -1]), strict=True):
        assert torch.equal(there, back)
    assert torch.equal(pieces[-1], padded(weights[-1], net.classes, net.slices * SLICE))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_blocks_of_a_guide_lie_in_the_order_of_their_use(name):
    widths, dim = CLASSIFIERS[name]
    net = guide_chunks_of(layout_of(MLPShape(widths), "fp16"), dim)
    assert net.chunks * net.part**2 == sum(piece.size for piece in net.pieces[1:-1])
    used = [(piece.layer, piece.by_input) for piece in net.pieces]
    between = list(range(1, len(net.parts)))
    wide = len(widths) - 3
    assert used == [
        (0, False), *((layer, False) for layer in between), (wide, False), (wide, False),
        *((layer, True) for layer in reversed(between)), (wide + 1, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("denoiser", "classifier", "dim", "precision", "reason"),
    [
        ((3, 256, 256, 2), None, 2, "fp16", None),
        ((3, 256, 256, 2), (3, 256, 512, 64), 2, "bf16", None),
        ((3, 256, 256, 2), None, 2, "tf32", "precision tf32"),
        ((3, 256, 2), None, 2, "fp16", "fewer than 2 hidden layers, 1"),
        ((3, 2), None, 2, "fp16", "fewer than 2 hidden layers, 0"),
        ((3, 512, 257, 2), None, 2, "fp16", None),
        ((3, 512, 257, 2), (3, 100, 200, 500, 5), 2, "fp16", None),
        ((3, 256, 513, 2), None, 2, "fp16", "a hidden layer of 513, wider than 512"),
        ((34, 64, 64, 33), None, 33, "fp16", "points of 33 coordinates, more than 32"),
        ((3, 64, 64, 2), (3, 64, 64, 65), 2, "fp16", "65 classes, more than 64"),
        ((3, 64, 64, 2), (3, 64, 513, 5), 2, "fp16", "a hidden layer of 513, wider than 512"),
        ((3, 64, 64, 2), (3, 300, 64, 5), 2, "fp16", "a hidden layer of 300, wider than 256"),
        (
            (3, 64, 64, 2),
            (3, 64, 32, 64, 32, 5),
            2,
            "fp16",
            None,
        ),
        (
            (3, 64, 64, 2),
            (3, 64, 32, 64, 32, 64, 5),
            2,
            "fp16",
            "a classifier with 4 runs of equal layers, more than 3",
        ),
        ((3, 64, 64, 2), (3, *[64] * 20, 5), 2, "fp16", None),
        ((3, *[64, 32] * 4, 2), None, 2, "fp16", "7 runs of equal layers, more than 6"),
        ((3, *[64] * 20, 2), None, 2, "fp16", None),
        ((3, 64, 64, 2), (3, 64, 5), 2, "fp16", "fewer than 2 hidden layers, 1"),
    ],
)
def test_networks_outside_are_named(denoiser, classifier, dim, precision, reason):
    guide = None if classifier is None else layout_of(MLPShape(classifier), precision)
    net = layout_of(MLPShape(denoiser), precision)
    assert gap_of_chain(net, guide, dim, CONFIG) == reason


@pytest.mark.parametrize(
    ("hidden", "starts", "lengths"),
    [
        ((100, 500), (), ()),
        ((100, 200, 500), (1,), (1,)),
        ((64,) * 6, (1,), (4,)),
        ((64, 64, 128, 500), (1, 2), (1, 1)),
        ((64, 64, 64, 500), (1,), (2,)),
    ],
)
def test_runs_of_a_guide_end_before_its_last_hidden_layer(hidden, starts, lengths):
    net = guide_chunks_of(layout_of(MLPShape((3, *hidden, 5)), "fp16"), 2)
    assert (net.run_starts, net.run_lengths) == (starts, lengths)


@pytest.mark.parametrize("activation", TABLE)
def test_a_guide_keeps_signs_where_they_tell_the_derivative(activation):
    shape = MLPShape((3, 100, 200, 500, 5), activation)
    guide = layout_of(shape, "fp16")
    net = layout_of(MLPShape((3, 256, 256, 2), activation), "fp16")
    assert gap_of_chain(net, guide, 2, CONFIG) is None
    chunks = guide_chunks_of(guide, 2)
    exponential = activation in ("silu", "gelu", "tanh")
    assert chunks.signs == (0 if exponential else 3 + 8)
    assert chunks.z_columns == (3 * 128 + 8 * 64 if exponential else 0)


def test_a_guide_with_exponentials_has_fewer_runs():
    net = layout_of(MLPShape((3, 256, 256, 2)), "fp16")
    relu, tanh = (
        layout_of(MLPShape((3, 64, 32, 64, 32, 5), activation), "fp16")
        for activation in ("relu", "tanh")
    )
    assert gap_of_chain(net, relu, 2, CONFIG) is None
    assert gap_of_chain(net, tanh, 2, CONFIG) == (
        "a classifier with tanh and 3 runs of equal layers, more than 2"
    )


def test_a_deep_guide_keeps_z_where_its_signs_leave_no_room():
    net = layout_of(MLPShape((3, 256, 256, 2)), "fp16")
    relu, silu = (
        layout_of(MLPShape((3, *[256] * 80, 5), name), "fp16") for name in ("relu", "silu")
    )
    assert gap_of_chain(net, relu, 2, CONFIG) == (
        "shared memory has room for 1 of the 2 chunks of weights that it needs"
    )
    assert gap_of_chain(net, silu, 2, CONFIG) is None


def test_chunks_fit_beside_what_stays_in_shared_memory():
    wide = layout_of(MLPShape((33, 256, 256, 32)), "fp16")
    guide = layout_of(MLPShape((33, 256, 256, 256, 512, 64)), "fp16")
    assert gap_of_chain(wide, None, 32, CONFIG) is None
    rows = replace(CONFIG, hopper_rows=128)
    assert gap_of_chain(wide, guide, 32, rows) == (
        "shared memory has room for 1 of the 2 chunks of weights that it needs"
    )
    narrow = chunks_of(layout_of(MLPShape((3, 64, 64, 2)), "fp16"), 2)
    assert ring_of(CONFIG, narrow, None) == CONFIG.hopper_ring
    states = chunks_of(layout_of(MLPShape((3, 256, 256, 2)), "fp16"), 2)
    assert ring_of(replace(CONFIG, hopper_ring=9), states, None) == 6


@pytest.mark.parametrize(
    ("rows", "dim", "room"), [(64, 2, 4), (128, 2, 2), (64, 32, 2), (128, 32, 0)]
)
def test_chunks_fit_beside_the_activations_of_a_wide_layer(rows, dim, room):
    layout = layout_of(MLPShape((dim + 1, 300, 512, dim)), "fp16")
    config = replace(CONFIG, hopper_rows=rows)
    assert ring_of(config, chunks_of(layout, dim), None) == room
    gap = f"shared memory has room for {room} of the 2 chunks of weights that it needs"
    assert gap_of_chain(layout, None, dim, config) == (None if room >= 2 else gap)
