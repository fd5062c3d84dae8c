"""A perceptron that has run fused is changed: the next call does what the layers would do now."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from flashpoint.kernels import FusedMLP, accelerate

from .perceptrons import perceptron

pytestmark = pytest.mark.usefixtures("on_device", "fused_calls")


class Tagged(nn.Parameter):
    """A parameter of a class of its own."""


def replace_layer(model):
    model[2] = nn.Linear(16, 8)


def replace_layer_by_another_width(model):
    model[2], model[4] = nn.Linear(16, 11), nn.Linear(11, 2)


def replace_activations(model):
    model[1] = model[3] = nn.Tanh()


def remove_a_layer(model):
    model[2], model[4] = nn.Linear(16, 2), model[2]
    del model[4], model[3]


def append_layers(model):
    model.append(nn.PReLU(init=-0.5))
    model.append(nn.Linear(2, 4))


def exchange_parameters(model):
    for name in ("weight", "bias"):
        setattr(model[2], name, nn.Parameter(torch.randn_like(getattr(model[2], name))))


def assign_data(model):
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)


def write_data(model):
    for parameter in model.parameters():
        parameter.data.normal_()


def step_of_an_optimizer(model):
    model(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()


def transpose_weights(model):
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = torch.randn_like(parameter.T.contiguous()).T


def misalign(model):
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.numel() + 1)[1:].view_as(parameter)


def remove_all_biases(model):
    for layer in model[::2]:
        layer.bias = None


def tie_slopes(model):
    model[3].weight = model[1].weight


def share_the_activation(model):
    model[3] = model[1]


def set_slopes(model):
    for activation in (model[1], model[3]):
        activation.weight = nn.Parameter(torch.tensor([-0.7]))


# Changes after which a network of PReLUs runs fused, in another way.
SEEN = (
    replace_layer, replace_layer_by_another_width, replace_activations, remove_a_layer,
    append_layers, exchange_parameters, assign_data, write_data, step_of_an_optimizer,
    transpose_weights, misalign, remove_all_biases, tie_slopes, share_the_activation, set_slopes,
)  # fmt: skip


def first_layer_doubled(model):
    model[0].register_forward_hook(lambda module, args, y: 2 * y)  # noqa: ARG005


def input_doubled(model):
    model[2].register_forward_pre_hook(lambda module, args: (2 * args[0],))  # noqa: ARG005


def gradient_doubled(model):
    model[2].register_full_backward_hook(lambda module, grad, _: (2 * grad[0],))  # noqa: ARG005


def incoming_gradient_doubled(model):
    model[2].register_full_backward_pre_hook(lambda module, grad: (2 * grad[0],))  # noqa: ARG005


def forward_of_its_own(model):
    model[1].forward = torch.sin


def class_of_its_own(model):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model[2].__class__ = Doubled


def one_other_activation(model):
    model[3] = nn.ReLU()


def dropout_in_between(model):
    model.insert(2, nn.Dropout(0.0))


def parametrized(model):
    parametrizations.weight_norm(model[0])


def weight_of_the_old_norm(model):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[0])


def one_bias_less(model):
    model[2].bias = None


def bias_in_a_buffer(model):
    bias = model[2].bias.detach()
    del model[2].bias
    model[2].register_buffer("bias", bias)


def another_class_of_parameter(model):
    model[2].weight = Tagged(model[2].weight.detach())


def one_double_weight(model):
    model.double()


def sparse_weight(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse_csr(), requires_grad=False)


# Changes after which the layers run.
REFUSED = (
    first_layer_doubled, input_doubled, gradient_doubled, incoming_gradient_doubled,
    forward_of_its_own, class_of_its_own, one_other_activation, dropout_in_between, parametrized,
    weight_of_the_old_norm, one_bias_less, bias_in_a_buffer, another_class_of_parameter,
    one_double_weight, sparse_weight,
)  # fmt: skip


def build(kind, activation=nn.PReLU):
    layers = perceptron(activation)
    if kind == "accelerate":
        accelerate(layers)
        return layers, layers
    return FusedMLP.from_module(layers), layers


def results(run, model, x):
    """Returns y and the gradients of all parameters that have one."""
    model.zero_grad()
    y = run(x)
    y.square().sum().backward()
    return [y, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


def assert_as_the_layers(run, model, width=3):
    x = torch.randn(6, width, dtype=model[-1].weight.dtype)
    ours = results(run, model, x)
    theirs = results(nn.Sequential(*model), model, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["accelerate", "FusedMLP"])
@pytest.mark.parametrize("change", SEEN + REFUSED, ids=lambda change: change.__name__)
def test_a_change_is_seen(change, kind, fused_calls):
    run, model = build(kind)
    run(torch.randn(6, 3))
    change(model)
    fused_calls.clear()
    assert_as_the_layers(run, model)
    assert len(fused_calls) == (change in SEEN)


def test_a_slope_is_not_taken_for_a_bias(fused_calls):
    """One bias less and one slope more are as many tensors of the same shapes."""
    shared = nn.PReLU()
    model = nn.Sequential(nn.Linear(3, 8), shared, nn.Linear(8, 8), shared, nn.Linear(8, 1))
    accelerate(model)
    model(torch.randn(6, 3))
    model[4].bias, model[3] = None, nn.PReLU()
    fused_calls.clear()
    assert_as_the_layers(model, model)
    assert not fused_calls


@pytest.mark.parametrize(
    ("activation", "option", "value", "fused"),
    [(nn.LeakyReLU, "negative_slope", -0.4, True), (nn.GELU, "approximate", "tanh", False)],
)
def test_an_option_of_an_activation_is_seen(activation, option, value, fused, fused_calls):
    run, model = build("accelerate", activation)
    run(torch.randn(6, 3))
    for layer in (model[1], model[3]):
        setattr(layer, option, value)
    fused_calls.clear()
    assert_as_the_layers(run, model)
    assert bool(fused_calls) == fused


def test_a_global_hook_is_seen_while_it_is_there(fused_calls):
    run, model = build("accelerate")
    run(torch.randn(6, 3))
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, y: 2 * y if isinstance(module, nn.PReLU) else None  # noqa: ARG005
    )
    try:
        assert_as_the_layers(run, model)
    finally:
        handle.remove()
    assert len(fused_calls) == 1
    assert_as_the_layers(run, model)
    assert len(fused_calls) == 2


@pytest.mark.parametrize("kind", ["accelerate", "FusedMLP"])
def test_what_is_frozen_and_thawed(kind):
    run, model = build(kind)
    x = torch.randn(6, 3)
    assert run(x).requires_grad
    model.requires_grad_(False)
    assert not run(x).requires_grad
    model[2].weight.requires_grad_()
    run(x).sum().backward()
    assert model[2].weight.grad is not None
    assert all(p.grad is None for p in model.parameters() if p is not model[2].weight)


def test_another_dtype_and_autocast_are_seen(device, fused_calls):
    run, model = build("accelerate")
    x = torch.randn(6, 3)
    plain = copy.deepcopy(nn.Sequential(*model))
    with torch.autocast(device.type, torch.float16):
        assert run(x).dtype == run(x.half()).dtype == torch.float16
    assert run(x).dtype == torch.float32
    model.half()
    torch.testing.assert_close(run(x.half()).float(), plain(x), rtol=1e-2, atol=1e-2)
    with pytest.raises(RuntimeError, match="dtype"):
        run(x)
    assert len(fused_calls) == 4


def test_tensors_in_place_of_the_parameters_are_used(fused_calls):
    run, model = build("accelerate")
    run(torch.randn(6, 3))
    others = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    x = torch.randn(6, 3)
    y = torch.func.functional_call(model, others, (x,))
    torch.testing.assert_close(
        y, torch.func.functional_call(nn.Sequential(*model), others, (x,)), rtol=1e-4, atol=1e-4
    )
    assert len(fused_calls) == 2


def test_nothing_is_kept_alive():
    run, model = build("accelerate")
    model.parent = [model]  # only the collector frees it
    run(torch.randn(6, 3))
    dead = [weakref.ref(each) for each in (model, model[0], model[0].weight)]
    del run, model
    gc.collect()
    assert [each() for each in dead] == [None] * 3
