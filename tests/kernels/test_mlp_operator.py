"""flashpoint::mlp and its gradients as PyTorch operators, on the reference."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from flashpoint.kernels.mlp import operator, reference

from .operators import WIDTHS, Recorder

CASES = [
    # activation, slopes, bias, model axis, leading dimensions of x, and linear_input
    ("prelu", 1, True, None, (6,)),
    ("prelu", 2, True, 2, (4,)),
    ("prelu", 1, True, None, (6,), True),
    ("leaky_relu", 0, True, None, ()),
    ("relu", 0, False, None, (1,)),
    ("relu", 0, True, 2, (3,), True),
    ("silu", 0, False, None, (2, 3)),
    ("gelu", 0, True, None, (0,)),
    ("tanh", 0, True, 3, (2,)),
]


class Network:
    """Random tensors of a network and its options."""

    def __init__(
        self, activation, slopes, bias, models, lead, linear_input=False, *, dtype=torch.float64,
        seed=0,
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        axis = () if models is None else (models,)

        def random(*shape):
            values = torch.randn(*axis, *shape, dtype=dtype, generator=generator)
            return values.requires_grad_()

        self.x = random(*lead, WIDTHS[0])
        self.weights = [random(o, i) for i, o in itertools.pairwise(WIDTHS)]
        self.biases = [random(o) for o in WIDTHS[1:]] if bias else []
        self.slope = random(slopes) if slopes else None
        self.options = (activation, 0.01, linear_input, None)
        self.grad_y = random(*lead, WIDTHS[-1])

    @property
    def arguments(self):
        return self.x, self.weights, self.biases, self.slope, *self.options

    @property
    def tensors(self):
        slope = () if self.slope is None else (self.slope,)
        return self.x, *self.weights, *self.biases, *slope

    def run(self, x, *parameters):
        """Returns y as a function of all tensors."""
        parameters = iter(parameters)
        weights = list(itertools.islice(parameters, len(self.weights)))
        biases = list(itertools.islice(parameters, len(self.biases)))
        slope = next(parameters, None)
        return torch.ops.flashpoint.mlp(x, weights, biases, slope, *self.options)[0]

    def expected(self):
        """Returns y of the reference."""
        x, parameters, shape, _ = operator._call(*self.arguments)
        return reference.mlp(x, parameters, shape).reshape(self.grad_y.shape)


# Each case takes seconds of PyTorch's tracing. These have all that a network may leave out, and an
# empty batch; the others are slow tests.
CHECKED = [
    case if number in (1, 4, 7) else pytest.param(case, marks=pytest.mark.slow)
    for number, case in enumerate(CASES)
]


@pytest.mark.parametrize("case", CHECKED)
def test_opcheck_with_inputs_that_require_grad(case):
    network = Network(*case)
    ops = torch.ops.flashpoint
    torch.library.opcheck(ops.mlp.default, network.arguments)
    gradient = (network.grad_y, [])
    torch.library.opcheck(ops.mlp_backward.default, (*gradient, True, *network.arguments))
    torch.library.opcheck(ops.mlp_input_gradient.default, (*gradient, *network.arguments))


@pytest.mark.parametrize("case", [case for case in CASES if 0 not in case[4]])
def test_gradients_of_first_and_second_order(case):
    network = Network(*case)
    assert gradcheck(network.run, network.tensors)
    assert gradgradcheck(network.run, network.tensors)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_the_reference(case):
    network = Network(*case)
    y, expected = network.run(*network.tensors), network.expected()
    torch.testing.assert_close(y, expected)
    ours = torch.autograd.grad(y, network.tensors, network.grad_y)
    theirs = torch.autograd.grad(expected, network.tensors, network.grad_y)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wanted", [(0,), (1,), (4,), (7,), (0, 5), (2, 6, 7)])
def test_any_subset_of_tensors_may_require_grad(wanted):
    network = Network("prelu", 1, True, None, (6,))
    full = torch.autograd.grad(network.run(*network.tensors), network.tensors, network.grad_y)
    tensors = [
        tensor if i in wanted else tensor.detach() for i, tensor in enumerate(network.tensors)
    ]
    leaves = [tensors[i] for i in wanted]
    part = torch.autograd.grad(network.run(*tensors), leaves, network.grad_y)
    torch.testing.assert_close(part, tuple(full[i] for i in wanted))


def test_frozen_parameters_cost_no_weight_gradients():
    network = Network("prelu", 1, True, None, (6,))
    tensors = [network.x, *(tensor.detach() for tensor in network.tensors[1:])]
    y = network.run(*tensors)
    with Recorder() as recorder:
        torch.autograd.grad(y, network.x, network.grad_y)
    ours = [name for name in recorder.names if name.startswith("flashpoint::")]
    assert ours == ["flashpoint::mlp_input_gradient"]


def test_nothing_is_recorded_without_gradients():
    network = Network("prelu", 1, True, None, (6,))
    with torch.no_grad():
        assert network.run(*network.tensors).grad_fn is None
    assert network.run(*(tensor.detach() for tensor in network.tensors)).grad_fn is None


LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "expanded": lambda t: t[:1].expand_as(t),
    "strided": lambda t: torch.stack((t, t), dim=-1)[..., 0],
    "misaligned": lambda t: torch.cat((t.new_zeros(1), t.flatten()))[1:].view_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_input_and_incoming_gradient(layout):
    network = Network("prelu", 1, True, None, (6,))
    x, grad_y = layout(network.x.detach()).requires_grad_(), layout(network.grad_y.detach())
    tensors = [x, *network.tensors[1:]]
    ours = torch.autograd.grad(network.run(*tensors), tensors, grad_y)
    plain = [x.detach().contiguous().requires_grad_(), *network.tensors[1:]]
    theirs = torch.autograd.grad(network.run(*plain), plain, grad_y.contiguous())
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic):
    network = Network("prelu", 1, True, None, (6,), dtype=torch.float32)
    compiled = torch.compile(network.run, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    torch.testing.assert_close(compiled(*network.tensors), network.run(*network.tensors))
    ours = torch.autograd.grad(compiled(*network.tensors), network.tensors, network.grad_y)
    theirs = torch.autograd.grad(network.run(*network.tensors), network.tensors, network.grad_y)
    torch.testing.assert_close(ours, theirs)


def test_autocast_does_not_reach_into_the_operator():
    network = Network("prelu", 1, True, None, (6,), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = network.run(*network.tensors)
    torch.testing.assert_close(y, network.expected())
