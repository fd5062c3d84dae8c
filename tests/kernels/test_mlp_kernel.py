"""The fused perceptron against float64: values, all gradients, any shape, any precision."""

from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from flashpoint.kernels import adamw_, adamw_state, shadow_of
from flashpoint.kernels.mlp import ACTIVATIONS, MLPShape, reference
from flashpoint.kernels.mlp import kernel as mlp
from flashpoint.kernels.mlp.activation import TABLE
from flashpoint.kernels.mlp.config import to_operand

SMALL = (3, 32, 32, 2)
SIZES = (0, 1, 63, 64, 65, 1000)
# Largest error relative to float64 of outputs, weight gradients and input gradients; a gradient
# with respect to one row's input feels every z that rounding takes across zero.
TOLERANCE = {
    "fp32": (1e-5, 1e-5, 1e-5),
    "tf32x3": (1e-5, 1e-5, 1e-5),
    "tf32": (2e-3, 2e-2, 1e-1),
    "fp16": (2e-3, 2e-2, 1e-1),
    "bf16": (2e-2, 5e-2, 3e-1),
}
# The interpreter multiplies bf16 matrices wrongly.
PRECISIONS = ("fp32", "tf32x3", "fp16", "tf32", pytest.param("bf16", marks=pytest.mark.gpu))


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    difference = (actual.double() - expected.double()).norm()
    return (difference / expected.double().norm().clamp_min(1e-300)).item() if difference else 0.0


def make_network(shape, models=1, slope=None, device="cpu", seed=0):
    """Flat parameters [M, P] as PyTorch initialises linear layers, slopes from -0.5 to 0.5."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.rand(models, shape.num_parameters, generator=generator) * 2 - 1
    parameters = shape.unpack(flat)
    for weight in parameters.weights:
        weight *= weight.shape[2] ** -0.5
    if parameters.slope is not None:
        parameters.slope.mul_(0.5) if slope is None else parameters.slope.fill_(slope)
    return flat.to(device)


def make_batch(shape, rows, models=1, device="cpu", seed=1):
    """x and a gradient of y that does not average out, like that of a loss."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(models, rows, shape.widths[0], generator=generator)
    grad_y = 1 + torch.randn(models, rows, shape.widths[-1], generator=generator)
    return x.to(device), grad_y.to(device)


def exact(flat, shape, x, grad_y):
    """y, grad_x and the flat gradient by autograd in float64."""
    x = x.double().requires_grad_()
    flat = flat.double().requires_grad_()
    y = reference.mlp(x, shape.unpack(flat), shape)
    grads = torch.autograd.grad(y, [x, flat], grad_y.double(), materialize_grads=True)
    return y.detach(), *grads


def run(flat, shape, x, grad_y, precision):
    """The same on the kernels."""
    y, saved = mlp.forward_flat(x, flat, shape, precision)
    grad = torch.empty_like(flat)
    grad_x, _ = mlp.backward(grad_y, saved, shape, precision, grad=grad)
    return y, grad_x, grad


def check(flat, shape, x, grad_y, precision):
    y, grad_x, grad = run(flat, shape, x, grad_y, precision)
    expected_y, expected_grad_x, expected_grad = exact(flat, shape, x, grad_y)
    value, weight, point = TOLERANCE[precision]
    assert relative_error(y, expected_y) <= value
    assert relative_error(grad_x, expected_grad_x) <= point
    assert relative_error(grad, expected_grad) <= weight
    if precision == "fp32":
        for actual, expected in zip(
            tensors_of(shape.unpack(grad)), tensors_of(shape.unpack(expected_grad)), strict=True
        ):
            assert relative_error(actual, expected) <= weight


def tensors_of(parameters):
    weights, biases, slope = parameters
    return [*weights, *(biases or ()), *(() if slope is None else (slope,))]


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.usefixtures("poisoned")
def test_every_batch_size(device, rows):
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    check(flat, shape, *make_batch(shape, rows, device=device), "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.25, 1.7])
@pytest.mark.usefixtures("poisoned")
def test_slopes_of_either_sign(device, slope, precision):
    shape = MLPShape(SMALL)
    flat = make_network(shape, slope=slope, device=device)
    check(flat, shape, *make_batch(shape, 1000, device=device), precision)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.usefixtures("poisoned")
def test_activations(device, activation, precision):
    shape = MLPShape((3, 24, 24, 2), activation, negative_slope=0.2)
    flat = make_network(shape, device=device)
    check(flat, shape, *make_batch(shape, 300, device=device), precision)


@pytest.mark.parametrize("slope", [-0.3, 0.0, 1.5])
@pytest.mark.usefixtures("poisoned")
def test_fixed_slopes_of_either_sign(device, slope):
    """Of a negative slope h does not tell the sign of z, which is then kept."""
    shape = MLPShape((3, 24, 24, 2), "leaky_relu", negative_slope=slope)
    flat = make_network(shape, device=device)
    check(flat, shape, *make_batch(shape, 300, device=device), "fp32")


@pytest.mark.parametrize(
    ("widths", "options"),
    [
        ((2, 3), {}),
        ((1, 1, 1), {}),
        ((3, 256, 256, 2), {}),
        ((3, 100, 200, 500, 5), {"slopes": 3}),
        ((16, 16, 16, 16, 16), {"slopes": 3, "bias": False}),
        ((65, 40, 7), {"activation": "silu"}),
        ((784, 33, 784), {"activation": "relu"}),
        ((20, 130, 300, 3), {"activation": "gelu", "bias": False}),
        ((3, 16, 16, 16, 2), {"activation": "relu", "linear_input": True}),
        ((3, 20, 30, 40, 2), {"slopes": 2, "linear_input": True}),
        ((3, 16, 2), {"linear_input": True}),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.usefixtures("poisoned")
def test_widths(device, widths, options, precision):
    shape = MLPShape(widths, **options)
    flat = make_network(shape, device=device)
    check(flat, shape, *make_batch(shape, 65, device=device), precision)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    widths=st.lists(st.integers(1, 70), min_size=2, max_size=6),
    rows=st.integers(0, 130),
    models=st.integers(1, 3),
    activation=st.sampled_from(ACTIVATIONS),
    shared=st.booleans(),
    bias=st.booleans(),
    linear_input=st.booleans(),
)
def test_any_network(device, widths, rows, models, activation, shared, bias, linear_input):
    linear_input &= TABLE[activation].piecewise_linear and len(widths) > 2
    slopes = 1 if shared else max(1, len(widths) - 2 - linear_input)
    shape = MLPShape(tuple(widths), activation, slopes, bias=bias, linear_input=linear_input)
    flat = make_network(shape, models, device=device)
    check(flat, shape, *make_batch(shape, rows, models, device=device), "fp32")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.usefixtures("poisoned")
def test_models_are_independent(device, precision):
    shape = MLPShape((3, 40, 40, 40, 2), slopes=3)
    flat = make_network(shape, models=3, device=device)
    x, grad_y = make_batch(shape, 100, models=3, device=device)
    grad_y = grad_y * torch.tensor([1e-6, 1.0, 1e3], device=device)[:, None, None]
    together = run(flat, shape, x, grad_y, precision)
    for model in range(3):
        one = slice(model, model + 1)
        for alone, all_models in zip(
            run(flat[one], shape, x[one], grad_y[one], precision), together, strict=True
        ):
            assert relative_error(all_models[one], alone) <= 1e-6


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e4])
def test_gradient_scale(device, scale):
    """fp16 loses nothing of gradients of any magnitude."""
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, 500, device=device)
    check(flat, shape, x, grad_y * scale, "fp16")


@pytest.mark.parametrize("rows", [2048, pytest.param(131_072, marks=pytest.mark.gpu)])
def test_gradient_of_a_mean(device, rows):
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    x, target = make_batch(shape, rows, device=device)
    y = mlp.forward_flat(x, flat, shape, "fp16")[0]
    check(flat, shape, x, (y - target) * (2 / y.numel()), "fp16")


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_gradients_that_have_no_scale(device, value):
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, 70, device=device)
    grad_y = torch.zeros_like(grad_y)
    grad_y[0, 3, 1] = value
    _, grad_x, grad = run(flat, shape, x, grad_y, "fp16")
    if value == 0:
        assert not grad_x.any()
        assert not grad.any()
    else:
        assert not grad_x[0, 3].isfinite().all()
        assert not grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_overflow_reaches_the_output(device):
    shape = MLPShape((3, 16, 16, 2), "relu")
    flat = make_network(shape, device=device) * 300
    x, _ = make_batch(shape, 10, device=device)
    y, _ = mlp.forward_flat(x * 3000, flat, shape, "fp16")
    assert not y.isfinite().all()


@pytest.mark.parametrize("precision", ["fp16", "tf32", pytest.param("bf16", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("hidden", [(), (16,)])
def test_coordinates_keep_their_accuracy(device, hidden, precision):
    """Points that half precision cannot tell apart differ in the output by what they differ."""
    shape = MLPShape((2, *hidden, 1), "none", bias=False)
    flat = torch.zeros(1, shape.num_parameters, device=device)
    weights = shape.unpack(flat).weights
    weights[0][0, 0] = torch.tensor([1.0, -1.0])  # y = x_0 - x_1
    if hidden:
        weights[1][0, 0, 0] = 1.0
    x = torch.tensor([[[1.0, 1.0], [1.0 + 2**-15, 1.0], [1.0, 1.0 + 2**-15]]], device=device)
    y, _ = mlp.forward_flat(x, flat, shape, precision)
    assert y[0, :, 0].tolist() == [0.0, 2**-15, -(2**-15)]


def strided(tensor):
    """The same values in every layout that a caller might have."""
    yield tensor.transpose(1, 2).contiguous().transpose(1, 2)
    yield torch.stack((tensor, tensor), dim=-1)[..., 0]
    padded = torch.cat((tensor, tensor), dim=1)
    yield padded[:, : tensor.shape[1]]
    yield torch.cat((tensor.flatten()[:1], tensor.flatten()))[1:].view_as(tensor)  # misaligned


@pytest.mark.usefixtures("poisoned")
def test_layouts_of_input_and_gradient(device):
    shape = MLPShape((3, 20, 2))
    flat = make_network(shape, models=2, device=device)
    x, grad_y = make_batch(shape, 65, models=2, device=device)
    expected = run(flat, shape, x, grad_y, "fp32")
    for x_view, grad_view in zip(strided(x), strided(grad_y), strict=True):
        for actual, wanted in zip(
            run(flat, shape, x_view, grad_view, "fp32"), expected, strict=True
        ):
            assert torch.equal(actual, wanted)


@pytest.mark.usefixtures("poisoned")
def test_expanded_input_and_gradient(device):
    shape = MLPShape((3, 20, 2))
    flat = make_network(shape, models=2, device=device)
    x = torch.randn(1, 1, 3, device=device).expand(2, 65, 3)
    grad_y = torch.ones((), device=device).expand(2, 65, 2)
    check(flat, shape, x, grad_y, "fp32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_data(device, dtype):
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, 65, device=device)
    y, grad_x, grad = run(flat, shape, x.to(dtype), grad_y.to(dtype), "fp16")
    expected = exact(flat, shape, x.to(dtype), grad_y.to(dtype))
    assert y.dtype == grad_x.dtype == dtype
    assert grad.dtype == torch.float32
    assert relative_error(y, expected[0]) <= 1e-2
    assert relative_error(grad, expected[2]) <= 5e-2


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.usefixtures("poisoned")
def test_parameters_and_gradient_inside_larger_buffers(device, models):
    shape = MLPShape(SMALL)
    x, grad_y = make_batch(shape, 300, models, device=device)
    flat = make_network(shape, models, device=device)
    expected = run(flat, shape, x, grad_y, "fp32")
    size = shape.num_parameters
    larger = torch.cat((flat, flat, flat), dim=1)[:, size - 5 : 2 * size + 5]
    y, saved = mlp.forward_flat(x, larger[:, 5:-5], shape, "fp32")
    assert torch.equal(y, expected[0])
    for out in (
        torch.zeros(models, 3 * size, device=device)[:, size : 2 * size],
        torch.zeros(models, size, 2, device=device)[..., 0],
    ):
        mlp.backward(grad_y, saved, shape, "fp32", need_x=False, grad=out)
        assert torch.equal(out, expected[2])
        assert out._base.count_nonzero() == expected[2].count_nonzero()


@pytest.mark.usefixtures("poisoned")
def test_rows_do_not_see_each_other(device):
    """Neither the rows that pad a tile nor those of other tiles change a row's output."""
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    x, _ = make_batch(shape, 200, device=device)
    y, _ = mlp.forward_flat(x, flat, shape, "fp16")
    for rows in (1, 64, 130):
        part, _ = mlp.forward_flat(x[:, :rows], flat, shape, "fp16")
        assert torch.equal(part, y[:, :rows])


@pytest.mark.usefixtures("poisoned")
def test_without_saving(device, monkeypatch):
    """Scratch that is used over and over gives the same bits as a buffer for all rows."""
    monkeypatch.setattr(mlp, "slots", lambda *_: 2)  # so few that a program has several tiles
    shape, models = MLPShape(SMALL), 2
    flat = make_network(shape, models, device=device)
    x, grad_y = make_batch(shape, 300, models, device=device)
    y, saved = mlp.forward_flat(x, flat, shape, "fp16")
    again, _ = mlp.forward_flat(x, flat, shape, "fp16", save=False)
    assert torch.equal(y, again)
    grad_x, _ = mlp.backward(grad_y, saved, shape, "fp16")
    assert torch.equal(grad_x, mlp.input_gradient(grad_y, saved, shape, "fp16"))


@pytest.mark.parametrize("models", [1, 5, 100, 114, 115])
@pytest.mark.parametrize("multiprocessors", [108, 114, 132])
def test_all_programs_run_at_once(monkeypatch, models, multiprocessors):
    """One more than the GPU holds would take as long as all the others together."""
    properties = SimpleNamespace(multi_processor_count=multiprocessors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    slots = mlp.slots(models, torch.device("cuda"))
    assert slots == 1 or slots * models <= multiprocessors
    assert (slots + 1) * models > multiprocessors


def test_same_bits_every_time(device):
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    batch = make_batch(shape, 1000, device=device)
    first, second = (run(flat, shape, *batch, "fp16") for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_separate_parameters(device):
    shape = MLPShape(SMALL)
    parameters = shape.unpack(make_network(shape, device=device))
    x, grad_y = make_batch(shape, 20, device=device)
    y, saved = mlp.forward(x, parameters, shape, "fp32")
    grad_x, grad = mlp.backward(grad_y, saved, shape, "fp32")
    assert grad_x.shape == x.shape
    assert [g.shape for g in tensors_of(grad)] == [p.shape for p in tensors_of(parameters)]
    assert mlp.backward(grad_y, saved, shape, "fp32", need_x=False)[0] is None
    assert mlp.backward(grad_y, saved, shape, "fp32", need_weights=False)[1] is None
    assert relative_error(y, reference.mlp(x, parameters, shape)) <= 1e-5


# Largest error of a number of y and of grad_x, relative to the root mean square of all.
LARGEST = {
    "fp32": (1e-5, 1e-4),
    "tf32x3": (1e-5, 1e-4),
    "fp16": (5e-3, 5e-2),
    "tf32": (5e-3, 5e-2),
    "bf16": (4e-2, 4e-1),
}


def row_errors(actual, expected):
    """Largest error in each row [M, B], relative to the root mean square of all rows."""
    error = (actual.double() - expected.double()).abs().amax(dim=-1)
    return (error / expected.double().square().mean().sqrt()).nan_to_num(torch.inf)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("widths", "activation", "rows"),
    [
        ((3, 32, 32, 2), "prelu", 1000),
        ((3, 32, 32, 2), "silu", 1000),
        pytest.param((3, 256, 256, 256, 256, 2), "prelu", 10_000, marks=pytest.mark.gpu),
        pytest.param((3, 100, 200, 500, 5), "prelu", 10_000, marks=pytest.mark.gpu),
        pytest.param((784, 512, 512, 784), "gelu", 2_000, marks=pytest.mark.gpu),
        pytest.param((3, 256, 256, 2), "silu", 1_000_007, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.usefixtures("poisoned")
def test_large(device, widths, activation, rows, precision):
    """Every row and every parameter is right, and the same bits come out again.

    Programs hand activations on through memory: what goes wrong there may touch a few rows only.
    """
    shape = MLPShape(widths, activation)
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, rows, device=device)
    first, again = (run(flat, shape, x, grad_y, precision) for _ in range(2))
    assert all(map(torch.equal, first, again))
    unsaved, _ = mlp.forward_flat(x, flat, shape, precision, save=False)
    assert torch.equal(unsaved, first[0])

    y, grad_x, grad = first
    expected_y, expected_grad_x, expected_grad = exact(flat, shape, x, grad_y)
    value, point = LARGEST[precision]
    assert row_errors(y, expected_y).max() <= value
    errors = row_errors(grad_x, expected_grad_x)
    if activation != "prelu":
        assert errors.max() <= point
    elif precision in ("fp32", "tf32x3"):
        # Rounding takes a pre-activation in ten million across the kink of a PReLU.
        assert errors.isfinite().all()
        assert (errors > point).double().mean() <= 5e-4
    else:
        assert relative_error(grad_x, expected_grad_x) <= TOLERANCE[precision][2]
    for actual, expected in zip(
        tensors_of(shape.unpack(grad)), tensors_of(shape.unpack(expected_grad)), strict=True
    ):
        assert relative_error(actual, expected) <= TOLERANCE[precision][1]


@pytest.mark.gpu
def test_offsets_beyond_32_bits(device):
    """The last of 4.5 million rows of 512 columns is as right as the first."""
    shape = MLPShape((3, 512, 2))
    flat = make_network(shape, device=device)
    x, _ = make_batch(shape, 4_500_000, device=device)
    y, _ = mlp.forward_flat(x, flat, shape, "fp16")
    tail, _ = mlp.forward_flat(x[:, -1000:], flat, shape, "fp16")
    assert relative_error(y[:, -1000:], tail) <= 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "tf32", "bf16"])
def test_replays_of_a_graph_give_the_same_bits(device, precision):
    shape = MLPShape((3, 256, 256, 256, 256, 2))
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, 10_000, device=device)
    expected = run(flat, shape, x, grad_y, precision)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(flat, shape, x, grad_y, precision)
    for _ in range(100):
        graph.replay()
        assert all(map(torch.equal, captured, expected))


@pytest.mark.parametrize("rows", [1000, pytest.param(10_000, marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("widths", "activation"),
    [
        ((3, 64, 64, 2), "prelu"),
        ((3, 64, 64, 2), "gelu"),
        pytest.param((3, 256, 256, 256, 256, 2), "prelu", marks=pytest.mark.gpu),
        pytest.param((3, 512, 512, 2), "silu", marks=pytest.mark.gpu),
        pytest.param((784, 512, 512, 784), "relu", marks=pytest.mark.gpu),
    ],
)
def test_tf32x3_is_as_accurate_as_float32_of_pytorch(device, widths, activation, rows):
    """Within twice its error of outputs, of grad_x, and of all parameters' gradients together."""
    shape = MLPShape(widths, activation)
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, rows, device=device)
    leaves = [x.requires_grad_(), flat.requires_grad_()]
    plain_y = reference.mlp(x, shape.unpack(flat), shape)
    plain = [plain_y, *torch.autograd.grad(plain_y, leaves, grad_y, materialize_grads=True)]
    with torch.no_grad():
        ours = run(flat, shape, x, grad_y, "tf32x3")
    for actual, theirs, expected in zip(ours, plain, exact(flat, shape, x, grad_y), strict=True):
        limit = 2 * relative_error(theirs, expected) + torch.finfo(torch.float32).eps
        assert relative_error(actual, expected) <= limit


def odd_floats(device):
    """Numbers of all magnitudes, ties, infinities, NaN that is easily lost, [1, 1024]."""
    mantissa = torch.randint(0, 2**23, (1024,), dtype=torch.int32)
    bits = mantissa + (torch.randint(1, 250, (1024,), dtype=torch.int32) << 23)
    bits[:3] = torch.tensor([0x7FFFFFFF, 0x7F800000, 0])  # NaN, infinity and zero
    bits[3:500] &= ~0xFFF  # every second of them a tie
    numbers = bits.view(torch.float32)
    return torch.where(torch.rand(1024) < 0.5, -numbers, numbers)[None].to(device)


def test_tf32_is_rounded_to_nearest(device):
    """As ``cvt.rna.tf32.f32`` does, ties away from zero; the tensor cores would cut bits off."""
    shape, weights = MLPShape((64, 16), "none", bias=False), odd_floats(device)
    packed = mlp.pack(weights, shape, "tf32")[0].view(16, -1)[:, :64].reshape(1, -1)
    finite = weights.isfinite()
    assert torch.equal(packed[~finite].isnan(), weights[~finite].isnan())
    assert packed[~finite].isinf().any()
    assert not (packed[finite].view(torch.int32) & 0x1FFF).any()
    rounded, wanted = packed[finite].double(), weights[finite].double()
    half_a_step = 2.0 ** (wanted.abs().log2().floor() - 11)
    error = (rounded - wanted).abs()
    assert (error <= half_a_step).all()
    ties = (error == half_a_step) & (wanted != 0)
    assert ties.any()
    assert (rounded[ties].abs() > wanted[ties].abs()).all()
    assert torch.equal(to_operand(weights, "tf32").nan_to_num(7.0), packed.nan_to_num(7.0))


def test_operands_of_tf32_are_rounded_where_they_are_written(device):
    """Inputs, activations and weights have no bits that tensor cores would cut off."""
    shape = MLPShape((3, 32, 32, 2))
    flat = make_network(shape, device=device)
    x, _ = make_batch(shape, 70, device=device)
    _, saved = mlp.forward_flat(x, flat, shape, "tf32")
    updated, state = flat.clone(), adamw_state(flat)
    for backend in ("triton", "torch"):
        shadow = shadow_of(flat, shape, "tf32")
        adamw_(updated, flat, state, lr=1e-2, step=1, shadow=shadow, backend=backend)
        expected = mlp.pack(updated, shape, "tf32")
        assert torch.equal(shadow.packed, expected)
    live = saved.activations[:, :70]
    for operand in (live, saved.weights, expected):
        assert not (operand.contiguous().view(torch.int32) & 0x1FFF).any()
    assert (live[..., :3] - x).abs().max() <= 2**-11 * x.abs().max()
