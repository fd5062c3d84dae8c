"""accelerate() on networks of small diffusion models: residual blocks, embeddings, FiLM, norms."""

import copy
import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from flashpoint.kernels import FusedMLP, accelerate, decelerate
from flashpoint.kernels.accelerate import FusedSequential

from .perceptrons import Block, ConditionalDenoiser, ResidualDenoiser, residual

pytestmark = pytest.mark.usefixtures("on_device")


def results(model, *inputs):
    """Returns y and the gradients of all parameters, 0 where there is none."""
    y = model(*inputs)
    parameters = list(model.parameters())
    grads = torch.autograd.grad(y.square().sum(), parameters, materialize_grads=True)
    return [y.double(), *(grad.double() for grad in grads)]


def assert_like_float64(model, plain, *inputs):
    """Compares a float32 model with a plain one, which becomes float64."""
    ours = results(model, *inputs)
    theirs = results(plain.double(), *(each.double() for each in inputs))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 65])
def test_residual_denoiser_with_concatenated_embeddings(rows, fused_calls):
    model = ResidualDenoiser()
    plain = copy.deepcopy(model)
    report = accelerate(model)
    assert report.accelerated == ["joint_mlp"]
    assert report.networks == {"joint_mlp": "6-16-16-16-16-2, gelu, 3 residual blocks"}
    assert report.skipped == report.partly == report.outside == {}
    assert list(model.state_dict()) == list(plain.state_dict())
    assert_like_float64(model, plain, torch.randn(rows, 2), torch.rand(rows))
    assert fused_calls == [(rows, 6)]


def test_conditional_denoiser_with_film(fused_calls):
    model = ConditionalDenoiser()
    plain = copy.deepcopy(model)
    report = accelerate(model)
    assert report.accelerated == ["embed", "head"]
    assert report.partly == {
        "head": "layers 1 to 3 only, because layer 0 (LayerNorm) stands where a Linear layer is "
        "needed"
    }
    film = "the Linear layers fc, scale_shift are called by FiLM.forward, which is not read"
    assert report.outside == {
        "": "one Linear layer alone (first)", "blocks.0": film, "blocks.1": film,
    }  # fmt: skip
    assert str(report).splitlines()[2] == "(model): not fused, one Linear layer alone (first)"
    assert "head [16-16-2, silu]: " in str(report)
    assert_like_float64(model, plain, torch.randn(5, 2), torch.randn(5, 4))
    assert fused_calls == [(5, 4), (5, 16)]


def test_parts_between_other_layers(fused_calls):
    model = nn.Sequential(
        nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.LayerNorm(4), nn.Tanh(),
        nn.Linear(4, 8), nn.SiLU(), Block(8, nn.SiLU), nn.Linear(8, 2), nn.Softplus(),
    )  # fmt: skip
    plain = copy.deepcopy(model)
    report = accelerate(model)
    assert report.partly == {
        "": "layers 0 to 2 and 5 to 8 only, because layer 3 (LayerNorm) stands where an activation "
        "is needed"
    }
    assert report.networks == {"": "3-8-4, relu; 4-8-8-2, silu, 1 residual block"}
    assert_like_float64(model, plain, torch.randn(9, 3))
    assert fused_calls == [(9, 3), (9, 4)]
    assert accelerate(model) == report
    assert decelerate(model) == [""]
    assert type(model) is nn.Sequential
    assert model.__dict__.keys() == nn.Sequential().__dict__.keys()
    model(torch.randn(9, 3))
    assert len(fused_calls) == 2


def test_a_part_that_changes_runs_layer_by_layer(fused_calls):
    model = nn.Sequential(
        nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 2)
    )
    accelerate(model)
    x, seen = torch.randn(4, 3), []
    model[0].register_forward_hook(lambda *_: seen.append(True))
    torch.testing.assert_close(model(x), nn.Sequential(*model)(x))
    assert len(seen) == 2
    assert not fused_calls
    model.insert(0, nn.Identity())
    torch.testing.assert_close(model(x), nn.Sequential(*model)(x))
    del model[1:]
    assert torch.equal(model(x), x)


def test_decelerate_restores_a_residual_net():
    model = ResidualDenoiser()
    before = {name: type(each) for name, each in model.named_modules()}
    keys = model.joint_mlp.__dict__.keys() | set()
    accelerate(model)
    assert type(model.joint_mlp) is FusedSequential
    assert decelerate(model) == ["joint_mlp"]
    assert {name: type(each) for name, each in model.named_modules()} == before
    assert model.joint_mlp.__dict__.keys() == keys


def test_a_fused_mlp_of_residual_layers(fused_calls):
    layers = residual(nn.PReLU, blocks=1)
    model = FusedMLP.from_module(layers)
    assert list(model.state_dict()) == [f"model.{name}" for name in layers.state_dict()]
    assert_like_float64(model, copy.deepcopy(layers), torch.randn(5, 6))
    assert fused_calls


@pytest.mark.parametrize("activation", [nn.PReLU, nn.GELU])
def test_compiles_into_one_graph(activation, fused_calls):
    model = residual(activation)
    plain = copy.deepcopy(model)
    accelerate(model)
    torch.compiler.reset()  # of what other tests have compiled, whose number is limited
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_like_float64(compiled, plain, torch.randn(6, 6))
    assert fused_calls


def test_parts_compile_into_one_graph(fused_calls):
    model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2), nn.Tanh())
    plain = copy.deepcopy(model)
    accelerate(model)
    torch.compiler.reset()  # of what other tests have compiled, whose number is limited
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_like_float64(compiled, plain, torch.randn(6, 3))
    assert fused_calls


def test_autocast_keeps_the_residual_stream_in_half_precision(device, fused_calls):
    model = residual()
    plain = copy.deepcopy(model)
    accelerate(model)
    x = torch.randn(40, 6)
    with torch.autocast(device.type, torch.float16):
        y, expected = model(x), plain(x)
    assert y.dtype == expected.dtype == torch.float16
    torch.testing.assert_close(y, expected, rtol=5e-3, atol=5e-3)
    assert len(fused_calls) == 1


# What is no such block, and what changes after it has run fused.


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc1, self.act, self.fc2 = (
            nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16),
        )  # fmt: skip

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


class InPlace(Block):
    def forward(self, x):
        x += self.act(self.ff(x))
        return x


class Switched(Block):
    def forward(self, x):
        return x + self.act(self.ff(x)) if self.training else x


class Functional(Block):
    def forward(self, x):
        return x + nn.functional.gelu(self.ff(x))


class Scaled(Block):
    def forward(self, x):
        return x + 0.5 * self.act(self.ff(x))


class Remembers(Block):
    def forward(self, x):
        self.last = x
        return x + self.act(self.ff(x))


class Inherits(Block):
    def forward(self, x):
        return super().forward(x)


class Property(Block):
    def __init__(self, size):
        nn.Module.__init__(self)
        self.ff, self.gelu = nn.Linear(size, size), nn.GELU()

    @property
    def act(self):
        return self.gelu if self.training else torch.zeros_like


class Called(Block):
    def __call__(self, x):
        return 2 * super().__call__(x)


class NoActivation(Block):
    def __init__(self, size):
        super().__init__(size)
        self.act = nn.Sigmoid()


class Exchanged(Block):
    def forward(self, x):
        return x + self.ff(self.act(x))


NEEDED = "stands where a Linear layer is needed"
OTHER_BLOCKS = {
    TwoLayers: f"{NEEDED}: it computes x + fc2(act(fc1(norm(x)))), not x + act(linear(x))",
    InPlace: NEEDED,
    Switched: NEEDED,
    Functional: NEEDED,
    Scaled: NEEDED,
    Remembers: NEEDED,
    Inherits: NEEDED,
    Property: NEEDED,
    Called: NEEDED,
    NoActivation: "has a Sigmoid where an activation is needed",
    Exchanged: "has a GELU where a Linear layer is needed",
}


@pytest.mark.parametrize("kind", OTHER_BLOCKS, ids=lambda kind: kind.__name__)
def test_other_blocks_run_as_they_are(kind, fused_calls):
    block = kind() if kind is TwoLayers else kind(16)
    model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), block, nn.Linear(16, 2))
    plain = copy.deepcopy(model)
    assert accelerate(model).skipped == {"": f"layer 2 ({kind.__name__}) {OTHER_BLOCKS[kind]}"}
    x = torch.randn(4, 6)
    for training in (True, False):
        assert torch.equal(model.train(training)(x), plain.train(training)(x))
    assert not fused_calls


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (
            lambda: (Block(6), nn.Linear(6, 2)),
            "a residual block comes first, where a Linear layer is needed",
        ),
        (
            lambda: (nn.Linear(6, 8), nn.ReLU(), Block(8), nn.Linear(8, 2)),
            "the activations differ",
        ),
        (
            lambda: (nn.Linear(6, 8), Block(8), nn.Linear(8, 2)),
            "no activation follows the first layer, as it must with gelu",
        ),
        (
            lambda: (nn.Linear(6, 8), nn.GELU(), Block(8)),
            "the last layer is no Linear layer",
        ),
    ],
)
def test_blocks_in_other_places(layers, reason):
    assert accelerate(nn.Sequential(*layers())).skipped == {"": reason}


def test_blocks_after_a_first_layer_without_activation(fused_calls):
    blocks = (Block(8, nn.ReLU) for _ in range(2))
    model = nn.Sequential(nn.Linear(6, 8), *blocks, nn.Linear(8, 2))
    plain = copy.deepcopy(model)
    assert accelerate(model).networks == {"": "6-8-8-8-2, relu, linear input, 2 residual blocks"}
    assert_like_float64(model, plain, torch.randn(5, 6))
    assert fused_calls


def test_plain_and_residual_layers_are_separate_parts(fused_calls):
    layers = residual(blocks=2)
    model = nn.Sequential(nn.Linear(3, 6), nn.GELU(), *layers)
    plain = copy.deepcopy(model)
    report = accelerate(model)
    assert report.partly == {
        "": "layers 2 to 6 only, because some hidden layers are residual and some are not"
    }
    assert_like_float64(model, plain, torch.randn(5, 3))
    assert fused_calls == [(5, 6)]


def hook_on_a_block(model):
    model[2].register_forward_hook(lambda module, args, y: 2 * y)  # noqa: ARG005


def hook_inside_a_block(model):
    model[2].ff.register_forward_hook(lambda module, args, y: 2 * y)  # noqa: ARG005


def forward_of_its_own(model):
    model[3].forward = torch.sin


def another_forward(model):
    class Doubled(Block):
        def forward(self, x):
            return 2 * (x + self.act(self.ff(x)))

    model[3].__class__ = Doubled


def another_activation_inside(model):
    model[3].act = nn.Tanh()


def wider_inside(model):
    model[3].ff = nn.Linear(16, 1)


@pytest.mark.parametrize(
    "change",
    [
        hook_on_a_block, hook_inside_a_block, forward_of_its_own, another_forward,
        another_activation_inside, wider_inside,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_a_change_of_a_block_is_seen(change, fused_calls):
    model = residual()
    accelerate(model)
    x = torch.randn(4, 6)
    model(x)
    fused_calls.clear()
    change(model)
    torch.testing.assert_close(model(x), nn.Sequential(*model)(x))
    assert not fused_calls


def test_layers_exchanged_inside_a_block_are_used(fused_calls):
    model = residual()
    accelerate(model)
    x = torch.randn(4, 6)
    before = model(x)
    model[3].ff = nn.Linear(16, 16)
    after = model(x)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, nn.Sequential(*model)(x), rtol=1e-4, atol=1e-5)
    assert len(fused_calls) == 2


def test_another_forward_of_the_class_is_seen(monkeypatch, fused_calls):
    model = residual()
    accelerate(model)
    x = torch.randn(4, 6)
    model(x)
    monkeypatch.setattr(Block, "forward", lambda self, x: x)  # noqa: ARG005
    torch.testing.assert_close(model(x), nn.Sequential(*model)(x))
    assert len(fused_calls) == 1


# Linear layers outside an nn.Sequential.


class Skips(nn.Module):
    """Each layer sees the input again."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(2, 8), nn.Linear(10, 8), nn.Linear(10, 2)))

    def forward(self, x):
        h = self.layers[0](x).relu()
        for layer in self.layers[1:]:
            h = layer(torch.cat((h, x), dim=1))
        return h


def test_linear_layers_outside_are_named_with_the_reason():
    model = nn.ModuleDict({"skips": Skips(), "norms": TwoLayers(), "block": Block(4)})
    report = accelerate(model)
    assert report.outside == {
        "skips.layers": "the Linear layers 0, 1, 2 are called one by one: only an nn.Sequential is "
        "read",
        "norms": "it computes x + fc2(act(fc1(norm(x)))): of residual blocks only "
        "x + act(linear(x)) is covered",
        "block": "a residual block that is not in an nn.Sequential between Linear layers",
    }
    assert str(report).splitlines()[0] == "no perceptron found"
    assert len(str(report).splitlines()) == 4
    assert accelerate(model, filter=lambda *_: True).outside == {}


def test_the_page_shows_what_the_report_says(tmp_path, capsys):
    page = Path(__file__).parents[2] / "docs/interoperability.md"
    section = page.read_text(encoding="utf-8").partition("## What accelerate fuses")[2]
    blocks = r"```python\n(.*?)```\n\n```text\n(.*?)```"
    code, shown = re.search(blocks, section, re.DOTALL).groups()
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    with torch.device("cpu"):
        runpy.run_path(str(script))
    assert capsys.readouterr().out == shown
