"""mlp() and the kernels behind it: precisions, transforms, saved tensors, errors."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad

from flashpoint.kernels import MLPShape, mlp

from .operators import WIDTHS, Recorder


class Tensors:
    """A float32 network on the device under test, for the public function."""

    def __init__(self, device, rows=6):
        generator = torch.Generator().manual_seed(1)

        def random(*shape):
            return torch.randn(*shape, generator=generator).to(device).requires_grad_()

        self.weights = [random(o, i) for i, o in itertools.pairwise(WIDTHS)]
        self.biases = [random(o) for o in WIDTHS[1:]]
        self.slope, self.x, self.grad_y = random(1), random(rows, 3), random(rows, 2)
        self.all = (self.x, *self.weights, *self.biases, self.slope)

    def run(self, x=None, **options):
        x = self.x if x is None else x
        return mlp(x, self.weights, self.biases, self.slope, **options)

    def gradients(self, y, **options):
        return torch.autograd.grad(y, self.all, self.grad_y, **options)


def test_opcheck_of_the_kernels(device):
    tensors, ops = Tensors(device), torch.ops.flashpoint
    network = (
        tensors.x,
        tensors.weights,
        tensors.biases,
        tensors.slope,
        "prelu",
        0.01,
        False,
        "fp32",
    )
    torch.library.opcheck(ops.mlp.default, network)
    saved = [tensor.detach() for tensor in ops.mlp(*network)[1]]
    gradient = (tensors.grad_y, saved)
    torch.library.opcheck(ops.mlp_backward.default, (*gradient, True, *network))
    torch.library.opcheck(ops.mlp_input_gradient.default, (*gradient, *network))


def test_double_backward_of_the_kernels_is_the_references(device):
    tensors = Tensors(device)
    second = []
    for options in ({"backend": "triton", "precision": "fp32"}, {"backend": "torch"}):
        first = tensors.gradients(tensors.run(**options), create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in first)
        leaves = (*tensors.all, tensors.grad_y)
        second.append(torch.autograd.grad(penalty, leaves, materialize_grads=True))
    torch.testing.assert_close(*second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_public_function_compiles_into_one_graph(device, backend, dynamic):
    tensors = Tensors(device)
    compiled = torch.compile(
        lambda x: tensors.run(x, backend=backend), fullgraph=True, backend="aot_eager",
        dynamic=dynamic,
    )  # fmt: skip
    expected = tensors.run(backend=backend)
    torch.testing.assert_close(compiled(tensors.x), expected)
    torch.testing.assert_close(tensors.gradients(compiled(tensors.x)), tensors.gradients(expected))


def test_what_the_kernels_do_not_cover_compiles_too(device):
    x, weight = torch.randn(2, 3, dtype=torch.float64, device=device).split((1, 1))
    compiled = torch.compile(
        lambda x: mlp(x, [weight], backend="triton"), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), x @ weight.T)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float16])
def test_autocast_gives_its_dtype_and_float32_gradients(device, backend, x_dtype):
    tensors = Tensors(device)
    with torch.autocast(device.type, torch.float16):
        y = tensors.run(tensors.x.to(x_dtype), backend=backend)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), tensors.run(backend="torch"), rtol=2e-2, atol=2e-2)
    gradients = torch.autograd.grad(y, tensors.all, tensors.grad_y.half())
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


PRECISIONS_OF_PYTORCH = [
    ("highest", None, "tf32x3"),
    ("high", None, "tf32"),
    ("medium", None, "tf32"),
    ("highest", torch.float16, "fp16"),
    pytest.param("high", torch.bfloat16, "bf16", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize(("setting", "autocast", "expected"), PRECISIONS_OF_PYTORCH)
def test_precision_is_what_pytorch_would_use(device, setting, autocast, expected):
    tensors = Tensors(device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        with Recorder() as recorder, torch.autocast(device.type, autocast, autocast is not None):
            tensors.run(backend="triton")
    finally:
        torch.set_float32_matmul_precision(before)
    assert recorder.precisions == [expected]


def test_half_precision_network_is_run_in_its_precision(device):
    tensors = Tensors(device)
    halves = [tensor.detach().half() for tensor in tensors.all]
    with Recorder() as recorder:
        y = mlp(halves[0], halves[1:4], halves[4:7], halves[7], backend="triton")
    assert y.dtype == torch.float16
    assert recorder.precisions == ["fp16"]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_func_transforms_go_through_the_reference(device, backend):
    tensors = Tensors(device)

    def run(x):  # PyTorch's own prelu fails under vmap of jacrev
        return tensors.run(x, backend=backend, activation="tanh")

    for row, matrix in zip(tensors.x, torch.vmap(torch.func.jacrev(run))(tensors.x), strict=True):
        expected = torch.autograd.functional.jacobian(run, row)
        torch.testing.assert_close(matrix, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [(0,), (1,), (4,), (7,), (0, 5), (2, 6, 7)])
def test_any_subset_may_require_grad_on_the_kernels(device, wanted):
    tensors = Tensors(device, rows=65)
    expected = tensors.gradients(tensors.run(backend="torch"))
    for i, tensor in enumerate(tensors.all):
        tensor.requires_grad_(i in wanted)
    y = tensors.run(backend="triton", precision="fp32")
    leaves = [tensors.all[i] for i in wanted]
    got = torch.autograd.grad(y, leaves, tensors.grad_y)
    torch.testing.assert_close(got, tuple(expected[i] for i in wanted), rtol=1e-5, atol=1e-4)


def large(rows):
    return pytest.param(rows, marks=pytest.mark.gpu)


@pytest.mark.parametrize("rows", [2048, large(10_000), large(131_072), large(1_000_000)])
@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e4])
def test_fp16_gradients_of_a_mean_loss_of_any_scale(device, rows, scale):
    """Gradients near 1 / rows underflow in fp16 unless they are scaled on their way."""
    generator = torch.Generator().manual_seed(0)
    shape = MLPShape((3, 32, 32, 2))
    x, target = (torch.randn(rows, width, generator=generator).to(device) for width in (3, 2))
    flat = (torch.rand(1, shape.num_parameters, generator=generator) - 0.5).to(device)

    def gradients(dtype, **options):
        weights, biases, slope = shape.unpack(flat.to(dtype))
        leaves = [part[0].clone().requires_grad_() for part in (*weights, *biases, slope)]
        y = mlp(x.to(dtype), leaves[:3], leaves[3:6], leaves[6], **options)
        loss = torch.nn.functional.mse_loss(y, target.to(dtype), reduction="mean")
        return torch.autograd.grad(loss * scale, leaves)

    ours = gradients(torch.float32, backend="triton", precision="fp16")
    for got, exact in zip(ours, gradients(torch.float64, backend="torch"), strict=True):
        assert (got - exact).norm() <= 2e-2 * exact.norm()


@pytest.mark.gpu
def test_captured_in_a_cuda_graph(device):
    tensors = Tensors(device, rows=1000)
    for _ in range(3):
        tensors.gradients(tensors.run())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tensors.gradients(tensors.run())
    with torch.no_grad():
        tensors.x.copy_(torch.randn_like(tensors.x))
    graph.replay()
    torch.testing.assert_close(captured, tensors.gradients(tensors.run()))


@pytest.mark.gpu
def test_runs_on_the_device_of_its_tensors():
    device = torch.device("cuda", torch.cuda.device_count() - 1)  # the last one
    tensors = Tensors(device)
    y = tensors.run()
    assert y.device == device
    torch.testing.assert_close(y, tensors.run(backend="torch"), rtol=2e-2, atol=2e-2)


# Functional transforms and forward mode, with and without parameters to train.

TRANSFORMS = {
    "jvp": lambda run, x: torch.func.jvp(run, (x,), (x.cos(),)),
    "vjp": lambda run, x: torch.func.vjp(run, x)[1](x[:, :2].cos()),
    "jacrev": lambda run, x: torch.func.jacrev(run)(x),
    "jacfwd": lambda run, x: torch.func.jacfwd(run)(x),
    "hessian": lambda run, x: torch.func.hessian(lambda x: run(x).sum())(x),
    "vmap": lambda run, x: torch.vmap(run)(x),
    "forward mode": lambda run, x: tangents(run, x),
}


def tangents(run, x):
    with forward_ad.dual_level():
        y = forward_ad.unpack_dual(run(forward_ad.make_dual(x.detach(), x.detach().cos())))
        return y.primal.detach(), y.tangent.detach()


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_are_those_of_the_reference(device, transform, trainable):
    tensors = Tensors(device)
    for tensor in tensors.all:
        tensor.requires_grad_(trainable)
    results = [
        transform(lambda x: tensors.run(x, activation="tanh", backend=backend), tensors.x.detach())  # noqa: B023
        for backend in ("triton", "torch")
    ]
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("trainable", [True, False])
def test_tangents_of_all_tensors_of_the_operator(device, trainable):
    """The operator itself carries tangents, which are derivatives along a direction."""
    tensors = Tensors(device)

    def run(x, *parameters):
        layers = (parameters[:3], parameters[3:6], parameters[6])
        return torch.ops.flashpoint.mlp(x, *layers, "prelu", 0.01, False, "fp32")[0]

    values = [tensor.detach().requires_grad_(trainable) for tensor in tensors.all]
    directions = [tensor.detach().cos() for tensor in tensors.all]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(values, directions, strict=True)]
        tangent = forward_ad.unpack_dual(run(*duals)).tangent
    step = 1e-3
    moved = (
        run(*(v.detach() + sign * step * d for v, d in zip(values, directions, strict=True)))
        for sign in (1, -1)
    )
    expected = (next(moved) - next(moved)) / (2 * step)
    torch.testing.assert_close(tangent.detach(), expected, rtol=1e-2, atol=1e-2)


def test_a_jit_trace_sees_the_reference(device):
    tensors = Tensors(device)
    for tensor in tensors.all:
        tensor.requires_grad_(False)
    traced = torch.jit.trace(lambda x: tensors.run(x, backend="triton"), (tensors.x,))
    assert "flashpoint::mlp" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(tensors.x), tensors.run(backend="torch"), rtol=0, atol=0)


@pytest.mark.parametrize("subclass", ["x", "weight"])
def test_subclasses_of_tensor_see_the_reference(device, subclass):
    class Tagged(torch.Tensor):
        pass

    tensors = Tensors(device)
    expected = tensors.run(backend="torch")
    if subclass == "x":
        tensors.x = tensors.x.detach().as_subclass(Tagged)
    else:
        tensors.weights[1] = tensors.weights[1].detach().as_subclass(Tagged)
    y = tensors.run(backend="triton")
    assert type(y) is Tagged
    torch.testing.assert_close(y.detach().as_subclass(torch.Tensor), expected, rtol=0, atol=0)


# The tensors that a backward pass unpacks and allocates.


def test_a_backward_pass_makes_no_zeros(device):
    """In particular no gradients of the saved tensors, which nobody asks for."""
    tensors = Tensors(device, rows=65)
    y = tensors.run(backend="triton", precision="fp32")
    with Recorder() as recorder:
        tensors.gradients(y)
    assert "flashpoint::mlp_backward" in recorder.names
    assert not [name for name in recorder.names if "zero" in name or "full" in name]


@pytest.mark.parametrize("create_graph", [True, False])
def test_what_was_saved_is_unpacked_once(device, create_graph):
    tensors, unpacked = Tensors(device), []

    def unpack(number):
        unpacked.append(number)
        return packed[number]

    packed = []

    def pack(tensor):
        packed.append(tensor)
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = tensors.run(backend="triton")
    tensors.gradients(y, create_graph=create_graph)
    assert unpacked == list(range(len(packed)))


def test_no_gradient_comes_of_none(device):
    """Autograd passes None for outputs that nothing depends on."""
    tensors = Tensors(device)
    y = torch._C._functions.UndefinedGrad()(tensors.run(backend="triton"))
    nothing = torch.autograd.grad(y, tensors.all, tensors.grad_y, allow_unused=True)
    assert nothing == (None,) * len(tensors.all)


NAMED = [
    ({"x": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "x must be a floating-point tensor"),
    ({"x": torch.ones(2, 4)}, ValueError, "x must have 3 as its last dimension"),
    ({"x": torch.ones(2, 3).double()}, TypeError, r"weights\[0\] must be torch.float64"),
    ({"x": torch.ones(2, 3, device="meta")}, ValueError, r"weights\[0\] must be on meta like x"),
    ({"weights": []}, ValueError, "weights must hold at least one layer"),
    (
        {"weights": [torch.ones(5, 3), torch.ones(2, 4)], "activation": "relu"},
        ValueError,
        r"weights\[1\] must be",
    ),
    ({"weights": torch.ones(2, 3), "activation": "relu"}, ValueError, r"weights\[0\] must be"),
    ({"weights": [torch.ones(5, 3), torch.ones(2, 5)]}, ValueError, "slope must be given"),
    (
        {"weights": [torch.ones(5, 3), torch.ones(2, 5)], "slope": 0.25},
        TypeError,
        "slope must be a tensor or None, got 0.25",
    ),
    (
        {"weights": [torch.ones(5, 3), torch.ones(2, 5)], "slope": torch.tensor(0.25)},
        ValueError,
        r"slope must be \['slopes'\], got \[\]",
    ),
    ({"weights": [torch.ones(2, 3).half()]}, TypeError, r"weights\[0\] must be torch.float32"),
    ({"biases": [torch.ones(2)]}, ValueError, r"biases\[0\] must be \[5\]"),
    ({"biases": [torch.ones(5)] * 2}, ValueError, "biases must be 1, one per layer, got 2"),
    ({"precision": "fp8"}, ValueError, "precision must be one of"),
    ({"backend": "cuda"}, ValueError, "backend must be"),
    ({"activation": "swish"}, ValueError, "activation must be one of"),
    (
        {
            "weights": [torch.ones(5, 3), torch.ones(2, 5)],
            "activation": "silu",
            "linear_input": True,
        },
        ValueError,
        "linear_input must be False unless activation is one of prelu, .*, got activation 'silu'",
    ),
    ({"linear_input": True, "activation": "relu"}, ValueError, "linear_input must be False"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), NAMED)
def test_errors_name_the_argument_in_one_line(wrong, error, message):
    arguments = {"x": torch.ones(2, 3), "weights": [torch.ones(5, 3)], **wrong}
    with pytest.raises(error, match=message) as caught:
        mlp(**arguments)
    assert "\n" not in str(caught.value)
