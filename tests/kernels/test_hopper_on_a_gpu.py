"""Chains in the form for Hopper GPUs: against float64, the portable form, and themselves."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch

from flashpoint.kernels import Guide, MLPShape, Network, sample_chain
from flashpoint.kernels.cuda import capture, side_stream
from flashpoint.kernels.mlp import kernel as mlp
from flashpoint.kernels.mlp.config import HOPPER_KERNELS, config_for, in_use

from .test_sample_chain_kernel import TOLERANCE, check, problem, with_memory
from .training import make_parameters, relative_difference

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("hopper", "poisoned")]

# Hidden widths, and what else differs from the denoiser of the other tests.
NETS = {
    "64": ((64, 64), {}),
    "128": ((128,) * 3, {"activation": "relu"}),
    "200": ((200,) * 4, {"activation": "silu"}),
    "256": ((256,) * 4, {}),
    "256 deep": ((256,) * 5, {"activation": "tanh", "bias": False}),
    "gelu": ((256,) * 2, {"activation": "gelu"}),
    "uneven": ((100, 256, 64, 130), {"slopes": 4}),
    "leaky": ((130, 70), {"activation": "leaky_relu", "negative_slope": -0.2}),
    "linear input": ((96, 96, 96), {"linear_input": True, "bias": False}),
    "512": ((512,) * 3, {}),
    "512 silu": ((512,) * 3, {"activation": "silu"}),
    "512 uneven": ((512, 64, 257, 384), {"slopes": 4}),
    "512 linear input": ((300, 300, 300), {"linear_input": True, "bias": False}),
}
# Hidden widths of guides, and what else differs from the classifier of the other tests.
GUIDES = {
    "silu": ((100, 200, 500), {"activation": "silu"}),
    "gelu": ((100, 200, 500), {"activation": "gelu"}),
    "tanh": ((200, 64), {"activation": "tanh"}),
    "leaky": ((128, 70), {"activation": "leaky_relu", "negative_slope": -0.2}),
    "deep": ((64,) * 6, {"slopes": 6}),
    "deep, two parts": ((256,) * 5, {"activation": "silu"}),
    "deep, wide at the end": ((128, 128, 128, 500), {"activation": "tanh"}),
}
GUIDANCE = ("none", "class", "free", "classifier")


@pytest.fixture
def hopper(device):
    if torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0")


@contextmanager
def in_form(form, rows=64):
    """Makes chains take a form, with so many rows in a program of that for Hopper GPUs."""
    from flashpoint.kernels.sample_chain import hopper

    with ExitStack() as stack:
        for kernel in HOPPER_KERNELS:
            config = replace(config_for("fp16", (9, 0), 64, 1, kernel), form=form, hopper_rows=rows)
            stack.enter_context(in_use(kernel, config))
        launch = stack.enter_context(
            mock.patch.object(hopper, "sample_chain", wraps=hopper.sample_chain)
        )
        yield
        assert launch.called == (form == "hopper")


def chain(device, hidden=(256,) * 4, rows=65, guidance="none", dim=2, models=2, **changes):
    """Arguments of a chain of networks that differ from those of the other tests."""
    arguments, options = problem(device, dim, rows, guidance, hidden=hidden)
    shape = replace(arguments[0].shape, **changes)
    denoiser = Network(make_parameters(shape, 2, device)[:models], shape)
    options["seed"] = options["seed"][:models]
    for name in options.keys() & {"guide", "condition"}:
        options[name] = some_models(options[name], models)
    return (denoiser, *(each[:models] for each in arguments[1:])), options


def some_models(given, models):
    """The first models of a guide or of a condition."""
    if isinstance(given, torch.Tensor):
        return given[:models]
    if isinstance(given, MLPShape | bool):
        return given
    return type(given)(*(some_models(each, models) for each in given))


def guided(device, hidden, rows=65, models=2, denoiser=(256,) * 4, **changes):
    """Arguments of a chain with a guide that differs from that of the other tests."""
    arguments, options = chain(device, denoiser, rows, "classifier", models=models)
    (_, shape), labels = options["guide"]
    shape = replace(shape, widths=(shape.widths[0], *hidden, shape.widths[-1]), **changes)
    network = Network(make_parameters(shape, 2, device)[:models], shape)
    return arguments, options | {"guide": Guide(network, labels)}


def compare(arguments, options, precision="fp16", rows=64):
    """Compares a chain with float64, with the portable form, and with itself once more."""
    call = {"backend": "triton", "precision": precision, "keep_every": 2} | options
    with in_form("hopper", rows):
        check(arguments, options, precision, keep_every=2)
        samples, path = sample_chain(*arguments, **call)
    with in_form("portable"):
        portable, portable_path = sample_chain(*arguments, **call)
    assert relative_difference(samples, portable) <= TOLERANCE[precision]
    assert relative_difference(path, portable_path) <= TOLERANCE[precision]


@pytest.mark.parametrize("net", NETS)
def test_networks(device, net):
    hidden, changes = NETS[net]
    compare(*chain(device, hidden, **changes))


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("tile", [64, 128])
def test_guidance(device, guidance, precision, tile):
    compare(*chain(device, guidance=guidance), precision, tile)


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_guidance_of_wide_networks(device, guidance, precision):
    compare(*chain(device, (512,) * 3, guidance=guidance), precision)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("tile", [64, 128])
def test_rows_and_models_of_wide_networks(device, rows, models, tile):
    compare(*chain(device, (512, 256, 384), rows=rows, models=models), rows=tile)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("tile", [64, 128])
def test_guides(device, guide, precision, tile):
    hidden, changes = GUIDES[guide]
    compare(*guided(device, hidden, **changes), precision, tile)


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("denoiser", [(256,) * 4, (512,) * 2])
def test_a_program_takes_many_tiles_with_room_for_one(device, monkeypatch, models, denoiser):
    monkeypatch.setattr(mlp, "slots", lambda *_: 3)
    options = {"rows": 500, "models": models, "denoiser": denoiser, "activation": "silu"}
    compare(*guided(device, (100, 200), **options))


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("tile", [64, 128])
def test_rows_and_models(device, rows, models, tile):
    for guidance in ("none", "classifier"):
        compare(*chain(device, rows=rows, models=models, guidance=guidance), rows=tile)


@pytest.mark.parametrize("guidance", ["none", "free", "classifier"])
def test_steps_that_remember(device, guidance):
    arguments, options = chain(device, guidance=guidance)
    compare(with_memory(arguments), options)


@pytest.mark.parametrize("dim", [1, 3, 9, 32])
def test_dimensions(device, dim):
    compare(*chain(device, (128, 128), dim=dim))


@pytest.mark.parametrize("guidance", ["none", "free", "classifier"])
def test_a_replay_has_the_bits_of_a_call(device, guidance):
    arguments, options = chain(device, guidance=guidance, rows=200)
    results = []

    def call():
        results[:] = sample_chain(*arguments, backend="triton", keep_every=2, **options)

    with in_form("hopper"):
        with side_stream() as stream:
            call()
        expected = [each.clone() for each in results]
        graph = capture(call, stream)
    for _ in range(3):
        for each in results:
            each.fill_(torch.nan)
        graph.replay()
        assert all(map(torch.equal, results, expected))


def test_the_padding_of_a_point_does_not_grow(device):
    shape = MLPShape((2, 64, 64, 2), "none", bias=False)
    flat = torch.zeros(1, shape.num_parameters, device=device)
    for weight in shape.unpack(flat)[0]:  # eps = x
        weight[0, :2, :2] = torch.eye(2)
    steps = 14
    table = torch.tensor([3.0, -3.0, 1.0, 0.0], device=device).expand(1, steps, 4)  # x_t-1 = z
    x_T = torch.randn(1, 10, 2, device=device)
    arguments = Network(flat, shape), x_T, table, torch.zeros(1, steps, 0, device=device)
    expected, _ = sample_chain(*arguments, seed=3, backend="torch")
    with in_form("hopper"):
        samples, _ = sample_chain(*arguments, seed=3, backend="triton")
    torch.testing.assert_close(samples, expected, atol=0.01, rtol=0)
