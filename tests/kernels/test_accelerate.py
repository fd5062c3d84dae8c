"""accelerate(): someone else's model, faster, and in every other respect the same."""

import copy
import io
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flashpoint.kernels import Acceleration, FusedMLP, _dispatch, _perceptrons, accelerate
from flashpoint.kernels.mlp import faster_in_pytorch

from .perceptrons import Model, perceptron

pytestmark = pytest.mark.usefixtures("on_device")


def test_model_is_unchanged_but_for_what_runs(fused_calls):
    model = Model().eval()
    before = copy.deepcopy(model)
    identities = [id(parameter) for parameter in model.parameters()]
    report = accelerate(model)
    assert report.accelerated == ["first", "rest.0"]
    assert report.skipped == {}
    on_gpu = model.first[0].weight.is_cuda
    half = "fused" if on_gpu else "layer by layer on cpu, fused on a GPU"
    single = ", ".join((
        *(() if on_gpu else ("on a GPU",)),
        "under autocast and, without gradients, in tf32; else float32 is faster layer by layer",
    ))  # fmt: skip
    way = "fused" if on_gpu else "layer by layer on cpu, fused"
    relu, prelu = "first [3-16-8-2, relu]", "rest.0 [3-16-8-2, prelu]"
    assert str(report) == f"{relu}: {way} {single}\n{prelu}: {way} {single}"
    assert report.elsewhere == ({} if on_gpu else {"first": "cpu", "rest.0": "cpu"})
    assert str(accelerate(copy.deepcopy(model).half())) == f"{relu}: {half}\n{prelu}: {half}"
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
        name = activation.__name__.lower()
        assert accelerate(model).partly == {
            "": f"layers 1 to 3 only, because no activation follows the first layer, as it must "
            f"with {name}"
        }


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


# Without a GPU the layers run one by one, because the interpreter multiplies bf16 wrongly.
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
    network = "3-16-8-2, tanh"
    assert accelerate(model) == Acceleration(waiting={"": name}, networks={"": network})
    assert str(accelerate(model)) == f"(model) [{network}]: not yet fused, {name}"
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


def test_a_second_time_is_the_same():
    model = Model()
    assert accelerate(model) == accelerate(model)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.PReLU, nn.LeakyReLU])
def test_compiles_into_one_graph(activation, fused_calls):
    model = perceptron(activation)
    accelerate(model)
    torch.compiler.reset()  # of what other tests have compiled, whose number is limited
    x, compiled = torch.randn(6, 3), torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    got = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    nn.Sequential(*model)(x).sum().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert fused_calls


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
