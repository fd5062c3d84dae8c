"""Samples of networks of one's own are those of the fused chain: every method and guidance."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from flashpoint.diffusion import (
    Denoiser,
    DiffusionClassifier,
    PointMasses,
    Points,
    Recipe,
    SampleConfig,
    Schedule,
    Standardisation,
    Task,
    Trainer,
    UserError,
    excess_loss,
    export_model,
    interpolate,
    invert,
    sample,
    sample_many,
    sample_with_reward,
    sweep,
)
from flashpoint.diffusion.predictions import PREDICTIONS
from flashpoint.diffusion.sampling import METHODS
from flashpoint.kernels.q_sample.batches import Batches
from flashpoint.kernels.q_sample.reference import batch_draw

from .helpers import smooth
from .own_networks import Changing, Conditional, Copied, Extra, Residual

GENERATOR = torch.Generator().manual_seed(0)
POINTS = Points(torch.randn(43, 2, generator=GENERATOR), torch.arange(43) % 3, name="three")
SCHEDULE = Schedule(30, "cosine")
RECIPE = Recipe(steps=5, hidden_layers=(24, 24), batch_size=32)


def networks(schedule=SCHEDULE, recipe=RECIPE, **options):
    """A perceptron, and a copy of it as one's own network."""
    task = Task(POINTS, schedule, recipe, **options)
    plain = smooth(task.initial())
    own = Copied(copy.deepcopy(plain), task.schedule)
    task.describe(own)
    return plain, own, task.schedule


def assert_same(found, expected):
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_samples_are_those_of_the_fused_chain(method, prediction):
    plain, own, schedule = networks(recipe=replace(RECIPE, prediction=prediction))
    options = {"method": method, "num_steps": 7, "seed": 4, "keep_every": 2, "device": "cpu"}
    expected = sample(plain, schedule, 33, **options)
    assert_same(sample(own, schedule, 33, **options), expected)
    # edm visits timesteps between the whole ones, where features are interpolated
    parts = [sample(own, schedule, 11, first_row=first, **options).x for first in (0, 11, 22)]
    assert_same([torch.cat(parts)], [expected.x])
    assert_same([sample(own, schedule, 33, batch_size=5, **options).x], [expected.x])


@pytest.mark.parametrize("own_model", [True, False])
@pytest.mark.parametrize("own_classifier", [True, False])
@pytest.mark.parametrize("conditional", [True, False])
def test_a_classifier_guides_any_mixture_of_networks(own_model, own_classifier, conditional):
    recipe = replace(RECIPE, p_uncond=0.2) if conditional else RECIPE
    models, judges = networks(recipe=recipe), networks(classify=True)
    label = torch.arange(40) % 3
    options = {"label": label, "scale": 2.0, "num_steps": 6, "device": "cpu"}
    want = sample(models[0], SCHEDULE, 40, classifier=judges[0], **options)
    model, classifier = models[own_model], judges[own_classifier]
    found = sample(model, SCHEDULE, 40, classifier=classifier, **options)
    assert_same([found.x], [want.x])
    unguided = sample(models[0], SCHEDULE, 40, num_steps=6, device="cpu").x
    assert (want.x - unguided).abs().max() > 1e-2


@pytest.mark.parametrize("scale", [None, 1.5, lambda t: t / 30])
@pytest.mark.parametrize("label", [None, 1, 3])
def test_guidance_by_the_class_that_a_network_of_ones_own_takes(label, scale):
    if label is None and scale is not None:
        scale = None
    plain, own, schedule = networks(recipe=replace(RECIPE, p_uncond=0.2))
    options = {"label": label, "scale": scale, "num_steps": 6, "device": "cpu"}
    assert_same(sample(own, schedule, 9, **options), sample(plain, schedule, 9, **options))


def test_chains_start_anywhere():
    plain, own, schedule = networks()
    x = torch.randn(6, 2, generator=GENERATOR)
    for options in (
        {"x_T": x, "method": "ddim"}, {"x_T": x, "start": 11}, {"init": x, "start": 9},
        {"timesteps": [20, 9, 3]}, {"spacing": "trailing", "num_steps": 5},
    ):  # fmt: skip
        options |= {"device": "cpu", "keep_every": 1}
        assert_same(sample(own, schedule, 6, **options), sample(plain, schedule, 6, **options))


def test_many_chains_may_mix_own_and_other_networks():
    plain, own, schedule = networks()
    configs = [
        SampleConfig(model, schedule, seed, num_steps=5)
        for seed, model in enumerate((plain, own, own, plain))
    ]
    told = []
    found = sample_many(configs, 8, device="cpu", progress=told.append)
    assert told[-1] == 32
    for config, samples in zip(configs, found, strict=True):
        want = sample(plain, schedule, 8, seed=config.seed, num_steps=5, device="cpu")
        assert_same(samples, want)


def test_a_copy_in_eval_mode_is_sampled():
    model = Changing()
    trainer = Trainer(POINTS, SCHEDULE, RECIPE, model=model, device="cpu")
    trainer.run(5)
    assert model.training
    calls = int(model.calls)
    twice = [sample(model, SCHEDULE, 5, num_steps=4, device="cpu").x for _ in range(2)]
    assert torch.equal(*twice)
    assert model.training
    assert int(model.calls) == calls


def test_other_uses_of_a_network_take_ones_own():
    plain, own, schedule = networks(recipe=replace(RECIPE, p_uncond=0.2))
    x, y = POINTS.data[:7], POINTS.labels[:7]
    options = {"num_steps": 5, "device": "cpu"}
    for label in (None, 2):
        assert_same(
            [invert(own, schedule, x, label=label, **options)],
            [invert(plain, schedule, x, label=label, **options)],
        )
    assert_same(
        [interpolate(own, schedule, x[:2], x[2:4], count=3, label=1, **options)],
        [interpolate(plain, schedule, x[:2], x[2:4], count=3, label=1, **options)],
    )
    judges = [DiffusionClassifier(m, schedule, noises=1, device="cpu") for m in (own, plain)]
    np.testing.assert_allclose(*(each.predict_proba(x) for each in judges), atol=1e-4)
    assert judges[0].score(x, y) == judges[1].score(x, y)
    drawn = [
        sample_with_reward(m, schedule, 4, lambda x: x[:, 0], candidates=3, **options).x
        for m in (own, plain)
    ]
    assert_same(drawn[:1], drawn[1:])


def test_the_excess_loss_of_ones_own_network_is_that_of_the_same_perceptron():
    plain, own, schedule = networks()
    options = {"n": 20, "steps": [2, 17]}
    masses = PointMasses(POINTS.data)
    found = [excess_loss(m, schedule, masses, **options) for m in (own, plain)]
    assert_same(found[:1], found[1:])


def test_a_denoiser_gives_samples_of_ones_own_network_in_the_users_units(tmp_path):
    plain, own, schedule = networks()
    units = Standardisation((10.0, 20.0), (2.0, 3.0))
    options = {"num_steps": 5, "device": "cpu", "init": POINTS.data[:5] + 15, "start": 9}
    found, want = (Denoiser(m, schedule, None, units).sample(5, **options) for m in (own, plain))
    assert_same(found, want)
    Denoiser(own, schedule).save(tmp_path / "own.pt")
    state = torch.load(tmp_path / "own.pt", weights_only=True)
    assert state.keys() == own.state_dict().keys()
    with pytest.raises(UserError, match=r"own.safetensors must end in .pt"):
        Denoiser(own, schedule).save(tmp_path / "own.safetensors")
    with pytest.raises(UserError, match=r"torch.export exports a network of your own"):
        export_model(own, schedule, "onnx", tmp_path / "own.onnx")


VALUES = {
    "steps": 4, "batch_size": 16, "timesteps": 12, "schedule": "cosine", "sampling_steps": 3,
    "hidden": ["4x1", "6x1"], "seed": 1,
}  # fmt: skip
MEASURED = {
    "samples": 30, "real_draws": 2, "device": "cpu", "quiet": True,
    "metrics": ["sliced_wasserstein"],
}  # fmt: skip


def test_a_sweep_over_networks_of_ones_own_resumes(tmp_path):
    made = []

    def make(task):
        made.append(task)
        return Residual(2, task.recipe.hidden_layers[0], steps=task.schedule.num_steps)

    table = sweep(POINTS, VALUES, out=tmp_path, model=make, **MEASURED)
    assert len(table) == 2
    assert len(list((tmp_path / "networks").glob("*.pt"))) == 2
    task = next(task for task in made if task.recipe.hidden_layers == (6,))
    trainer = Trainer(task.points, task.schedule, task.recipe, model=task.initial(),
                      seed=task.seed, device="cpu")  # fmt: skip
    trainer.run(4)
    kept = [torch.load(path, weights_only=True) for path in tmp_path.glob("networks/*.pt")]
    alike = [
        state["first.weight"].shape == (6, 3)
        and torch.equal(state["first.weight"], trainer.model().first.weight)
        for state in kept
    ]
    assert any(alike)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("models/*.json")}
    again = sweep(POINTS, VALUES, out=tmp_path, resume=True, model=make, **MEASURED)
    assert again.to_csv() == table.to_csv()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("models/*.json")}
    # Another network, or none of one's own, is another model in the same folder.
    for other in (lambda _: Changing(), lambda _: Extra(), None):
        sweep(POINTS, VALUES | {"hidden": "4x1"}, out=tmp_path, resume=True, model=other,
              **MEASURED)  # fmt: skip
    assert len(list(tmp_path.glob("models/*.json"))) == 5
    with pytest.raises(UserError, match="best must be left out with a model of your own"):
        sweep(POINTS, VALUES, out=tmp_path, model=make, best="sliced_wasserstein", **MEASURED)


def test_a_sweep_checks_each_network_before_any_work(tmp_path):
    def make(task):
        return Residual(2, 4, outputs=2 if task.recipe.hidden_layers[0] == 4 else 3)

    with pytest.raises(UserError, match=r"model must return \[3, 2\].*in the model hidden=6"):
        sweep(POINTS, VALUES, out=tmp_path / "none", model=make, **MEASURED)
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="model must be a function of the task that makes"):
        sweep(POINTS, VALUES, model=nn.Linear(2, 2), **MEASURED)


def test_a_conditional_network_of_ones_own_is_swept_with_guidance():
    table = sweep(
        POINTS, VALUES | {"hidden": "4x1", "p_uncond": 0.2, "scale": [0.0, 1.0], "seed": 0},
        model=lambda task: Conditional(task.points.num_classes, width=4), **MEASURED
    )  # fmt: skip
    assert len(table) == 2
    assert not any(one.failed for one in table)


@pytest.mark.parametrize(("conditional", "refresh"), [(True, None), (False, 2)])
def test_the_rows_that_a_kernel_draws_are_those_of_plain_pytorch(device, conditional, refresh):
    recipe = replace(RECIPE, p_uncond=0.4) if conditional else RECIPE
    data = Trainer(POINTS, SCHEDULE, recipe, device=device).engine.data
    seed = torch.tensor([7], device=device)
    call = (data, seed, 100, refresh, 20, 9)
    x_t, draw = Batches(*call, backend="torch").draw(13)
    expected = batch_draw(data, seed, 13, 100, refresh, 20, 9)
    found, drawn = Batches(*call, backend="triton").draw(torch.tensor(13, device=device))
    torch.testing.assert_close(found, x_t)
    for got, same, want in zip(drawn, draw, expected, strict=True):
        assert (got is None) == (want is None) == (same is None)
        if want is not None:
            torch.testing.assert_close(got, want)
            assert torch.equal(same, want)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["ddpm", "heun"])
def test_a_captured_chain_of_ones_own_gives_the_samples_of_the_fused_one(device, method):
    plain, own, schedule = networks(recipe=replace(RECIPE, p_uncond=0.2))
    options = {"label": 1, "scale": 1.0, "num_steps": 7, "method": method, "keep_every": 2}
    expected = sample(plain, schedule, 300, device=device, **options)
    for got, want in zip(
        sample(own, schedule, 300, device=device, **options), expected, strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)  # half precision
