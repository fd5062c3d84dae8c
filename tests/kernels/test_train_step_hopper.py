"""The training step for Hopper GPUs against the portable one, and the networks that it covers."""

from dataclasses import replace

import pytest
import torch

from flashpoint.kernels import (
    MLPShape,
    adamw_,
    adamw_state,
    shadow_of,
    training_sums,
    workspace_of,
)
from flashpoint.kernels.cuda import capture, side_stream
from flashpoint.kernels.mlp.chunks import gap_of_training, ring_of, training_chunks_of
from flashpoint.kernels.mlp.config import config_for, in_use
from flashpoint.kernels.mlp.layout import layout_of
from flashpoint.kernels.reduce_grad.reference import empty_parts
from flashpoint.kernels.train_step import kernel

from .networks import relative_error
from .training import CLASS_WIDTH, CLASSES, make_data, make_parameters

HOPPER = (9, 0)
# Both forms round the same numbers to halves; now and then the last bit before that differs.
TOLERANCE = 1e-4


@pytest.mark.parametrize(
    ("widths", "precision", "reason"),
    [
        ((3, 256, 256, 256, 256, 2), "fp16", None),
        ((32, 100, 64, 64), "bf16", None),
        ((3, 256, 256, 2), "tf32", "precision tf32"),
        ((33, 256, 256, 2), "fp16", "33 inputs, more than 32"),
        ((3, 256, 256, 65), "fp16", "65 outputs, more than 64"),
        ((3, 512, 257, 300, 2), "fp16", None),
        ((3, 256, 513, 2), "fp16", "a hidden layer of 513, wider than 512"),
        ((3, 256, 2), "fp16", "fewer than 2 hidden layers, 1"),
        ((3, *[64] * 100, 2), "fp16", None),
        (
            (32, *[512] * 3, 64),
            "fp16",
            "shared memory has room for 2 of the 3 chunks of weights that it needs",
        ),
    ],
)
def test_which_networks_are_trained_in_registers(widths, precision, reason):
    assert gap_of_training(layout_of(MLPShape(widths), precision)) == reason


@pytest.mark.parametrize(
    ("inputs", "width", "outputs", "most"), [(32, 256, 64, 32), (3, 512, 2, 24)]
)
def test_three_chunks_have_room_beside_the_deepest_networks_that_are_covered(
    inputs, width, outputs, most
):
    config = config_for("fp16", HOPPER, 64, 1)
    deepest, deeper = (
        layout_of(MLPShape((inputs, *[width] * depth, outputs)), "fp16")
        for depth in (most, most + 1)
    )
    assert gap_of_training(deepest) is None
    assert ring_of(config, training_chunks_of(deepest), None) == 3
    assert gap_of_training(deeper) == (
        "shared memory has room for 2 of the 3 chunks of weights that it needs"
    )


def test_the_stream_has_each_chunk_in_the_order_of_its_use():
    """A chunk of its own number stands for each chunk of the weights."""
    shape = MLPShape((3, 256, 100, 256, 2), bias=False, slopes=1)
    net = training_chunks_of(layout_of(shape, "fp16"))
    flat = torch.zeros(1, shape.num_parameters)
    for layer, weight in enumerate(shape.unpack(flat).weights):
        out, width = torch.meshgrid(*map(torch.arange, weight.shape[1:]), indexing="ij")
        weight[0] = 100 * layer + 10 * (out // net.part) + width // net.part
    chunks = shadow_of(flat, shape, "fp16", chunked=True).packed[0, net.starts[1] : net.starts[-2]]
    assert chunks.view(net.chunks, -1)[:, 0].tolist() == [
        *(100, 101),  # 256 -> 100: one output part
        *(200, 210),
        *(200, 210),  # back: one input part
        *(100, 101),
    ]


def sums_of(
    module,
    parameters,
    shape,
    data,
    room,
    precision,
    *,
    first_row=0,
    rows=None,
    add=False,
    **options,
):
    """Returns the sums of a step, added up over their parts, in a workspace with room for rows."""
    models, size = parameters.shape
    buffers, splits = module.buffers_of(data, shape, models, room, precision)
    sums = empty_parts(parameters, models, splits, size + 2)
    before = 2.0**-10 if add else torch.nan
    sums.fill_(before)
    shadow = shadow_of(parameters, shape, precision, chunked=module is not kernel)
    seed = torch.arange(models, device=parameters.device)
    module.training_sums(
        parameters, shape, data, sums, shadow, buffers, batch_size=room, seed=seed,
        first_row=first_row, rows=room - first_row if rows is None else rows, add=add, **options,
    )  # fmt: skip
    return sums.sum(dim=1) - (splits * before if add else 0.0)


def agree(actual, wanted, shape):
    """Compares the gradient of each weight, bias and slope, the loss and the number of terms."""
    (ours, theirs), ends = (shape.unpack(each[:, :-2]) for each in (actual, wanted)), (-2, -1)
    for a, b in zip(ours, theirs, strict=True):
        for one, other in zip(
            *((x if isinstance(x, tuple) else (x,)) for x in (a, b)), strict=True
        ):
            assert one is other is None or relative_error(one, other) <= TOLERANCE
    for end in ends:
        assert relative_error(actual[:, end], wanted[:, end]) <= TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (MLPShape((3, 256, 256, 256, 256, 2), bias=False), {}),
        (MLPShape((3, 256, 256, 256, 256, 2), slopes=4), {"first_row": 70}),
        (MLPShape((3, 128, 128, 2), "leaky_relu", negative_slope=-0.2), {"rows": 100}),
        (MLPShape((3, 96, 96, 96, 2), linear_input=True), {"first_row": 70, "rows": 100}),
        (MLPShape((3, 512, 512, 512, 512, 2), slopes=4), {"first_row": 70}),
        (MLPShape((3, 300, 300, 300, 2), linear_input=True, bias=False), {"rows": 100}),
    ],
    ids=["no bias", "slopes", "negative slope", "linear input", "wide slopes", "wide no bias"],
)
@pytest.mark.parametrize("tile", [64, 128])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.usefixtures("poisoned")
def test_other_networks_and_parts_of_a_batch(device, shape, options, tile, add):
    if torch.cuda.get_device_capability() != HOPPER:
        pytest.skip("needs a Hopper GPU")
    from flashpoint.kernels.train_step import hopper

    parameters, data = make_parameters(shape, 2, device), make_data(device, "denoiser", 2)
    options = {"step": 3, "refresh": None, "add": add} | options
    wanted = sums_of(kernel, parameters, shape, data, 300, "fp16", **options)
    config = replace(config_for("fp16", HOPPER, 300, 2), form="hopper", hopper_rows=tile)
    with in_use("training", config):
        actual = sums_of(hopper, parameters, shape, data, 300, "fp16", **options)
    agree(actual, wanted, shape)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["denoiser", "classifier", "conditional"])
@pytest.mark.parametrize(
    "hidden",
    [(256, 256, 256, 256), (64, 64), (100, 256, 130), (512, 512, 512), (512, 200, 384)],
)
@pytest.mark.parametrize(("rows", "models"), [(1, 1), (63, 2), (200, 1), (20000, 2)])
@pytest.mark.parametrize("refresh", [None, 2])
@pytest.mark.usefixtures("poisoned")
def test_both_forms_of_a_step_agree(device, kind, hidden, rows, models, refresh):
    if torch.cuda.get_device_capability() != HOPPER:
        pytest.skip("needs a Hopper GPU")
    from flashpoint.kernels.train_step import hopper

    inputs = 3 + CLASS_WIDTH * (kind == "conditional")
    shape = MLPShape((inputs, *hidden, CLASSES if kind == "classifier" else 2))
    parameters = make_parameters(shape, models, device)
    data = make_data(device, kind, models, points=3000)
    options = {"step": 3, "refresh": refresh}
    wanted = sums_of(kernel, parameters, shape, data, rows, "fp16", **options)
    actual = sums_of(hopper, parameters, shape, data, rows, "fp16", **options)
    agree(actual, wanted, shape)
    again = sums_of(hopper, parameters, shape, data, rows, "fp16", **options)
    assert torch.equal(actual, again)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("activation", ["prelu", "relu", "leaky_relu", "silu", "gelu", "tanh"])
@pytest.mark.parametrize("width", [256, 512])
@pytest.mark.usefixtures("poisoned")
def test_both_forms_agree_for_every_activation(device, width, activation, precision):
    if torch.cuda.get_device_capability() != HOPPER:
        pytest.skip("needs a Hopper GPU")
    from flashpoint.kernels.train_step import hopper

    shape = MLPShape((3, width, width, width, 2), activation)
    parameters, data = make_parameters(shape, 1, device), make_data(device, "denoiser")
    options = {"step": 3, "refresh": None}
    wanted = sums_of(kernel, parameters, shape, data, 500, precision, **options)
    actual = sums_of(hopper, parameters, shape, data, 500, precision, **options)
    agree(actual, wanted, shape)


def test_sums_that_are_added_to_are_told_apart():
    """The helper of the GPU tests, with the kernels that run everywhere."""
    shape = MLPShape((3, 16, 16, 2))
    parameters, data = make_parameters(shape, 2, "cpu"), make_data("cpu", "denoiser", 2)
    options = {"step": 3, "refresh": None, "first_row": 5, "rows": 20}
    wanted, actual = (
        sums_of(kernel, parameters, shape, data, 40, "fp16", add=add, **options)
        for add in (False, True)
    )
    agree(actual, wanted, shape)
    assert actual[0, -1] == 20 * 2


def test_steps_lower_the_loss():
    shape = MLPShape((3, 64, 64, 2))
    data, start = make_data("cpu", "denoiser", points=100), make_parameters(shape, 1, "cpu")
    workspace = workspace_of(start, shape, data, 2048)
    options = {"batch_size": 2048, "seed": torch.zeros(1, dtype=torch.int64), "step": 99}
    before = training_sums(start, shape, data, workspace, **options)[0, 0, -2].item()
    after = training_sums(trained(start, shape, data), shape, data, workspace, **options)
    assert after[0, 0, -2] < 0.9 * before


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
def test_trainings_in_both_forms_agree(device):
    """Steps and their updates in a graph: AdamW writes the weights in the order of the form."""
    if torch.cuda.get_device_capability() != HOPPER:
        pytest.skip("needs a Hopper GPU")
    shape = MLPShape((3, 256, 256, 256, 256, 2))
    data, start = make_data(device, "denoiser", points=3000), make_parameters(shape, 1, device)
    portable = config_for("fp16", HOPPER, 2048, 1)
    ends = []
    for form in ("portable", "hopper", "hopper"):
        with in_use("training", replace(portable, form=form)):
            ends.append(trained(start.clone(), shape, data, form))
    assert relative_error(ends[1] - start, ends[0] - start) <= 1e-2
    assert torch.equal(ends[1], ends[2])


def in_order(shadow):
    """Returns the form whose kernels read a shadow."""
    return "hopper" if shadow.chunked else "portable"


def trained(parameters, shape, data, form="PyTorch"):
    """Returns parameters after 20 steps in a form; a graph replays all but the first on a GPU."""
    workspace = workspace_of(parameters, shape, data, 2048)
    assert form == ("PyTorch" if workspace.shadow is None else in_order(workspace.shadow))
    state = adamw_state(parameters)
    step, seed = torch.zeros(2, 1, dtype=torch.int64, device=parameters.device)

    def once():
        sums = training_sums(
            parameters, shape, data, workspace, batch_size=2048, seed=seed, step=step
        )
        step.add_(1)
        adamw_(parameters, sums, state, lr=1e-3, step=step, shadow=workspace.shadow)

    if not parameters.is_cuda:
        for _ in range(20):
            once()
        return parameters
    with side_stream() as stream:
        once()
    graph = capture(once, stream)
    for _ in range(19):
        graph.replay()
    return parameters
