"""decelerate(): a model runs as before accelerate(), with the same modules and Parameters."""

import copy

import pytest
import torch
from torch import nn

from flashpoint.kernels import FusedMLP, accelerate, decelerate

from .perceptrons import Model, perceptron

pytestmark = pytest.mark.usefixtures("on_device")


def test_modules_and_parameters_stay_the_objects_that_they_are():
    model = Model()
    kinds = {name: type(module) for name, module in model.named_modules()}
    modules, parameters = [*map(id, model.modules())], [*map(id, model.parameters())]
    report = accelerate(model)
    assert decelerate(model) == report.accelerated == ["first", "rest.0"]
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert [*map(id, model.modules())] == modules
    assert [*map(id, model.parameters())] == parameters
    assert decelerate(model) == []
    assert accelerate(model) == report


def test_no_kernel_runs_afterwards(fused_calls):
    model = perceptron()
    x = torch.randn(4, 3)
    accelerate(model)
    model(x)
    assert len(fused_calls) == 1
    assert decelerate(model) == [""]
    model(x)
    assert len(fused_calls) == 1


def test_hooks_stay():
    model, calls = perceptron(), []
    accelerate(model)
    model.register_forward_hook(lambda *_: calls.append("itself"))
    model[0].register_forward_hook(lambda *_: calls.append("inside"))
    assert decelerate(model) == [""]
    model(torch.randn(4, 3))
    assert calls == ["inside", "itself"]


def test_other_modules_are_left_alone():
    model = nn.ModuleList([FusedMLP(3, 2, [8]), nn.Linear(3, 2)])
    assert decelerate(model) == []
    accelerate(model)
    assert decelerate(model) == ["0.model"]
    assert type(model[0]) is FusedMLP


def test_a_module_at_two_places_is_undone_at_both():
    inner = perceptron()
    model = nn.ModuleList([inner, inner])
    accelerate(model)
    assert decelerate(model) == ["0"]
    assert type(model[0]) is type(model[1]) is nn.Sequential


def test_it_can_be_scripted_again():
    model, x = perceptron(), torch.randn(4, 3)
    accelerate(model)
    decelerate(model)
    assert torch.equal(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize("undone", [True, False])
def test_symbolic_trace_sees_the_layers_inside_a_model(undone):
    model = Model()
    accelerate(model)
    if undone:
        decelerate(model)
    traced = torch.fx.symbolic_trace(model)
    assert not [node for node in traced.graph.nodes if "flashpoint" in str(node.target)]
    x = torch.randn(4, 3)
    assert torch.equal(traced(x), copy.deepcopy(model)(x))


@pytest.mark.parametrize("model", [None, "model", torch.ones(3), nn.Linear, [nn.Linear(3, 2)]])
def test_what_is_no_module_is_named(model):
    for function in (accelerate, decelerate):
        with pytest.raises(TypeError, match=r"^model must be an nn.Module, got .+$"):
            function(model)
