"""The chain in one launch against the reference in float64, for points of any width."""

import pytest
import torch

from flashpoint.kernels import Condition, Guide, MLPShape, Network, draw_prior, sample_chain
from flashpoint.kernels.mlp import config
from flashpoint.kernels.mlp import kernel as mlp
from flashpoint.kernels.mlp import reference as mlp_reference
from flashpoint.kernels.philox import Stream, normal_rows

from .training import make_parameters, relative_difference

TOLERANCE = {"fp32": 1e-5, "tf32x3": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 2e-2}
MODELS, STEPS, CLASSES = 2, 3, 3
GUIDANCE = ("none", "classifier", "class", "free")


def problem(device, dim, rows, guidance="none", features=1, hidden=(16, 16), **options):
    """Arguments of a chain; labels, table and starts are strided views."""
    generator = torch.Generator().manual_seed(3)
    width = dim + features
    classes = torch.randn(MODELS, CLASSES + 1, 5, generator=generator).to(device)[..., 1:4]
    labels = torch.arange(2 * rows * MODELS, device=device).view(MODELS, -1)[:, ::2] % CLASSES
    if guidance == "classifier":
        judge = MLPShape((width, 20, 24, CLASSES))
        network = Network(make_parameters(judge, MODELS, device), judge)
        options["guide"] = Guide(network, labels)
    elif guidance != "none":
        width += classes.shape[-1]
        options["condition"] = Condition(classes, labels, guidance == "free")
    shape = MLPShape((width, *hidden, dim))
    table = torch.randn(MODELS, STEPS, 6, generator=generator).to(device)[..., 1:5]
    table = 0.5 * table + torch.tensor([1.0, 0.0, 0.0, 0.5], device=device)
    table[:, -1, 2] = 0  # no noise
    ramp = torch.linspace(1, -1, STEPS * features, device=device).view(1, STEPS, features)
    x_T = draw_prior(rows, dim + 1, seed=torch.arange(MODELS), device=device)[..., 1:]
    denoiser = Network(make_parameters(shape, MODELS, device), shape)
    options |= {"seed": torch.tensor([5, 2**40], device=device), "first_row": 2**32 - 3}
    return (denoiser, x_T, table, ramp.expand(MODELS, -1, -1)), options


def with_memory(arguments):
    """The same chain with a table of a linear multistep method."""
    denoiser, x_T, table, features = arguments
    generator = torch.Generator().manual_seed(4)
    more = torch.randn(MODELS, STEPS, 3, generator=generator).to(table)
    return denoiser, x_T, torch.cat((table, more), dim=2), features


def in_float64(arguments, options):
    """The results of the reference in float64; its noise is that of float32."""
    (parameters, shape), *tensors = arguments
    options = dict(options)
    if options.get("guide"):
        (flat, judge), labels = options["guide"]
        options["guide"] = Guide(Network(flat.double(), judge), labels)
    if options.get("condition"):
        features, labels, free = options["condition"]
        options["condition"] = Condition(features.double(), labels, free)
    denoiser = Network(parameters.double(), shape)
    return sample_chain(denoiser, *(a.double() for a in tensors), backend="torch", **options)


def check(arguments, options, precision, **more):
    """Compares samples and trajectory with those in float64; two runs must give the same bits."""
    options |= more
    samples, path = sample_chain(*arguments, backend="triton", precision=precision, **options)
    expected, expected_path = in_float64(arguments, options)
    assert samples.shape == expected.shape
    assert path.shape == expected_path.shape
    assert relative_difference(samples, expected) <= TOLERANCE[precision]
    if len(path):
        assert torch.equal(path[-1], samples)
        assert relative_difference(path, expected_path) <= TOLERANCE[precision]
    again, _ = sample_chain(*arguments, backend="triton", precision=precision, **options)
    assert torch.equal(again, samples)


@pytest.mark.parametrize("rows", [1, 63, 65])
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.usefixtures("poisoned")
def test_dimensions(device, monkeypatch, dim, rows):
    monkeypatch.setattr(mlp, "slots", lambda *_: 1)  # one program takes all tiles
    check(*problem(device, dim, rows), "fp16", keep_every=2)


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("dim", [2, 20, 64, 100, 200])
@pytest.mark.usefixtures("poisoned")
def test_guidance_of_wide_points(device, monkeypatch, dim, guidance):
    monkeypatch.setattr(mlp, "slots", lambda *_: 1)
    check(*problem(device, dim, 65, guidance), "fp16", keep_every=2)


@pytest.mark.parametrize("rows", [1, 129])
@pytest.mark.usefixtures("poisoned")
def test_large_tiles_of_a_guided_chain(device, monkeypatch, rows):
    largest = config.steps_of("fp16", (9, 0), "guided chain")[-1][1]
    assert largest.rows == 128
    monkeypatch.setattr(config, "steps_of", lambda *_: ((0, largest),))
    monkeypatch.setattr(mlp, "slots", lambda *_: 1)
    check(*problem(device, 2, rows, "classifier"), "fp16", keep_every=2)


@pytest.mark.parametrize("precision", ["fp32", "tf32x3", "tf32"])
@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.usefixtures("poisoned")
def test_precisions(device, precision, guidance):
    check(*problem(device, 3, 65, guidance), precision)


@pytest.mark.parametrize("guidance", ["none", "free"])
@pytest.mark.parametrize("features", [0, 3, 70])
@pytest.mark.parametrize("hidden", [(), (16,)])
@pytest.mark.usefixtures("poisoned")
def test_features_and_depths(device, monkeypatch, features, hidden, guidance):
    monkeypatch.setattr(mlp, "slots", lambda *_: 1)
    check(*problem(device, 2, 65, guidance, features, hidden), "fp32")


@pytest.mark.parametrize("guidance", ["none", "classifier", "free"])
@pytest.mark.parametrize("dim", [2, 150])
@pytest.mark.usefixtures("poisoned")
def test_steps_that_remember(device, monkeypatch, dim, guidance):
    monkeypatch.setattr(mlp, "slots", lambda *_: 1)
    arguments, options = problem(device, dim, 65, guidance)
    check(with_memory(arguments), options, "fp32", keep_every=2)


@pytest.mark.parametrize("guidance", ["none", "classifier", "free"])
def test_steps_that_remember_in_networks_too_large_for_one_launch(device, guidance):
    arguments, options = problem(device, 2, 5, guidance, hidden=(520,))
    check(with_memory(arguments), options, "fp32", keep_every=2)


@pytest.mark.parametrize("guidance", ["none", "free"])
@pytest.mark.usefixtures("poisoned")
def test_wide_points_without_a_hidden_layer(device, guidance):
    check(*problem(device, 150, 33, guidance, hidden=()), "fp32", keep_every=1)


def by_hand(arguments, seed, first_row):
    """x_prev = x * x_t + eps * output + noise * z + memory * m in a plain loop, in float64."""
    (parameters, shape), x, table, features = arguments
    networks, x = shape.unpack(parameters.double()), x.double()
    rows = torch.arange(x.shape[1], device=x.device) + first_row
    memory = torch.zeros_like(x)
    for step in range(table.shape[1]):
        c_x, c_eps, c_noise, _, c_memory, m_x, m_eps = table[:, step, :, None, None].unbind(dim=1)
        feature = features[:, step, None].expand(*x.shape[:2], -1)
        output = mlp_reference.mlp(torch.cat((x, feature), dim=2), networks, shape)
        z = normal_rows(seed, Stream.NOISE, step, rows, x.shape[2])
        x_prev = c_x * x + c_eps * output + c_noise * z + c_memory * memory
        x, memory = x_prev, m_x * x + m_eps * output
    return x


@pytest.mark.parametrize("dim", [2, 150])
@pytest.mark.parametrize(
    ("backend", "hidden"), [("torch", (16, 16)), ("triton", (16, 16)), ("triton", (520,))]
)
@pytest.mark.usefixtures("poisoned")
def test_noise_in_steps_that_remember(device, backend, hidden, dim):
    arguments, options = problem(device, dim, 33, hidden=hidden)
    arguments = with_memory(arguments)
    noise, memory = arguments[2][:, 1, [2, 4]].T
    assert noise.all()
    assert memory.all()
    samples, _ = sample_chain(*arguments, precision="fp32", backend=backend, **options)
    expected = by_hand(arguments, **options)
    assert relative_difference(samples, expected) <= TOLERANCE["fp32"]
