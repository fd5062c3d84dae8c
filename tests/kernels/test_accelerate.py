"""accelerate(): someone else's model, faster, and in every other respect the same."""

import copy
import io
import re
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from flashpoint.kernels import Acceleration, FusedMLP, _dispatch, _perceptrons, accelerate
from flashpoint.kernels.mlp import faster_in_pytorch

pytestmark = pytest.mark.usefixtures("on_device")


def perceptron(activation=nn.ReLU):
    return nn.Sequential(
        nn.Linear(3, 16), activation(), nn.Linear(16, 8), activation(), nn.Linear(8, 2)
    )


class Model(nn.Module):
    """Two perceptrons among other things."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.first = perceptron()
        self.rest = nn.ModuleList([perceptron(nn.PReLU), nn.Sequential(nn.Flatten())])

    def forward(self, x):
        x = self.norm(x)
        return self.first(x) + self.rest[0](x)


def test_model_is_unchanged_but_for_what_runs(fused_calls):
    model = Model().eval()
    before = copy.deepcopy(model)
    identities = [id(parameter) for parameter in model.parameters()]
    report = accelerate(model)
    assert report.accelerated == ["first", "rest.0"]
    assert report.skipped == {}
    settings = (
        "under autocast and, without gradients, in tf32; else float32 is faster layer by layer"
    )
    assert str(report) == f"first: fused {settings}\nrest.0: fused {settings}"
    assert str(accelerate(copy.deepcopy(model).half())) == "first: fused\nrest.0: fused"
    assert [id(parameter) for parameter in model.parameters()] == identities
    assert list(model.state_dict()) == list(before.state_dict())
    assert not model.first.training
    assert isinstance(model.first, nn.Sequential)
    assert len(model.first) == 5
    assert type(model.first[1]) is nn.ReLU
    assert [type(layer) for layer in model.first] == [type(layer) for layer in before.first]
    x = torch.randn(7, 3)
    torch.testing.assert_close(model(x), before(x))
    assert len(fused_calls) == 2


def test_optimizer_made_before_trains_the_same_run(fused_calls):
    torch.manual_seed(0)
    model = Model()
    twin = copy.deepcopy(model)
    optimizers = [
        torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (model, twin)
    ]
    accelerate(model)
    x, target = torch.randn(32, 3), torch.randn(32, 2)
    for _ in range(5):
        for each, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.mse_loss(each(x), target).backward()
            optimizer.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(fused_calls) == 10


def test_a_first_layer_without_activation_is_fused_too(fused_calls):
    act = nn.PReLU(init=-0.3)
    model = nn.Sequential(
        nn.Linear(3, 16), nn.Linear(16, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 2)
    )
    plain = copy.deepcopy(model)
    assert accelerate(model).accelerated == [""]
    x = torch.randn(7, 3)
    torch.testing.assert_close(model(x), plain(x))
    assert len(fused_calls) == 1
    for activation in (nn.Tanh, nn.SiLU):
        model = nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 8), activation(), nn.Linear(8, 2))
        assert list(accelerate(model).skipped) == [""]


def test_the_slope_of_a_leaky_relu_is_the_layers_own(fused_calls):
    model = perceptron(lambda: nn.LeakyReLU(0.3))
    plain = copy.deepcopy(model)
    accelerate(model)
    x = torch.randn(7, 3)
    torch.testing.assert_close(model(x), plain(x))
    assert len(fused_calls) == 1


def test_load_state_dict_by_assignment(fused_calls):
    model, source = perceptron(nn.PReLU), perceptron(nn.PReLU)
    accelerate(model)
    model.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(4, 3)
    torch.testing.assert_close(model(x), source(x))
    assert len(fused_calls) == 1


def test_deepcopy_is_independent_and_fused(fused_calls):
    model = perceptron()
    accelerate(model)
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin[0].weight)
    x = torch.randn(4, 3)
    assert not torch.equal(model(x), twin(x))
    torch.testing.assert_close(twin(x), nn.Sequential(*twin)(x))
    assert len(fused_calls) == 3


def test_elsewhere_than_on_a_gpu_the_layers_run_as_before():
    model = perceptron().cpu()
    accelerate(model)
    x = torch.randn(4, 3, device="cpu")
    assert torch.equal(model(x), nn.Sequential(*model)(x))


# The interpreter multiplies bf16 matrices wrongly.
BFLOAT16 = pytest.param(nn.Module.bfloat16, marks=pytest.mark.gpu)


@pytest.mark.parametrize("move", [nn.Module.half, BFLOAT16])
def test_changing_the_dtype(move, fused_calls):
    model = perceptron()
    accelerate(model)
    assert move(model) is model
    x = torch.randn(4, 3).to(model[0].weight.dtype)
    torch.testing.assert_close(model(x), nn.Sequential(*model)(x), rtol=1e-2, atol=1e-2)
    assert len(fused_calls) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_other_dtypes_are_left_to_the_layers_bit_for_bit(dtype, fused_calls):
    model = perceptron(nn.Tanh)
    plain = copy.deepcopy(model).to(dtype)
    assert accelerate(model).accelerated == [""]
    model.to(dtype)
    x = torch.randn(40, 3, dtype=dtype)
    assert torch.equal(model(x), plain(x))
    for each in (model, plain):
        each(x).abs().square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    name = str(dtype).removeprefix("torch.")
    assert accelerate(model) == Acceleration(waiting={"": name})
    assert str(accelerate(model)) == f"(model): not yet fused, {name}"
    with pytest.raises(ValueError, match=f"not yet fused, {name}"):
        accelerate(model, strict=True)
    assert not fused_calls
    assert accelerate(model.to(torch.float32)).accelerated == [""]
    model(x.to(torch.float32))
    assert len(fused_calls) == 1


def test_a_gpu_without_kernels_is_left_to_the_layers_bit_for_bit(fused_calls, monkeypatch, caplog):
    model, x = perceptron(), torch.randn(40, 3)
    plain = copy.deepcopy(model)
    accelerate(model)
    monkeypatch.setattr(_perceptrons, "problem_of", lambda _: "needs compute capability 8.0")
    _dispatch._log.cache_clear()
    with caplog.at_level("INFO", logger="flashpoint"):
        assert torch.equal(model(x), plain(x))
    assert "plain PyTorch instead of Triton kernels: needs compute capability 8.0" in caplog.text
    assert not fused_calls


def test_a_gpu_without_kernels_is_reported(monkeypatch):
    network = _perceptrons.read_layers(perceptron())
    weight = SimpleNamespace(
        dtype=torch.float32, is_cuda=True, device=torch.device("cuda:0"), shape=(16, 3)
    )
    network = network._replace(weights=[weight, *network.weights[1:]])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    _dispatch._find_problem.cache_clear()
    assert _perceptrons.not_yet_fused(network) == "needs compute capability 8.0 or more, got 7.5"
    _dispatch._find_problem.cache_clear()


def with_layer(layer):
    model = perceptron()
    model[2] = layer
    return model


MISFITS = {
    "last dimension": lambda: (perceptron(), torch.randn(4, 5)),
    "no dimension": lambda: (perceptron(), torch.tensor(1.0)),
    "dtype of x": lambda: (perceptron(), torch.randn(4, 3).half()),
    "integers": lambda: (perceptron(), torch.ones(4, 3, dtype=torch.int64)),
    "no tensor": lambda: (perceptron(), [1.0, 2.0, 3.0]),
    "width of a layer": lambda: (with_layer(nn.Linear(9, 8)), torch.randn(4, 3)),
    "dtype of a layer": lambda: (with_layer(nn.Linear(16, 8).half()), torch.randn(4, 3)),
    "device of a layer": lambda: (with_layer(nn.Linear(16, 8, device="meta")), torch.randn(4, 3)),
}


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_raises_what_the_layers_raise(misfit, fused_calls):
    model, x = misfit()
    accelerate(model)
    with pytest.raises((RuntimeError, TypeError)) as expected:
        nn.Sequential(*model)(x)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        model(x)
    assert not fused_calls


@pytest.mark.parametrize(
    ("dtype", "fused"), [(torch.float32, True), (torch.float16, True), (torch.bfloat16, False)]
)
def test_autocast_casts_what_the_layers_would(dtype, fused, device, fused_calls):
    model, x = perceptron().to(dtype), torch.randn(40, 3)
    plain = copy.deepcopy(model)
    accelerate(model)
    with torch.autocast(device.type, torch.float16):
        y, expected = model(x), plain(x)
    assert y.dtype == torch.float16
    tolerance = 5e-3 if fused else 0
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    assert len(fused_calls) == fused


def test_sparse_weights_are_left_to_the_layers(fused_calls):
    model = perceptron()
    accelerate(model)
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse_csr(), requires_grad=False)
    x = torch.randn(4, 3)
    torch.testing.assert_close(model(x), nn.Sequential(*model)(x), rtol=0, atol=0)
    assert not fused_calls


def test_to_a_device_moves_the_parameters():
    model = perceptron()
    accelerate(model)
    model.to("meta")
    assert model(torch.empty(4, 3, device="meta")).shape == (4, 2)


def test_state_dict_goes_through_a_file():
    model, other = perceptron(), perceptron()
    accelerate(model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    x = torch.randn(4, 3)
    torch.testing.assert_close(model(x), other(x))


def test_wrapped_in_ddp(tmp_path, fused_calls):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = Model()
        twin = copy.deepcopy(model)
        accelerate(model)
        wrapped = DistributedDataParallel(model)
        x = torch.randn(8, 3)
        wrapped(x).square().mean().backward()
        twin(x).square().mean().backward()
    finally:
        dist.destroy_process_group()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert len(fused_calls) == 2


def hooked_inside():
    model = perceptron()
    model[2].register_forward_hook(lambda *_: None)
    return model


def hooked_itself():
    model = perceptron()
    model.register_full_backward_hook(lambda *_: None)
    return model


def parametrized():
    model = perceptron()
    parametrizations.spectral_norm(model[2])
    return model


def with_own_forward():
    model = perceptron()
    model[0].forward = model[0].forward
    return model


def with_weight_elsewhere():
    model = perceptron()
    weight = model[0]._parameters.pop("weight")
    model[0].weight = weight.detach()
    return model


class Special(nn.Sequential):
    """A Sequential whose forward may do anything."""


def with_mixed_bias():
    model = perceptron()
    model[2] = nn.Linear(16, 8, bias=False)
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (hooked_inside, "layer 2 (Linear) has hooks"),
        (hooked_itself, "it has hooks"),
        (parametrized, "layer 2 (ParametrizedLinear) has parametrizations"),
        (with_own_forward, "layer 0 (Linear) has a forward of its own"),
        (with_weight_elsewhere, "layer 0 (Linear) has its weight elsewhere"),
        (with_mixed_bias, "some layers have a bias and some have none"),
        (lambda: Special(*perceptron()), "Special is a class of its own"),
        (lambda: nn.Sequential(nn.Linear(3, 2)), "there is no hidden layer"),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)),
            "layer 1 (Dropout) stands where an activation is needed",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
            "layer 1 (LayerNorm) stands where an activation is needed",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Tanh()),
            "the last layer is no Linear layer",
        ),
        (
            lambda: nn.Sequential(
                nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
            ),
            "the activations differ",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)),
            "layer 1 (PReLU) has a slope for each column",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU("tanh"), nn.Linear(4, 2)),
            "layer 1 (GELU) is an approximation",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 1024), nn.ReLU(), nn.Linear(1024, 2)),
            "a hidden layer of 1024, wider than 512",
        ),
    ],
)
def test_left_alone_with_the_reason(build, reason):
    model = build()
    kind = type(model)
    assert accelerate(model).skipped == {"": reason}
    assert type(model) is kind
    with pytest.raises(ValueError, match="model must have only perceptrons"):
        accelerate(model, strict=True)


def test_hook_registered_later_still_fires(fused_calls):
    model = perceptron()
    accelerate(model)
    x, seen = torch.randn(4, 3), []
    fused = model(x)
    handle = model[2].register_forward_hook(lambda *_: seen.append(True))
    torch.testing.assert_close(model(x), fused)
    handle.remove()
    model(x)
    assert len(seen) == 1
    assert len(fused_calls) == 2


def test_layer_replaced_later_is_used():
    model = perceptron()
    accelerate(model)
    model[1] = nn.Dropout(p=1.0)
    x = torch.randn(4, 3)
    torch.testing.assert_close(model(x), model(torch.zeros(4, 3)))


def test_filter_chooses_by_name_and_module():
    model = Model()
    report = accelerate(model, filter=lambda name, module: name != "first" and len(module) == 5)
    assert report.accelerated == ["rest.0"]
    assert report.skipped == {}
    assert type(model.first) is nn.Sequential


def test_strict_changes_nothing_when_it_raises():
    model = Model()
    model.bad = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="bad: left alone"):
        accelerate(model, strict=True)
    assert type(model.first) is nn.Sequential


def test_strict_wants_at_least_one():
    with pytest.raises(ValueError, match="no perceptron found"):
        accelerate(nn.Conv2d(1, 1, 1), strict=True)


def test_a_second_time_is_the_same():
    model = Model()
    assert accelerate(model) == accelerate(model)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.PReLU, nn.LeakyReLU])
def test_compiles_into_one_graph(activation, fused_calls):
    model = perceptron(activation)
    accelerate(model)
    x, compiled = torch.randn(6, 3), torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    got = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    nn.Sequential(*model)(x).sum().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert fused_calls


# Whoever looks at single operations of PyTorch's gets the layers.


class Tagged(torch.Tensor):
    """A subclass of Tensor that PyTorch's operations keep."""


def build_sequential(activation):
    model = perceptron(activation)
    plain = copy.deepcopy(model)
    assert accelerate(model).accelerated == [""]
    return model, plain


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
    """A product with the Hessian, forward over reverse."""
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
    """Tensors without the names that parameters have in one module or another."""
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
    """The tangent of a gradient comes from that of the incoming gradient."""
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


# What keeps or computes anew what a backward pass needs.


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
    """Of every tensor, where the layers would not need some: second derivatives need them all."""
    model, _ = build_sequential(nn.PReLU)
    x = torch.randn(5, 3)
    y = model(x)
    with torch.no_grad():
        (x if changed == "x" else model.get_parameter(changed)).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    assert len(fused_calls) == 1


@pytest.fixture
def matmul_precision():
    """Sets PyTorch's precision of float32 products until the test ends."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("setting", "gradients", "autocast", "fused"),
    [
        ("highest", True, None, False),
        ("highest", False, None, False),
        ("high", True, None, False),
        ("high", False, None, True),
        ("highest", True, torch.float16, True),
        ("high", True, torch.float16, True),
    ],
)
@pytest.mark.parametrize("kind", ["accelerate", "FusedMLP"])
def test_float32_runs_fused_where_that_is_faster(
    device, monkeypatch, matmul_precision, fused_calls, kind, setting, gradients, autocast, fused
):
    monkeypatch.setattr(_perceptrons, "faster_in_pytorch", faster_in_pytorch)
    plain = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).to(device)
    model = copy.deepcopy(plain)
    if kind == "accelerate":
        accelerate(model, strict=True)
    else:
        model = FusedMLP.from_module(model)
    x = torch.randn(20, 3, device=device)
    matmul_precision(setting)
    with (
        torch.set_grad_enabled(gradients),
        torch.autocast(device.type, autocast, enabled=autocast is not None),
    ):
        y, expected = model(x), plain(x)
    assert bool(fused_calls) == fused
    if not fused:
        assert torch.equal(y, expected)


def test_a_precision_by_name_runs_fused(device, monkeypatch, fused_calls):
    monkeypatch.setattr(_perceptrons, "faster_in_pytorch", faster_in_pytorch)
    with torch.device(device):
        model = FusedMLP(3, 2, [16], precision="tf32x3")
        model(torch.randn(20, 3)).sum().backward()
    assert fused_calls


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "fused"), [(torch.float16, True), (torch.float32, False)])
def test_on_a_gpu_half_precision_runs_fused_and_float32_in_its_layers(monkeypatch, dtype, fused):
    calls, run = [], _perceptrons.run_kernels
    monkeypatch.setattr(_perceptrons, "run_kernels", lambda *call: calls.append(call) or run(*call))
    model = perceptron().to(dtype)
    accelerate(model, strict=True)
    assert model(torch.randn(20, 3, dtype=dtype)).isfinite().all()
    assert bool(calls) == fused


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("partitioned", [True, False])
def test_weights_without_elements_are_reported(strict, partitioned):
    """A layer without columns, or weights that are shared out over ranks until they are used."""
    model = nn.Sequential(nn.Linear(3, 4 * partitioned), nn.ReLU(), nn.Linear(4 * partitioned, 2))
    if partitioned:
        for parameter in model.parameters():
            parameter.data = torch.empty(0)
    if strict:
        with pytest.raises(ValueError, match="a weight without elements"):
            accelerate(model, strict=True)
    else:
        assert accelerate(model).waiting == {"": "a weight without elements"}
