"""Eager calls of the perceptron's kernels: they give what the operators give, to the last bit."""

import itertools
from contextlib import nullcontext

import pytest
import torch

from flashpoint.kernels import mlp
from flashpoint.kernels.mlp import eager, launches, operator, read_arguments, run_kernels

from .operators import WIDTHS, Recorder

LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "strided": lambda t: torch.stack((t, t), dim=-1)[..., 0],
    "misaligned": lambda t: torch.cat((t.new_zeros(1), t.flatten()))[1:].view_as(t),
}


class Case:
    """Random tensors of a network and its options."""

    def __init__(
        self, device, lead=(7,), models=None, bias=True, slopes=(1,), activation="prelu",
        dtype=torch.float32, x_dtype=None, precision="fp16", layout="contiguous",
    ):  # fmt: skip
        generator, axis = torch.Generator().manual_seed(0), () if models is None else (models,)

        def random(*shape, dtype=dtype):
            values = torch.randn(*axis, *shape, generator=generator).to(device, dtype)
            return LAYOUTS[layout](values).requires_grad_()

        x_dtype = x_dtype or dtype
        self.x = random(*lead, WIDTHS[0], dtype=x_dtype)
        self.weights = [random(o, i) for i, o in itertools.pairwise(WIDTHS)]
        self.biases = [random(o) for o in WIDTHS[1:]] if bias else None
        self.slopes = [random(each) for each in slopes] if activation == "prelu" else []
        self.activation, self.precision = activation, precision
        self.leaves = (self.x, *self.weights, *(self.biases or ()), *self.slopes)
        y_dtype = torch.float16 if x_dtype != dtype else dtype
        self.context = nullcontext()
        if x_dtype != dtype:
            self.context, self.precision = torch.autocast(device.type, torch.float16), None
        self.grad_y = random(*lead, WIDTHS[-1], dtype=y_dtype).detach()

    def run(self):
        """Returns y."""
        with self.context:
            arguments = read_arguments(
                self.x, self.weights, self.biases, self.slopes, self.activation, 0.01, False
            )
            return run_kernels(arguments, self.precision)

    def results(self):
        """Returns y and all gradients."""
        y = self.run()
        return y, *torch.autograd.grad(y, self.leaves, self.grad_y)


CASES = {
    "one network": {},
    "no bias": {"bias": False},
    "relu": {"activation": "relu"},
    "silu": {"activation": "silu"},
    "slope of each layer": {"slopes": (2,)},
    "slopes in tensors of their own": {"slopes": (1, 1)},
    "three networks": {"models": 3},
    "three networks, slope of each layer": {"models": 3, "slopes": (2,), "layout": "misaligned"},
    "no rows": {"lead": (0,)},
    "a vector": {"lead": ()},
    "two leading dimensions": {"lead": (2, 3)},
    "more than a tile": {"lead": (65,)},
    "float32": {"precision": "fp32"},
    "tf32": {"precision": "tf32"},
    "half precision": {"dtype": torch.float16},
    "autocast of float32": {"x_dtype": torch.float16},
    "autocast of half parameters": {"dtype": torch.float16, "x_dtype": torch.float32},
    **{layout: {"layout": layout} for layout in LAYOUTS},
    "strided networks": {"layout": "strided", "models": 2},
}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_same_bits_as_the_operators(device, case, monkeypatch):
    case = Case(device, **case)
    ours = case.results()
    with Recorder() as recorder:
        expected = case.results()
    assert {"flashpoint::mlp", "flashpoint::mlp_backward"} <= set(recorder.names)
    for actual, wanted in zip(ours, expected, strict=True):
        assert actual.dtype == wanted.dtype
        assert actual.shape == wanted.shape
        assert torch.equal(actual, wanted)
    monkeypatch.setattr(operator, "_mlp", None)
    monkeypatch.setattr(operator, "_mlp_backward", None)
    assert all(map(torch.equal, case.results(), ours))


@pytest.mark.parametrize("autocast", [True, False])
def test_second_derivatives_with_slopes_in_tensors_of_their_own(device, autocast):
    options = {"x_dtype": torch.float16} if autocast else {"precision": "fp32"}
    case, second = Case(device, slopes=(1, 1), **options), []
    run = {
        True: case.run,
        False: lambda: mlp(
            case.x.to(torch.float32), case.weights, case.biases, torch.cat(case.slopes),
            backend="torch",
        ),
    }  # fmt: skip
    for ours in (True, False):
        y = run[ours]()
        first = torch.autograd.grad(y, case.leaves, case.grad_y.to(y.dtype), create_graph=True)
        penalty = sum(gradient.float().square().sum() for gradient in first)
        second.append(torch.autograd.grad(penalty, case.leaves, materialize_grads=True))
    tolerance = 3e-2 if autocast else 1e-4
    for actual, wanted in zip(*second, strict=True):
        assert (actual - wanted).float().norm() <= tolerance * wanted.float().norm() + 1e-4


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_second_derivatives_whether_or_not_z_is_kept(device, activation):
    case = Case(device, activation=activation, precision="fp32")
    reference = mlp(case.x, case.weights, case.biases, activation=activation, backend="torch")
    second = []
    for y in (case.run(), reference):
        (first,) = torch.autograd.grad(y, case.x, case.grad_y, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), case.weights))
    for actual, wanted in zip(*second, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "prelu"])
def test_a_dispatch_mode_sees_the_backward_pass(device, activation):
    case = Case(device, activation=activation)
    expected, y = case.results()[1:], case.run()
    with Recorder() as recorder:
        gradients = torch.autograd.grad(y, case.leaves, case.grad_y)
    assert "flashpoint::mlp_backward" in recorder.names
    assert all(map(torch.equal, gradients, expected))


def test_numbers_that_are_still_to_be_negated(device):
    case = Case(device)
    expected = case.results()
    lazily = torch.complex(torch.zeros_like(case.x), -case.x).detach().conj().imag
    assert lazily.is_neg()
    case.x = lazily.requires_grad_()
    case.leaves = (case.x, *case.leaves[1:])
    assert all(map(torch.equal, case.results(), expected))
    case.grad_y = torch.complex(case.grad_y * 0, -case.grad_y).conj().imag
    assert all(map(torch.equal, case.results(), expected))


@pytest.mark.parametrize("frozen", [True, False])
def test_only_what_is_needed_is_computed(device, frozen, monkeypatch):
    case, calls = Case(device), []
    write = launches.write_gradients
    monkeypatch.setattr(
        launches, "write_gradients", lambda *a, **k: calls.append(k) or write(*a, **k)
    )
    expected = case.results()[1:]
    needed = case.leaves[:1] if frozen else case.leaves[1:]
    for leaf in case.leaves:
        leaf.requires_grad_(any(leaf is each for each in needed))
    got = torch.autograd.grad(case.run(), needed, case.grad_y)
    wanted = expected[:1] if frozen else expected[1:]
    assert all(map(torch.equal, got, wanted))
    assert (calls[-1]["grad"] is None, calls[-1]["grad_x"] is None) == (frozen, not frozen)


def test_nothing_is_recorded_without_gradients(device):
    case = Case(device)
    with torch.no_grad():
        assert case.run().grad_fn is None
    for leaf in case.leaves:
        leaf.requires_grad_(False)
    assert case.run().grad_fn is None


@pytest.mark.parametrize("activation", ["prelu", "gelu"])
@pytest.mark.parametrize(
    "options", [{}, {"x_dtype": torch.float16}, {"models": 2}, {"bias": False}]
)
def test_batches_of_gradients_are_those_of_each(device, activation, options):
    """They have no memory of their own, which a kernel could read: the reference runs."""
    case = Case(device, lead=(3,), activation=activation, **options)
    grads = torch.stack([case.grad_y, 2 * case.grad_y])
    found = torch.autograd.grad(case.run(), case.leaves, grads, is_grads_batched=True)
    each = [torch.autograd.grad(case.run(), case.leaves, grad) for grad in grads]
    for batch, leaf, *alone in zip(found, case.leaves, *each, strict=True):
        assert batch.dtype == leaf.dtype
        torch.testing.assert_close(batch, torch.stack(alone), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("frozen", ["x", "layers"])
def test_batches_of_gradients_of_what_needs_them(device, frozen):
    case = Case(device)
    wanted = case.leaves[1:] if frozen == "x" else case.leaves[:1]
    for leaf in case.leaves:
        leaf.requires_grad_(any(leaf is each for each in wanted))
    grads = torch.stack([case.grad_y, 2 * case.grad_y])
    found = torch.autograd.grad(case.run(), wanted, grads, is_grads_batched=True)
    for batch, alone in zip(found, torch.autograd.grad(case.run(), wanted, grads[0]), strict=True):
        torch.testing.assert_close(batch[0], alone, rtol=3e-2, atol=3e-2)
        torch.testing.assert_close(batch[1], 2 * batch[0], rtol=1e-3, atol=1e-3)


def test_a_tensor_left_over_from_a_transform(device):
    case, left_over = Case(device), []

    def keep(x):
        left_over.append(x)
        return x.sum()

    torch.func.grad(keep)(case.x.detach())
    expected = case.run()
    case.x = left_over[0]
    assert torch.equal(case.run(), expected)


def test_who_is_watching():
    assert not eager.is_watched(torch.ones(1))
    with Recorder():
        assert eager.is_watched(torch.ones(1))
    assert torch.vmap(lambda x: x + int(eager.is_watched(x)))(torch.zeros(2)).sum() == 2


@pytest.mark.parametrize("create_graph", [False, True])
def test_each_gradient_may_be_changed_while_others_are_saved(device, create_graph):
    """As when gradients are clipped one by one on the way to a learned rate."""
    case, results = Case(device), []
    for in_place in (True, False):
        rate = torch.tensor(0.1, device=device, requires_grad=True)
        gradients = torch.autograd.grad(
            case.run(), case.leaves, case.grad_y, create_graph=create_graph
        )
        updated = []
        for leaf, grad in zip(case.leaves, gradients, strict=True):
            clipped = grad.clamp_(-1, 1) if in_place else grad.clamp(-1, 1)
            updated.append(leaf.detach() - rate * clipped)
        loss = sum(each.square().sum() for each in updated)
        results.append(torch.autograd.grad(loss, rate)[0])
    assert torch.equal(*results)


def test_columns_that_are_far_apart(device, monkeypatch):
    """The third column of the gradient of y begins more than 2^31 elements after the first."""
    monkeypatch.setattr(f"{__name__}.WIDTHS", (3, 5, 3))
    case = Case(device, dtype=torch.float16)
    expected = case.results()
    columns, apart = case.grad_y.shape[-1], 1_200_000_000
    far = torch.empty((columns - 1) * apart + 7, dtype=torch.float16, device=device)
    case.grad_y = far.as_strided(case.grad_y.shape, (1, apart)).copy_(case.grad_y)
    assert all(map(torch.equal, case.results(), expected))


def test_rows_that_are_far_apart(device):
    """Their distance times the rows of a tile takes more than 32 bits."""
    case = Case(device, lead=(40,), dtype=torch.float16)
    expected = case.results()
    far = torch.empty(40 * 60_000_000, dtype=torch.float16, device=device)
    far = far.as_strided(case.x.shape, (60_000_000, 1))
    case.x = far.copy_(case.x.detach()).requires_grad_()
    case.leaves = (case.x, *case.leaves[1:])
    assert all(map(torch.equal, case.results(), expected))
