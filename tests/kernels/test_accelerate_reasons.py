"""accelerate() reports which modules it takes, and why it leaves others alone."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from flashpoint.kernels import _dispatch, _reading, accelerate

from .perceptrons import Model, perceptron

pytestmark = pytest.mark.usefixtures("on_device")


def test_a_gpu_without_kernels_is_reported(monkeypatch):
    network = _reading.read_layers(perceptron())
    weight = SimpleNamespace(
        dtype=torch.float32, is_cuda=True, device=torch.device("cuda:0"), shape=(16, 3)
    )
    network = network._replace(weights=[weight, *network.weights[1:]])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    _dispatch._find_problem.cache_clear()
    assert _reading.not_yet_fused(network) == "needs compute capability 8.0 or more, got 7.5"
    _dispatch._find_problem.cache_clear()


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
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU()), "the last layer is no Linear layer"),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)),
            "layer 1 (PReLU) has a slope for each column",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU("tanh"), nn.Linear(4, 2)),
            "layer 1 (GELU) is an approximation",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 2)),
            "a layer of 5 inputs follows one of 4 outputs",
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


@pytest.mark.parametrize(
    ("build", "layers", "reason"),
    [
        (with_own_forward, "2 to 4", "layer 0 (Linear) has a forward of its own"),
        (with_weight_elsewhere, "2 to 4", "layer 0 (Linear) has its weight elsewhere"),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Tanh()),
            "0 to 2",
            "the last layer is no Linear layer",
        ),
        (
            lambda: nn.Sequential(
                nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
            ),
            "0 to 2",
            "the activations differ",
        ),
    ],
)
def test_fused_in_part_with_the_reason(build, layers, reason):
    model = build()
    with pytest.raises(ValueError, match="model must have only perceptrons"):
        accelerate(model, strict=True)
    assert type(model) is nn.Sequential
    report = accelerate(model)
    assert report.accelerated == [""]
    assert report.partly == {"": f"layers {layers} only, because {reason}"}
    assert report.skipped == {}


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


def test_a_missing_layer_is_reported():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[1] = None
    assert accelerate(model).skipped == {
        "": "layer 1 (NoneType) stands where an activation is needed"
    }


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("partitioned", [True, False])
def test_weights_without_elements_are_reported(strict, partitioned):
    """A layer may have no columns, and weights may be sharded over ranks until they are used."""
    model = nn.Sequential(nn.Linear(3, 4 * partitioned), nn.ReLU(), nn.Linear(4 * partitioned, 2))
    if partitioned:
        for parameter in model.parameters():
            parameter.data = torch.empty(0)
    if strict:
        with pytest.raises(ValueError, match="a weight that is no whole matrix"):
            accelerate(model, strict=True)
    else:
        assert accelerate(model).waiting == {"": "a weight that is no whole matrix"}
