"""accelerate() under transforms, tracing, subclasses of Tensor and hooks on saved tensors."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor
from torch.utils.checkpoint import checkpoint

from flashpoint.kernels import FusedMLP

from .perceptrons import build_sequential, perceptron

pytestmark = pytest.mark.usefixtures("on_device")


# Transforms and tracing see PyTorch's own operations, those of the layers.


class Tagged(torch.Tensor):
    """A subclass of Tensor that PyTorch's operations keep."""


def build_fused_mlp(activation):
    plain = perceptron(activation)
    return FusedMLP.from_module(copy.deepcopy(plain)), plain


def jvp(model, x):
    return torch.func.jvp(model, (x,), (x.cos(),))


def vjp(model, x):
    y, pull_back = torch.func.vjp(model, x)
    return y, *pull_back(y.cos())


def gradient_of_parameters(model, x):
    def loss(parameters):
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    return torch.func.grad(loss)(dict(model.named_parameters()))


def gradients_of_each_row(model, x):
    def loss(parameters, row):
        return torch.func.functional_call(model, parameters, (row,)).square().sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="error")
    return each(dict(model.named_parameters()), x)


def hessian(model, x):
    return torch.func.hessian(lambda row: model(row).square().sum())(x[0])


def tangent(model, x):
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(model(forward_ad.make_dual(x, x.cos())))
        return dual.primal.detach(), dual.tangent.detach()


def tangent_of_parameters(model, x):
    with forward_ad.dual_level():
        duals = {
            name: forward_ad.make_dual(parameter.detach(), parameter.detach().cos())
            for name, parameter in model.named_parameters()
        }
        return forward_ad.unpack_dual(torch.func.functional_call(model, duals, (x,))).tangent


def tangent_of_gradient(model, x):
    """Returns a product with the Hessian, forward over reverse."""
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone().requires_grad_(), x.cos())
        (gradient,) = torch.autograd.grad(model(dual).square().sum(), dual, create_graph=True)
        return forward_ad.unpack_dual(gradient).tangent


TRANSFORMS = {
    "jvp": jvp,
    "vjp": vjp,
    "grad": gradient_of_parameters,
    "vmap": lambda model, x: torch.vmap(model)(x),
    "vmap of grad": gradients_of_each_row,
    "jacrev": lambda model, x: torch.func.jacrev(model)(x),
    "jacfwd": lambda model, x: torch.func.jacfwd(model)(x),
    "hessian": hessian,
    "forward mode": tangent,
    "forward mode of parameters": tangent_of_parameters,
    "forward over reverse": tangent_of_gradient,
}


@pytest.mark.parametrize("build", [build_sequential, build_fused_mlp])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_see_the_layers(transform, trainable, build, fused_calls):
    model, plain = (each.requires_grad_(trainable) for each in build(nn.Tanh))
    x = torch.randn(5, 3)
    torch.testing.assert_close(
        as_list(transform(model, x)), as_list(transform(plain, x)), rtol=0, atol=0
    )
    assert not fused_calls


def as_list(results):
    """Returns tensors without their names, which differ between modules."""
    if isinstance(results, dict):
        return list({id(each): each for each in results.values()}.values())
    return results


@pytest.mark.parametrize("trainable", [True, False])
def test_forward_mode_of_a_slope(trainable, fused_calls):
    model, plain = (each.requires_grad_(trainable) for each in build_sequential(nn.PReLU))
    for run in (tangent, tangent_of_parameters, jvp):
        x = torch.randn(5, 3)
        torch.testing.assert_close(run(model, x), run(plain, x), rtol=0, atol=0)
    assert not fused_calls


@pytest.mark.parametrize("trainable", [True, False])
def test_backward_in_forward_mode_of_a_fused_forward(trainable, fused_calls):
    """The tangent of a gradient follows from the tangent of the incoming gradient."""
    model, plain = (each.requires_grad_(trainable) for each in build_sequential(nn.Tanh))
    x, grad_y = torch.randn(5, 3, requires_grad=True), torch.randn(5, 2)
    results = []
    for each in (model, plain):
        y = each(x)
        leaves = [x, *each.parameters()] if trainable else [x]
        for create_graph in (False, True):
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(grad_y, grad_y.cos())
                found = torch.autograd.grad(
                    y, leaves, dual, retain_graph=True, create_graph=create_graph
                )
                tangents = [forward_ad.unpack_dual(gradient).tangent for gradient in found]
                assert create_graph or not any(t.requires_grad for t in tangents)
                results += [[gradient.detach() for gradient in (*found, *tangents)]]
    assert len(fused_calls) == 1
    torch.testing.assert_close(results[:2], results[2:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainable", [True, False])
def test_symbolic_trace_sees_the_layers(trainable, fused_calls):
    for build in (build_sequential, build_fused_mlp):
        model, plain = (each.requires_grad_(trainable) for each in build(nn.PReLU))
        traced = torch.fx.symbolic_trace(model)
        kinds = [node.op for node in traced.graph.nodes]
        assert kinds == ["placeholder", *["call_module"] * 5, "output"]
        x = torch.randn(5, 3)
        assert torch.equal(traced(x), plain(x))
    assert not fused_calls


@pytest.mark.parametrize("trainable", [True, False])
def test_a_traced_model_has_only_operations_of_pytorch(trainable, fused_calls):
    model, plain = (each.requires_grad_(trainable) for each in build_sequential(nn.PReLU))
    x = torch.randn(5, 3)
    traced = torch.jit.trace(model, (x,), check_trace=False)  # the check runs the model untraced
    assert "flashpoint::mlp" not in str(traced.inlined_graph)
    assert torch.equal(traced(x), plain(x))
    assert not fused_calls


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("trainable", [True, False])
def test_an_exported_model_has_only_operations_of_pytorch(trainable, strict, fused_calls):
    model, plain = (each.requires_grad_(trainable) for each in build_sequential(nn.PReLU))
    x = torch.randn(5, 3)
    exported = torch.export.export(model, (x,), strict=strict)
    assert "flashpoint" not in str(exported.graph)
    assert torch.equal(exported.module()(x), plain(x))
    assert not fused_calls


@pytest.mark.parametrize("trainable", [True, False])
def test_subclasses_of_tensor_see_the_layers(trainable, fused_calls):
    model, plain = (each.requires_grad_(trainable) for each in build_sequential(nn.PReLU))
    x = torch.randn(5, 3)
    y = model(x.as_subclass(Tagged))
    assert type(y) is Tagged
    assert torch.equal(y.as_subclass(torch.Tensor), plain(x))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = model(mode.from_tensor(x))
    assert type(fake) is FakeTensor
    assert fake.shape == (5, 2)
    assert not fused_calls


def test_distributed_tensors_see_the_layers(tmp_path, device, fused_calls):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, plain = build_sequential(nn.ReLU)
        mesh = init_device_mesh(device.type, (1,))
        x = torch.randn(5, 3)
        distribute_module(model, mesh)
        y = model(distribute_tensor(x, mesh, [Replicate()]))
        y.sum().backward()
        assert torch.equal(y.to_local(), plain(x))
        plain(x).sum().backward()
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours.grad.to_local(), theirs.grad)
    finally:
        dist.destroy_process_group()
    assert not fused_calls


# Checkpointing and hooks, which keep saved tensors elsewhere or compute them anew.


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant, fused_calls):
    model, plain = build_sequential(nn.PReLU)
    gradients = []
    for each in (model, plain):
        x = torch.linspace(-1, 1, 15).view(5, 3).requires_grad_()
        checkpoint(each, x, use_reentrant=reentrant).square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in each.parameters())])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert len(fused_calls) == 2


@pytest.mark.parametrize("frozen", [True, False])
def test_what_was_saved_is_unpacked_once(frozen, fused_calls):
    model, _ = build_sequential(nn.PReLU)
    model.requires_grad_(not frozen)
    packed, unpacked = [], []

    def pack(tensor):
        packed.append(tensor)
        return tensor

    def unpack(tensor):
        unpacked.append(tensor)
        return tensor

    x = torch.randn(5, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = model(x)
    y.sum().backward()
    assert fused_calls
    assert len(unpacked) == len(packed) > 0


def test_saved_on_the_cpu(fused_calls):
    model, plain = build_sequential(nn.PReLU)
    gradients = []
    for each in (model, plain):
        x = torch.linspace(-1, 1, 15).view(5, 3).requires_grad_()
        with torch.autograd.graph.save_on_cpu():
            y = each(x)
        y.square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in each.parameters())])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert len(fused_calls) == 1


@pytest.mark.parametrize("changed", ["x", "0.bias", "0.weight"])
def test_changing_a_tensor_before_the_backward_pass_raises(changed, fused_calls):
    """All tensors are guarded, also those the layers would not need: second derivatives do."""
    model, _ = build_sequential(nn.PReLU)
    x = torch.randn(5, 3)
    y = model(x)
    with torch.no_grad():
        (x if changed == "x" else model.get_parameter(changed)).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    assert len(fused_calls) == 1
