"""accelerate(): someone else's model, faster, and in every other respect the same."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

from flashpoint.kernels import accelerate

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
    assert str(report) == "first: fused\nrest.0: fused"
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


@pytest.mark.parametrize("move", [nn.Module.half, nn.Module.double, BFLOAT16])
def test_changing_the_dtype(move, fused_calls):
    model = perceptron()
    accelerate(model)
    assert move(model) is model
    x = torch.randn(4, 3).to(model[0].weight.dtype)
    torch.testing.assert_close(model(x), nn.Sequential(*model)(x), rtol=1e-2, atol=1e-2)
    assert len(fused_calls) == 1


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
