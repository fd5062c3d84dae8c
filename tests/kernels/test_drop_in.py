"""A fused model does what the plain one does, whatever is done to it or given to it."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint_sequential

from flashpoint.kernels import FusedMLP, accelerate

from .perceptrons import perceptron

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(6, 3, generator=GENERATOR)
ODD = torch.tensor([[float("nan"), 1, 2], [float("inf"), 1, 2], [1, 2, 3], [3e38, 3e38, 3e38]])


def linears(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def gradients(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    return y, x.grad, *(parameter.grad for parameter in model.parameters())


def after(change, call=gradients):
    """Returns a trial: a model runs, is changed, and runs once more."""

    def trial(model, x):
        model(x)
        changed = change(model)
        return call(model if changed is None else changed, x)

    return trial


def through_a_file(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@torch.no_grad()
def double_in_place(model):
    for parameter in model.parameters():
        parameter.mul_(2)


def replace_data(model):
    weight = linears(model)[0].weight
    weight.data = torch.ones_like(weight)


def through_a_vector(model):
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector / 2, model.parameters())


def freeze_one(model):
    linears(model)[0].weight.requires_grad_(False)


def load_its_own_state(model):
    model.load_state_dict(model.state_dict())


def prune_a_layer(model):
    prune.l1_unstructured(linears(model)[1], "weight", 0.5)


def normalise_a_layer(model):
    parametrizations.weight_norm(linears(model)[0])


def forward(model, x):
    return (model(x),)


def without_gradients(model, x):
    with torch.no_grad():
        return forward(model, x)


def in_inference_mode(model, x):
    with torch.inference_mode():
        y = model(x)
    assert y.is_inference()
    return (y.clone(),)


def with_anomaly_detection(model, x):
    with torch.autograd.set_detect_anomaly(True):
        return gradients(model, x)


def hooks_of_parameters(model, x):
    seen = []
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: seen.append(grad.clone()))
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    gradients(model, x)
    return sorted(seen, key=lambda grad: (grad.shape, grad.sum()))


def backward_twice(model, x):
    y = model(x)
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    return [parameter.grad for parameter in model.parameters()]


def second_derivatives(model, x):
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), [x, *model.parameters()], allow_unused=True)


def output_changed_in_place(model, x):
    y = model(x)
    y.add_(1).square().sum().backward()
    return y, *(parameter.grad for parameter in model.parameters())


TRIALS = {
    "gradients": gradients,
    "no_grad": without_gradients,
    "inference mode": in_inference_mode,
    "anomaly mode": with_anomaly_detection,
    "hooks of parameters": hooks_of_parameters,
    "backward twice": backward_twice,
    "second derivatives": second_derivatives,
    "jacobian": lambda model, x: (torch.autograd.functional.jacobian(model, x),),
    "jacobian, vectorised": lambda model, x: (
        torch.autograd.functional.jacobian(model, x, vectorize=True),
    ),
    "output changed in place": output_changed_in_place,
    "functional_call": lambda model, x: (
        torch.func.functional_call(model, {k: 2 * p for k, p in model.named_parameters()}, (x,)),
    ),
    "deepcopy": after(copy.deepcopy),
    "copy": after(copy.copy),
    "pickle": after(lambda model: pickle.loads(pickle.dumps(model))),
    "torch.save": after(through_a_file),
    "AveragedModel": after(AveragedModel, forward),
    "DataParallel": after(nn.DataParallel, forward),
    "weights changed in place": after(double_in_place),
    "data replaced": after(replace_data),
    "parameters from a vector": after(through_a_vector),
    "frozen": after(lambda model: model.requires_grad_(False), forward),
    "partly frozen": after(freeze_one),
    "share_memory": after(nn.Module.share_memory),
    "load_state_dict": after(load_its_own_state),
    "pruned": after(prune_a_layer, forward),
    "weight_norm": after(normalise_a_layer, forward),
    "float64": lambda model, x: gradients(model.double(), x.double()),
}
INPUTS = {
    "empty": torch.empty(0, 3),
    "one row without a batch": X[0],
    "four axes": torch.randn(2, 1, 3, 3, generator=GENERATOR),
    "four axes, empty": torch.empty(2, 0, 3, 3),
    "transposed": torch.randn(3, 6, generator=GENERATOR).T,
    "expanded": X[:1].expand(9, 3),
    "every second row": X[::2],
    "NaN and infinity": ODD,
}
MISFITS = {
    "integers": torch.ones(4, 3, dtype=torch.int64),
    "bool": X > 0,
    "float64": X.double(),
    "half": X.half(),
    "complex": X.to(torch.complex64),
    "too wide": torch.ones(4, 5),
    "no axis": torch.tensor(1.0),
    "meta": X.to("meta"),
    "list": [1.0, 2.0, 3.0],
    "None": None,
}


def fused(kind, plain):
    model = copy.deepcopy(plain)
    if kind == "FusedMLP":
        return FusedMLP.from_module(model)
    accelerate(model)
    return model


KINDS = pytest.mark.parametrize("kind", ["accelerate", "FusedMLP"])


def check(trial, kind, x, fused_calls, device, activation=nn.PReLU):
    plain = perceptron(activation).to(device)
    model = fused(kind, plain)
    found, expected = trial(model, x.to(device)), trial(plain, x.to(device))
    assert fused_calls or x.dtype == torch.float64
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is None:
            assert ours is None
            continue
        assert (ours.dtype, ours.requires_grad) == (theirs.dtype, theirs.requires_grad)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, equal_nan=True)


@KINDS
@pytest.mark.parametrize("trial", TRIALS)
def test_whatever_is_done_to_it(trial, kind, fused_calls, device):
    if trial == "float64":
        fused_calls.append(None)  # the layers run
    check(TRIALS[trial], kind, X, fused_calls, device)


@KINDS
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("activation", [nn.PReLU, nn.ReLU, nn.LeakyReLU, nn.Tanh])
def test_whatever_it_is_given(name, kind, activation, fused_calls, device):
    trial = forward if name == "NaN and infinity" else gradients
    check(trial, kind, INPUTS[name], fused_calls, device, activation)


@KINDS
@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_raises_what_the_layers_raise(name, kind, fused_calls, device):
    plain = perceptron().to(device)
    value = MISFITS[name]
    if isinstance(value, torch.Tensor) and not value.is_meta:
        value = value.to(device)
    with pytest.raises((TypeError, RuntimeError, AttributeError)) as expected:
        plain(value)
    with pytest.raises(type(expected.value)) as found:
        fused(kind, plain)(value)
    assert str(found.value) == str(expected.value)
    assert not fused_calls


def test_the_argument_has_its_name(fused_calls, device):
    plain = perceptron().to(device)
    model = fused("accelerate", plain)
    torch.testing.assert_close(model(input=X.to(device)), plain(input=X.to(device)))
    assert fused_calls


def without_an_activation(model):
    model.pop(3)
    return model


def checkpointed(model):
    return lambda x: checkpoint_sequential(model, 2, x, use_reentrant=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[:3],
        lambda model: model.append(nn.Tanh()),
        lambda model: model + nn.Sequential(nn.Tanh()),
        lambda model: model * 1,
        without_an_activation,
        checkpointed,
    ],
    ids=["slice", "append", "add", "multiply", "pop", "checkpoint_sequential"],
)
@pytest.mark.usefixtures("fused_calls")
def test_it_is_still_a_sequential(change, device):
    plain = perceptron().to(device)
    model = fused("accelerate", plain)
    x = X.to(device)
    torch.testing.assert_close(change(model)(x), change(plain)(x))
