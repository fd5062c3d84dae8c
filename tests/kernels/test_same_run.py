"""Same seed, same run: training and sampling on the kernels follow the reference."""

import logging
import time

import pytest
import torch

from flashpoint.bench.kinks import data_off_kinks
from flashpoint.kernels import (
    Condition,
    Guide,
    MLPShape,
    Network,
    _dispatch,
    adamw_,
    adamw_state,
    draw_prior,
    sample_chain,
    train_step,
)
from flashpoint.kernels.mlp import kernel as mlp
from flashpoint.kernels.q_sample.reference import batch_draw
from flashpoint.kernels.sample_chain import stepwise

from .training import CLASSES, KINDS, make_data, make_parameters, relative_difference

POINTS, STEPS = 200, 30
# Relative difference of losses and of samples that rounding may cause.
TOLERANCE = {"fp32": 1e-4, "tf32x3": 1e-4, "fp16": 2e-3}
PRECISIONS = ("fp32", "fp16")


def many_points(device, kind="denoiser", models=1):
    return make_data(device, kind, models, points=POINTS, steps=STEPS)


def train(data, shape, parameters, steps, lr=3e-3, **options):
    """Trains ``parameters`` in place; returns the losses [steps, M]."""
    state, losses = adamw_state(parameters), []
    for step in range(steps):
        loss, grad = train_step(parameters, shape, data, seed=3, step=step, **options)
        adamw_(parameters, grad, state, lr=lr, step=step + 1)
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_loss_curves(device, precision):
    shape, data = MLPShape((3, 32, 32, 2)), many_points(device)
    runs = [
        train(
            data, shape, make_parameters(shape, 1, device), 50,
            batch_size=64, backend=backend, precision=precision,
        )
        for backend in ("triton", "torch")
    ]  # fmt: skip
    assert runs[1][-10:].mean() < runs[1][:10].mean()
    assert ((runs[0] - runs[1]).abs() / runs[1]).max() <= TOLERANCE[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "options",
    [{"step": 7}, {"step": 7, "first_row": 30, "rows": 71}, {"step": 119 + 59, "refresh": 2}],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("poisoned")
def test_one_step(device, precision, options, kind):
    data = many_points(device, kind, models=2)
    shape = MLPShape((data.input_width, 20, 40, CLASSES if kind == "classifier" else 2))
    parameters = make_parameters(shape, 2, device)
    seed = torch.tensor([5, 2**40], device=device)
    draw = batch_draw(data, seed, options["step"], 101, options.get("refresh"))
    data = data_off_kinks(parameters, shape, data, draw)
    options = {"batch_size": 101, "seed": seed, **options}
    loss, grad = train_step(
        parameters, shape, data, backend="triton", precision=precision, **options
    )
    expected_loss, expected_grad = train_step(parameters, shape, data, backend="torch", **options)
    assert relative_difference(loss, expected_loss) <= TOLERANCE[precision]
    assert relative_difference(grad, expected_grad) <= {"fp32": 1e-5, "fp16": 2e-2}[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.usefixtures("poisoned")
def test_sample_chain(device, monkeypatch, precision, guided):
    monkeypatch.setattr(mlp, "slots", lambda *_: 1)  # one program, so that it has several tiles
    models, rows, steps, classes = 2, 70, 12, 5
    shape, classifier = MLPShape((3, 32, 32, 2)), MLPShape((3, 20, 40, classes))
    denoiser = Network(make_parameters(shape, models, device), shape)
    generator = torch.Generator().manual_seed(2)
    table = torch.tensor([1.01, -0.1, 0.1, 0.5], device=device).expand(models, steps, 4)
    features = torch.linspace(1, -1, steps, device=device).view(1, -1, 1).expand(models, -1, -1)
    labels = torch.randint(0, classes, (models, rows), generator=generator).to(device)
    network = Network(make_parameters(classifier, models, device), classifier)
    seed = torch.tensor([1, 2], device=device)
    options = {
        "seed": seed,
        "guide": Guide(network, labels) if guided else None,
        "first_row": 10,
        "keep_every": 5,
    }
    x_T = draw_prior(rows, 2, seed=seed, device=device)
    samples, trajectory = sample_chain(
        denoiser, x_T, table, features, backend="triton", precision=precision, **options
    )
    expected = sample_chain(denoiser, x_T, table, features, backend="torch", **options)
    assert trajectory.shape == (4, models, rows, 2)
    assert torch.equal(trajectory[-1], samples)
    assert relative_difference(samples, expected[0]) <= TOLERANCE[precision]
    assert relative_difference(trajectory, expected[1]) <= TOLERANCE[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("free", "guided"), [(False, False), (True, False), (False, True)])
@pytest.mark.usefixtures("poisoned")
def test_chain_of_a_conditional_denoiser(device, monkeypatch, precision, free, guided):
    monkeypatch.setattr(mlp, "slots", lambda *_: 1)
    models, rows, steps, classes, width = 2, 70, 9, 3, 4
    shape, classifier = MLPShape((3 + width, 32, 32, 2)), MLPShape((3, 20, classes))
    generator = torch.Generator().manual_seed(2)
    table = torch.tensor([1.01, -0.1, 0.1, 1.5], device=device).expand(models, steps, 4)
    features = torch.linspace(1, -1, steps, device=device).view(1, -1, 1).expand(models, -1, -1)
    class_features = torch.randn(models, classes + 1, width, generator=generator).to(device)
    labels = torch.randint(0, classes + 1, (models, rows), generator=generator).to(device)
    network = Network(make_parameters(classifier, models, device), classifier)
    guide = Guide(network, labels.clamp(max=classes - 1)) if guided else None
    arguments = (
        Network(make_parameters(shape, models, device), shape),
        draw_prior(rows, 2, seed=1, device=device).expand(models, -1, -1), table, features,
    )  # fmt: skip
    samples, expected = (
        sample_chain(
            *arguments, seed=4, guide=guide, condition=Condition(class_features, labels, free),
            backend=backend, precision=precision,
        )[0]
        for backend in ("triton", "torch")
    )  # fmt: skip
    assert relative_difference(samples, expected) <= TOLERANCE[precision]


@pytest.mark.parametrize(("rows", "dim"), [(0, 2), (1, 1), (257, 3), (300, 4)])
@pytest.mark.usefixtures("poisoned")
def test_prior(device, rows, dim):
    seed = torch.tensor([7, 2**40 + 1], device=device)
    actual, expected = (
        draw_prior(rows, dim, seed=seed, first_row=2**33, device=device, backend=backend)
        for backend in ("triton", "torch")
    )
    assert actual.shape == (2, rows, dim)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=3e-6)


def chain_arguments(device, shape, rows=7, steps=6, models=2):
    """A denoiser, and x_T, coefficients and features of a noisy chain."""
    table = torch.tensor([1.01, -0.1, 0.1, 0.5], device=device).expand(models, steps, 4).clone()
    table[:, :, 0] -= torch.linspace(0, 0.1, steps, device=device)
    features = torch.linspace(1, -1, steps, device=device).view(1, -1, 1).expand(models, -1, -1)
    x_T = draw_prior(rows, 2, seed=torch.arange(models), device=device)
    return Network(make_parameters(shape, models, device), shape), x_T, table, features


@pytest.mark.parametrize("large", ["denoiser", "classifier", "conditional", "free"])
@pytest.mark.parametrize("keep_every", [0, 4])
def test_networks_too_large_for_one_launch_go_step_by_step(device, caplog, large, keep_every):
    _dispatch._log.cache_clear()
    classes, width = 3, 4 if large in ("conditional", "free") else 0
    shape = MLPShape((3 + width, 16, 2) if large == "classifier" else (3 + width, 520, 2))
    arguments = chain_arguments(device, shape)
    labels = torch.tensor([[0, 1, 2, 0, 1, 2, 2]] * 2, device=device)
    guide = condition = None
    if large == "classifier":
        classifier = MLPShape((3, 520, classes))
        guide = Guide(Network(make_parameters(classifier, 2, device), classifier), labels)
    elif width:
        table = torch.randn(2, classes + 1, width, device=device)
        condition = Condition(table, labels, large == "free")
    options = {
        "seed": torch.tensor([1, 2**40], device=device), "first_row": 5, "keep_every": keep_every,
        "guide": guide, "condition": condition, "precision": "fp32",
    }  # fmt: skip
    with caplog.at_level(logging.INFO, logger="flashpoint"):
        for _ in range(2):
            samples, trajectory = sample_chain(*arguments, backend="triton", **options)
    assert [record.message for record in caplog.records] == [
        "a sampling chain step by step instead of in one launch: "
        "a hidden layer of 520, wider than 512"
    ]
    expected = sample_chain(*arguments, backend="torch", **options)
    assert relative_difference(samples, expected[0]) <= TOLERANCE["fp32"]
    assert trajectory.shape == expected[1].shape
    torch.testing.assert_close(trajectory, expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("remembers", [False, True])
def test_both_ways_of_the_kernels_give_the_same_chain(device, remembers):
    shape = MLPShape((3, 16, 16, 2))
    arguments, seed = chain_arguments(device, shape), torch.tensor([3, 4], device=device)
    if remembers:  # a linear multistep method
        denoiser, x, table, features = arguments
        memory = torch.tensor([0.1, 0.5, -0.2], device=device).expand(*table.shape[:2], 3)
        arguments = denoiser, x, torch.cat((table, memory), dim=2), features
    at_once, _ = sample_chain(*arguments, seed=seed, backend="triton", precision="fp32")
    with torch.no_grad():
        by_step, _ = stepwise.sample_chain(*arguments, seed, None, None, 0, 0, "fp32")
    assert relative_difference(by_step, at_once) <= 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("width", [32, 520])
def test_runs_on_a_device_that_is_not_the_current_one(width):
    """On the last device of the machine, after the first; 520 columns go step by step."""
    devices = [torch.device("cuda", number) for number in (0, torch.cuda.device_count() - 1)]
    first, last = (
        sample_chain(*chain_arguments(device, MLPShape((3, width, 2))), seed=1)[0].cpu()
        for device in devices
    )
    torch.testing.assert_close(last, first)


@pytest.mark.gpu
def test_captured_in_a_cuda_graph(device):
    arguments = chain_arguments(device, MLPShape((3, 32, 2)))
    expected = sample_chain(*arguments, seed=1)[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sample_chain(*arguments, seed=1)[0]
    graph.replay()
    assert torch.equal(captured, expected)


@pytest.mark.gpu
def test_steps_are_replayed_without_waiting_for_the_device(device):
    """All steps are queued in less time than they take."""
    arguments = chain_arguments(device, MLPShape((3, 1024, 1024, 2)), rows=20_000, steps=300)
    sample_chain(*arguments, seed=1)
    torch.cuda.synchronize()
    start = time.perf_counter()
    sample_chain(*arguments, seed=1)
    queued = time.perf_counter() - start
    torch.cuda.synchronize()
    assert queued < (time.perf_counter() - start) / 2


@pytest.mark.parametrize(("rows", "steps"), [(0, 3), (5, 0), (1, 1)])
@pytest.mark.parametrize("keep_every", [0, 2])
@pytest.mark.parametrize("width", [16, 520])
def test_chains_of_nothing(device, rows, steps, keep_every, width):
    shape = MLPShape((3, width, 2))
    denoiser = Network(make_parameters(shape, 1, device), shape)
    table, features = torch.ones(1, steps, 4, device=device), torch.ones(1, steps, 1, device=device)
    x_T = torch.randn(1, rows, 2, device=device)
    samples, trajectory = sample_chain(
        denoiser, x_T, table, features, seed=1, keep_every=keep_every, backend="triton"
    )
    assert samples.shape == x_T.shape
    kept = 1 + -(-steps // keep_every) if keep_every else 0
    assert trajectory.shape == (kept, *x_T.shape)
    if not steps:
        assert torch.equal(samples, x_T)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-4), ("tf32", 4e-3), ("fp16", 2e-3), ("bf16", 3e-2)]
)
@pytest.mark.parametrize("rows", [10_000, 1_000_007])
@pytest.mark.parametrize("guided", [False, True])
def test_full_size_chain(device, precision, tolerance, rows, guided):
    arguments = chain_arguments(device, MLPShape((3, 256, 256, 256, 256, 2)), rows, 10, models=1)
    classifier = MLPShape((3, 100, 200, 500, 5))
    labels = torch.arange(rows, device=device)[None] % 5
    guide = (
        Guide(Network(make_parameters(classifier, 1, device), classifier), labels)
        if guided
        else None
    )
    samples, expected = (
        sample_chain(*arguments, seed=1, guide=guide, precision=precision, backend=backend)[0]
        for backend in ("triton", "torch")
    )
    assert relative_difference(samples, expected) <= tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_full_size(device, precision):
    """The learning rate is small: at 3e-3 rounding decides the course of so wide a network."""
    shape, data = MLPShape((3, 256, 256, 256, 256, 2)), many_points(device)
    parameters = [make_parameters(shape, 1, device) for _ in range(2)]
    runs = [
        train(data, shape, flat, 50, 2e-4, batch_size=2048, backend=backend, precision=precision)
        for flat, backend in zip(parameters, ("triton", "torch"), strict=True)
    ]
    assert runs[1][-1] < 0.5 * runs[1][0]
    assert ((runs[0] - runs[1]).abs() / runs[1]).max() <= TOLERANCE[precision]
