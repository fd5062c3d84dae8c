"""The perceptron in the form for Hopper GPUs: against float64, the portable form, and itself."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from flashpoint.kernels import MLPShape, forms, mlp
from flashpoint.kernels.cuda import capture, side_stream
from flashpoint.kernels.mlp import launches, operator
from flashpoint.kernels.mlp.chunks import training_chunks_of
from flashpoint.kernels.mlp.config import config_for, in_use
from flashpoint.kernels.mlp.layout import Saved, layout_of

from .networks import TOLERANCE, exact, make_batch, make_network, relative_error, tensors_of

HOPPER = (9, 0)
# Both forms round the same numbers to halves; now and then the last bit before that differs.
SAME = 1e-4
NETS = {
    "denoiser": MLPShape((3, 256, 256, 256, 256, 2)),
    "64": MLPShape((3, 64, 64, 2), slopes=2),
    "uneven": MLPShape((5, 100, 200, 64, 30), "relu"),
    "many inputs": MLPShape((32, 96, 64, 64), "silu"),
    "gelu": MLPShape((3, 256, 256, 2), "gelu"),
    "tanh": MLPShape((3, 200, 200, 200, 2), "tanh", bias=False),
    "negative slope": MLPShape((3, 130, 70, 2), "leaky_relu", negative_slope=-0.2),
    "linear input": MLPShape((3, 96, 96, 96, 2), linear_input=True, bias=False),
    "512": MLPShape((3, 512, 512, 512, 2)),
    "512 uneven": MLPShape((4, 300, 512, 64, 2), "silu", bias=False),
}


@contextmanager
def in_form(form, tile=64):
    """Makes perceptrons take a form, with so many rows in a tile of that for Hopper GPUs."""
    config = config_for("fp16", HOPPER, 64, 1, "perceptron")
    with in_use("perceptron", replace(config, form=form, hopper_rows=tile)):
        yield


@pytest.fixture
def compiled(monkeypatch):
    """Lets the form follow from the table and the network alone."""
    monkeypatch.setattr(forms, "problem_of_gluon", lambda: None)
    monkeypatch.setattr(forms, "_problem_of_interpreter", lambda: None)


@pytest.mark.parametrize("shape", NETS.values(), ids=NETS)
@pytest.mark.parametrize("form", ["portable", "hopper"])
@pytest.mark.usefixtures("compiled")
def test_saved_tensors_tell_their_form(shape, form):
    net = layout_of(shape, "fp16")
    with in_form(form):
        rows, weights = launches.saved_layout(shape, "fp16", torch.device("cpu"))
    chunks = training_chunks_of(net)
    assert rows == (chunks.rows if form == "hopper" else net)
    saved = Saved(torch.empty(1, 0, 16), torch.empty(1, weights), torch.empty(1, 0))
    assert launches._form_of(saved, shape, "fp16") == form


@pytest.mark.parametrize("shape", [MLPShape((33, 64, 64, 2)), MLPShape((3, 64, 2))])
@pytest.mark.usefixtures("compiled")
def test_other_networks_take_the_portable_form(shape):
    with in_form("hopper"):
        rows, _ = launches.saved_layout(shape, "fp16", torch.device("cpu"))
    assert rows == layout_of(shape, "fp16")


@pytest.mark.parametrize("form", ["portable", "hopper"])
@pytest.mark.parametrize("rows", [0, 65])
@pytest.mark.usefixtures("compiled")
def test_compilers_see_the_tensors_of_the_form(form, rows):
    shape = NETS["negative slope"]
    x, flat = torch.empty(2, rows, 3), torch.empty(2, shape.num_parameters)
    network = operator.network_of(x, shape.unpack(flat), shape, "fp16")
    with in_form(form):
        y, saved = operator._fake_forward(*network, save=True)
        net, weights = launches.saved_layout(shape, "fp16", x.device)
    assert y.shape == (2, rows, 2)
    padded = -(-rows // 128) * 128
    assert [tuple(each.shape) for each in saved] == [
        (2, padded, net.activation_columns), (2, weights), flat.shape, (2, padded, net.z_columns),
    ]  # fmt: skip


def passes(form, x, flat, grad_y, shape, precision="fp16", tile=64):
    """Returns y with and without gradients to follow, and the gradients of x and of all layers."""
    x, flat = x.detach().requires_grad_(), flat.detach().requires_grad_()
    weights, biases, slope = shape.unpack(flat)
    arguments = x, weights, biases, slope
    options = {
        "activation": shape.activation,
        "negative_slope": shape.negative_slope,
        "linear_input": shape.linear_input,
        "precision": precision,
        "backend": "triton",
    }
    with in_form(form, tile):
        y = mlp(*arguments, **options)
        grad_x, grad = torch.autograd.grad(y, [x, flat], grad_y)
        with torch.no_grad():
            alone = mlp(*arguments, **options)
    return alone, y.detach(), grad_x, grad


def gradients_alone(x, flat, grad_y, shape, precision, tile):
    """Returns the gradient of x, and that of all layers, each computed without the other."""
    layers = tuple(tensors_of(shape.unpack(flat)))
    grad_x, grad = torch.full_like(x, torch.nan), torch.full_like(flat, torch.nan)
    with in_form("hopper", tile):
        _, saved = launches.forward(x, layers, shape, precision)
        assert launches._form_of(saved, shape, precision) == "hopper"
        launches.write_gradients(grad_y, saved, shape, precision, grad_x=grad_x, grad=None)
        launches.write_gradients(grad_y, saved, shape, precision, grad_x=None, grad=grad)
    return {"x": grad_x, "layers": grad}


def compare(shape, rows, models, device, precision="fp16", tile=64):
    """Compares the passes with float64, with the portable form, and with themselves once more."""
    flat = make_network(shape, models, device=device)
    x, grad_y = make_batch(shape, rows, models, device=device)
    alone, *actual = passes("hopper", x, flat, grad_y, shape, precision, tile)
    assert torch.equal(alone, actual[0])
    for number, name in ((1, "x"), (2, "layers")):  # each gradient without the other one
        apart = gradients_alone(x, flat, grad_y, shape, precision, tile)[name]
        assert torch.equal(apart, actual[number])
    value, weight, point = TOLERANCE[precision]
    if rows > 1:  # one row's gradient jumps if rounding moves a z across the kink
        for one, other, most in zip(
            actual, exact(flat, shape, x, grad_y), (value, point, weight), strict=True
        ):
            assert relative_error(one, other) <= most
    _, *portable = passes("portable", x, flat, grad_y, shape, precision)
    for one, other in zip(actual[:2], portable[:2], strict=True):
        assert relative_error(one, other) <= SAME
    for one, other in zip(
        *(tensors_of(shape.unpack(each[-1])) for each in (actual, portable)), strict=True
    ):
        assert relative_error(one, other) <= SAME
    again = passes("hopper", x, flat, grad_y, shape, precision, tile)
    assert all(map(torch.equal, again, (alone, *actual)))


@pytest.fixture
def hopper(device):
    if torch.cuda.get_device_capability(device) != HOPPER:
        pytest.skip("needs a GPU of compute capability 9.0")


on_hopper = pytest.mark.usefixtures("hopper", "poisoned")


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("shape", NETS.values(), ids=NETS)
@pytest.mark.parametrize(("rows", "models", "tile"), [(1, 1, 64), (65, 2, 64), (200, 2, 128)])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_both_forms_of_the_passes_agree(device, shape, rows, models, tile, precision):
    compare(shape, rows, models, device, precision, tile)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("net", ["denoiser", "512"])
@pytest.mark.parametrize("tile", [64, 128])
def test_programs_take_several_tiles(device, net, tile):
    compare(NETS[net], 40_000, 1, device, tile=tile)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("net", ["denoiser", "512", "512 uneven"])
def test_one_program_takes_all_tiles(device, monkeypatch, net):
    from flashpoint.kernels.mlp import hopper_kernel

    monkeypatch.setattr(hopper_kernel, "slots", lambda *_: 1)
    compare(NETS[net], 200, 2, device)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("rows", [0, 65])
@pytest.mark.parametrize("models", [0, 2])
def test_no_rows_and_no_models(device, rows, models):
    shape = NETS["64"]
    flat = make_network(shape, models, device=device)
    x, grad_y = make_batch(shape, rows, models, device=device)
    net = layout_of(shape, "fp16")
    layers = tuple(tensors_of(shape.unpack(flat)))
    with in_form("hopper"):
        y, saved = launches.forward(x, layers, shape, "fp16")
        grad = torch.full_like(flat, torch.nan)
        launches.write_gradients(grad_y, saved, shape, "fp16", grad_x=None, grad=grad)
    assert saved.weights.shape[1] == training_chunks_of(net).starts[-1]
    assert y.shape == grad_y.shape
    if not rows:
        assert not grad.any()


@pytest.mark.gpu
@on_hopper
def test_given_tensors_may_have_any_strides_and_dtype(device):
    shape = NETS["64"]
    flat = make_network(shape, 1, device=device)
    x, grad_y = (each[0] for each in make_batch(shape, 70, device=device))
    apart = torch.stack([x, torch.full_like(x, torch.nan)], 1)[:, 0].mT.contiguous().mT
    same = grad_y[:1].expand_as(grad_y)

    def gradients(x, grad_y, form, dtype):
        layers = (each[0].detach().to(dtype) for each in tensors_of(shape.unpack(flat)))
        leaves = [each.requires_grad_() for each in layers]
        given = leaves[:3], leaves[3:6], leaves[6]
        with in_form(form):
            y = mlp(x.to(dtype), *given, precision="fp16", backend="triton")
            return y.detach(), *torch.autograd.grad(y, leaves, grad_y.to(dtype))

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        ours = gradients(apart, same, "hopper", dtype)
        theirs = gradients(x, same.contiguous(), "portable", dtype)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == dtype
            assert relative_error(one, other) <= (SAME if dtype == torch.float32 else 2e-2)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4])
@pytest.mark.parametrize("rows", [100, 17_000])  # measured by programs, and by PyTorch
def test_gradients_of_any_size_are_scaled(device, scale, rows):
    shape = NETS["denoiser"]
    flat = make_network(shape, 1, device=device)
    x, grad_y = make_batch(shape, rows, device=device)
    ours = passes("hopper", x, flat, scale * grad_y, shape)[-1]
    theirs = passes("portable", x, flat, grad_y, shape)[-1]
    assert relative_error(ours / scale, theirs) <= 1e-3


@pytest.mark.gpu
@on_hopper
def test_the_passes_replay_in_a_graph(device):
    shape = NETS["denoiser"]
    flat = make_network(shape, 1, device=device)
    x, grad_y = make_batch(shape, 200, device=device)
    layers = tuple(tensors_of(shape.unpack(flat)))
    y, grad, grad_x = torch.empty_like(grad_y), torch.empty_like(flat), torch.empty_like(x)

    def once():
        _, saved = launches.forward(x, layers, shape, "fp16", y=y)
        launches.write_gradients(grad_y, saved, shape, "fp16", grad_x=grad_x, grad=grad)

    with in_form("hopper"):
        with side_stream() as stream:
            once()
        graph = capture(once, stream)
    x.copy_(x.flip(1))
    graph.replay()
    expected = passes("hopper", x, flat, grad_y, shape)[1:]
    assert all(map(torch.equal, (y, grad_x, grad), expected))


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("shape", [NETS["64"], NETS["tanh"]], ids=["64", "tanh"])
@pytest.mark.parametrize("rows", [1, 65, 129])
def test_operators_save_what_compilers_are_told(device, shape, rows):
    """Also two runs give equal bits, in rows that no tile covers too."""
    flat = make_network(shape, 2, device=device)
    x, _ = make_batch(shape, rows, 2, device=device)
    network = operator.network_of(x, shape.unpack(flat), shape, "fp16")
    with in_form("hopper"):
        (_, saved), (_, again) = (operator._mlp(*network, save=True) for _ in range(2))
        _, told = operator._fake_forward(*network, save=True)
    assert all(map(torch.equal, saved, again))
    for one, other in zip(saved, told, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


@pytest.mark.gpu
@on_hopper
def test_compiled_code_computes_the_same_for_any_number_of_rows(device):
    shape = NETS["64"]
    layers = [each[0] for each in tensors_of(shape.unpack(make_network(shape, device=device)))]
    leaves = [layer.detach().requires_grad_() for layer in layers]
    weights, biases, slope = leaves[:3], leaves[3:6], leaves[6]
    seen = []

    def counted(graph, _):
        seen.append(graph)
        return make_boxed_func(graph.forward)

    def eager(x):
        return mlp(x, weights, biases, slope, precision="fp16", backend="triton")

    backend = aot_autograd(fw_compiler=counted)
    run = torch.compile(eager, backend=backend, dynamic=True, fullgraph=True)

    def results(function, x, grad_y):
        y = function(x)
        return y.detach(), *torch.autograd.grad(y, [x, *leaves], grad_y)

    with in_form("hopper"):
        for rows in (70, 9000, 20_000):
            x, grad_y = (each[0] for each in make_batch(shape, rows, device=device))
            x.requires_grad_()
            assert all(map(torch.equal, results(run, x, grad_y), results(eager, x, grad_y)))
    assert len(seen) == 2  # forwards and backwards, once each
