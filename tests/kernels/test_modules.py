"""FusedMLP against the plain module that it replaces."""

import copy

import pytest
import torch
from torch import nn

from flashpoint.kernels import FusedMLP
from flashpoint.kernels.modules import ACTIVATION_MODULES

pytestmark = pytest.mark.usefixtures("on_device", "fused_calls")

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class MLP(nn.Module):
    """The plain layout with one shared activation."""

    def __init__(self, input_dim, output_dim, hidden_layers):
        super().__init__()
        self.act = nn.PReLU()
        layers = []
        for width in hidden_layers:
            layers += [nn.Linear(input_dim, width), self.act]
            input_dim = width
        self.model = nn.Sequential(*layers, nn.Linear(input_dim, output_dim))

    def forward(self, x):
        return self.model(x)


def gradients(module, x):
    x = x.clone().requires_grad_()
    module.zero_grad()
    module(x).square().sum().backward()
    return [x.grad, *(parameter.grad for parameter in module.parameters())]


def test_checkpoints_of_the_plain_module_load_and_save_unchanged():
    plain = MLP(3, 2, [16, 8])
    fused = FusedMLP(3, 2, [16, 8])
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert "act.weight" in fused.state_dict()
    assert "model.3.weight" in fused.state_dict()
    fused.load_state_dict(plain.state_dict(), strict=True)
    for name, tensor in fused.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name])


def test_same_seed_same_initial_weights_as_the_plain_module():
    torch.manual_seed(0)
    plain = MLP(3, 2, [16, 8])
    torch.manual_seed(0)
    fused = FusedMLP(3, 2, [16, 8])
    x = torch.randn(5, 3)
    torch.testing.assert_close(fused(x), plain(x), **CLOSE)


def test_from_module_shares_the_parameters_both_ways():
    plain = MLP(3, 2, [16, 8])
    fused = FusedMLP.from_module(plain)
    assert fused.to_module() is plain
    assert list(fused.state_dict()) == list(plain.state_dict())
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert ours is theirs
    fused.load_state_dict(MLP(3, 2, [16, 8]).state_dict(), assign=True)
    x = torch.randn(5, 3)
    torch.testing.assert_close(fused(x), plain(x), **CLOSE)


@pytest.mark.parametrize("activation", ACTIVATION_MODULES.values())
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (2, 3)])
def test_values_and_gradients_of_a_sequential(activation, shape):
    plain = nn.Sequential(
        nn.Linear(3, 16), activation(), nn.Linear(16, 8), activation(), nn.Linear(8, 2)
    )
    fused = FusedMLP.from_module(plain)
    x = torch.randn(*shape, 3)
    torch.testing.assert_close(fused(x), plain(x), **CLOSE)
    for ours, theirs in zip(gradients(fused, x), gradients(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_without_bias_and_without_hidden_layers():
    x = torch.randn(4, 3)
    for fused in (FusedMLP(3, 2, [8], bias=False), FusedMLP(3, 2, [])):
        torch.testing.assert_close(fused(x), fused.to_module()(x))


@pytest.mark.parametrize("activation", ["prelu", "relu"])
def test_linear_input(activation):
    fused = FusedMLP(3, 2, [16, 16, 8], activation=activation, linear_input=True)
    assert [type(layer) for layer in fused.model][:4] == [
        nn.Linear, nn.Linear, type(fused.act), nn.Linear
    ]  # fmt: skip
    plain = copy.deepcopy(fused.to_module())
    x = torch.randn(5, 3)
    torch.testing.assert_close(fused(x), plain(x), **CLOSE)
    gradients(fused, x)
    gradients(plain, x)
    for ours, theirs in zip(fused.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)
    assert FusedMLP.from_module(fused.to_module()).act is fused.act


def test_deepcopy_keeps_the_plain_module_joined_to_the_copy():
    fused = FusedMLP.from_module(MLP(3, 2, [16]))
    twin = copy.deepcopy(fused)
    with torch.no_grad():
        twin.act.weight.fill_(-0.5)
    assert fused.act.weight.item() == 0.25
    assert twin.to_module().act.weight.item() == -0.5
    x = torch.randn(5, 3)
    torch.testing.assert_close(twin(x), twin.to_module()(x))


def test_autocast_gives_the_dtype_that_plain_layers_would(device):
    plain = MLP(3, 2, [16, 8])
    fused = FusedMLP.from_module(plain)
    x = torch.randn(5, 3)
    with torch.autocast(device.type, torch.float16):
        assert fused(x).dtype == plain(x).dtype == torch.float16
        torch.testing.assert_close(fused(x), plain(x), rtol=5e-3, atol=5e-3)
        torch.testing.assert_close(fused(x.half()), plain(x.half()), rtol=5e-3, atol=5e-3)


def test_half_precision_module():
    plain = MLP(3, 2, [16, 8]).half()
    x = torch.randn(5, 3).half()
    torch.testing.assert_close(FusedMLP.from_module(plain)(x), plain(x), rtol=5e-3, atol=5e-3)


def test_precision_is_handed_on(device):
    fused = FusedMLP(3, 2, [64, 64], precision="fp16")
    x = torch.randn(100, 3, device=device)
    error = (fused(x) - fused.to_module()(x)).abs().max()
    assert 0 < error < 1e-2


@pytest.mark.parametrize("activation", ACTIVATION_MODULES)
@pytest.mark.parametrize("where", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, None])
def test_parameters_are_made_on_a_device_in_a_dtype(activation, where, dtype):
    plain = nn.Linear(3, 2, device=where, dtype=dtype)
    fused = FusedMLP(3, 2, [8], activation=activation, device=where, dtype=dtype)
    kinds = {(each.device, each.dtype) for each in fused.parameters()}
    assert kinds == {(plain.weight.device, plain.weight.dtype)}
    y = fused(torch.ones(4, 3, device=where, dtype=dtype))
    assert (y.shape, y.device, y.dtype) == ((4, 2), plain.weight.device, plain.weight.dtype)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, "float16", float])
def test_a_dtype_without_fractions_is_named(dtype):
    with pytest.raises(TypeError, match=r"^dtype must be a .*torch.dtype or None, got "):
        FusedMLP(3, 2, [8], dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_kernels_do_not_cover_is_left_to_the_layers(dtype, fused_calls):
    """Hidden layers of 1,024, or float64, give the bits of the layers."""
    width = 1024 if dtype == torch.float32 else 16
    plain = MLP(3, 2, [width]).to(dtype)
    fused = FusedMLP.from_module(copy.deepcopy(plain))
    x = torch.randn(5, 3, dtype=dtype)
    assert torch.equal(fused(x), plain(x))
    for ours, theirs in zip(gradients(fused, x), gradients(plain, x), strict=True):
        assert torch.equal(ours, theirs)
    assert not fused_calls


def test_hooks_of_the_sequential_inside_fire(fused_calls):
    fused, x, seen = FusedMLP(3, 2, [16]), torch.randn(5, 3), []
    fused(x)
    handle = fused.model.register_forward_hook(lambda *_: seen.append(True))
    fused(x)
    assert len(seen) == 1
    handle.remove()
    fused(x)
    assert len(fused_calls) == 2


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.Linear(3, 2), "must be an nn.Sequential or have one as .model, got Linear"),
        (nn.Sequential(), "there are no layers"),
        (nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)), r"layer 1 \(Dropout\)"),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU()), "the last layer is no Linear layer"),
    ],
)
def test_from_module_says_why_not(module, why):
    with pytest.raises(ValueError, match=why):
        FusedMLP.from_module(module)


def test_from_module_refuses_parameters_that_it_would_ignore():
    module = MLP(3, 2, [8])
    module.head = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="got head outside it"):
        FusedMLP.from_module(module)


def test_unknown_precision_is_named():
    for make in (lambda: FusedMLP(3, 2, [8], precision="fp8"),
                 lambda: FusedMLP.from_module(MLP(3, 2, [8]), precision="fp8")):  # fmt: skip
        with pytest.raises(ValueError, match=r"precision must be one of .*, got 'fp8'"):
            make()


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match=r"activation must be one of .*, got 'swish'"):
        FusedMLP(3, 2, [8], activation="swish")
    with pytest.raises(ValueError, match="linear_input must be False unless"):
        FusedMLP(3, 2, [8], activation="tanh", linear_input=True)
