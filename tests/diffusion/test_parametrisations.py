"""Training in every parametrisation: losses, densities of timesteps, and errors in one unit."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy.stats import norm

from flashpoint.bench.parametrisations import points_of, standardised_gaussians, steps_at
from flashpoint.diffusion import (
    ClassicRecipe,
    Points,
    Recipe,
    Schedule,
    Task,
    Trainer,
    excess_loss,
    sample,
    train_many,
)
from flashpoint.diffusion.training import engine
from flashpoint.diffusion.training.engine import Engine
from flashpoint.diffusion.training.on_device import timestep_table
from flashpoint.kernels.q_sample.reference import batch_draw

TARGET = standardised_gaussians()
POINTS = points_of(TARGET, 5000, seed=0)
LINEAR = Schedule(100, beta_end=0.1)
ZERO_SNR = Schedule(100, beta_end=0.1, prediction="v", zero_terminal_snr=True)
RECIPE = Recipe(steps=300, hidden_layers=(64, 64), batch_size=256, lr=1e-2, ema_decay=0.95)
CASES = {
    "eps": (LINEAR, {}),
    "x0": (LINEAR, {"prediction": "x0"}),
    "x0, min-SNR": (LINEAR, {"prediction": "x0", "weighting": "min-snr"}),
    "v": (LINEAR, {"prediction": "v"}),
    "v, P2": (Schedule(100, "cosine"), {"prediction": "v", "weighting": "p2"}),
    "v, to no data": (ZERO_SNR, {}),
    "flow": (Schedule(100, "flow"), {}),
    "flow, logit-normal": (Schedule(100, "flow"), {"t_density": "logit-normal"}),
    "EDM": (Schedule(100, "edm"), {"t_density": "log-normal", "low_noise": 0.0}),
    "x0, EDM's weights": (LINEAR, {"prediction": "x0", "weighting": "edm"}),
}
SIGMAS = torch.linspace(-1, 2, 10).exp()  # where an untrained network is far from the best


def tasks(recipe=RECIPE):
    return [
        Task(POINTS, schedule, replace(recipe, **changes)) for schedule, changes in CASES.values()
    ]


def error(model, schedule):
    """The mean excess loss over noise levels, of a network that need not fit the schedule."""
    steps = steps_at(schedule, SIGMAS)
    return excess_loss(model.forward, schedule, TARGET, steps=steps, n=300).mean().item()


@pytest.fixture(scope="module")
def trained():
    return dict(zip(CASES, train_many(tasks(), device="cpu"), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_short_training_comes_near_the_best_denoiser(trained, name):
    task, model = tasks()[list(CASES).index(name)], trained[name]
    bound = 0.4 if name == "x0, EDM's weights" else 0.1
    assert error(model, task.schedule) < bound
    assert error(task.initial(), task.schedule) > bound
    another = "x0" if task.schedule.prediction == "v" else "v"
    assert error(model, task.schedule.predicting(another)) > bound


def test_the_kernels_train_each_parametrisation_as_the_reference_does(monkeypatch, device):
    small = replace(RECIPE, hidden_layers=(8,), batch_size=16)
    expected = Engine(tasks(small), device=device)
    expected.run(2)
    for function in (engine.workspace_of, engine.reduce_grad, engine.adamw_):
        monkeypatch.setattr(engine, function.__name__, partial(function, backend="triton"))
    actual = Engine(tasks(small), device=device, precision="fp32")
    actual.run(2)
    losses = actual.course.losses[:, :2]
    torch.testing.assert_close(losses, expected.course.losses[:, :2], rtol=1e-3, atol=0)
    assert len(set(losses[:, 0].tolist())) == len(CASES)


@pytest.mark.parametrize("weighting", ["uniform", "min-snr", "p2", "edm"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_loss_is_weighted_as_in_the_papers(prediction, weighting):
    recipe = replace(RECIPE, prediction=prediction, weighting=weighting)
    trainer = Trainer(POINTS, LINEAR, recipe, device="cpu")
    data, network = trainer.engine.data, trainer.model()
    draw = batch_draw(data, trainer.engine.seeds, 0, recipe.batch_size)
    t, eps, x_0 = draw.t[0], draw.eps[0], POINTS.data[draw.index[0]]
    snr = (LINEAR.alpha_bar / (1 - LINEAR.alpha_bar))[t][:, None]
    a, s = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
    x_t = a * x_0 + s * eps
    with torch.no_grad():
        output = network(LINEAR.inputs(x_t.float(), t)).double()
    target = {"eps": eps, "x0": x_0, "v": a * eps - s * x_0}[prediction]
    # The error of x0_hat is that of the output times 1 for x0, s / a for eps and s for v.
    of_x0 = (output - target) * {"eps": s / a, "x0": 1, "v": s}[prediction]
    weighted = {
        "uniform": (output - target).square(),
        "min-snr": snr.clamp(max=5) * of_x0.square(),
        "p2": snr / (1 + snr) * of_x0.square(),
        "edm": (snr + 1) * of_x0.square(),  # (sigma^2 + 1) / sigma^2, of data of unit scale
    }[weighting]
    trainer.run(1)
    assert trainer.losses[0].item() == pytest.approx(weighted.mean().item(), rel=1e-4)


@pytest.mark.parametrize("low_noise", [0.0, 0.5])
@pytest.mark.parametrize(
    ("schedule", "density", "given", "mean", "std"),
    [
        (Schedule(500, "flow"), "logit-normal", (), 0.0, 1.0),
        (Schedule(500, "edm"), "log-normal", (), -1.2, 1.2),
        (Schedule(500, "edm"), "log-normal", (-3.0, 0.7), -3.0, 0.7),
        (Schedule(500, "edm"), "logit-normal", (None, 0.5), 0.0, 0.5),
        (Schedule(500, "cosine"), "log-normal", (0.0, None), 0.0, 1.2),
    ],
)
def test_timesteps_are_normal_in_log_sigma(schedule, density, given, mean, std, low_noise):
    log_sigma = schedule.sigma.log()
    drawn = log_sigma[timestep_table(schedule, low_noise, density, *given)]
    others = log_sigma[timestep_table(schedule, 1.0)]  # the rows that are even in log sigma
    for bound in torch.linspace(-4, 3, 15).tolist():
        below = (others < bound).double().mean().item()
        expected = low_noise * below + (1 - low_noise) * norm.cdf(bound, mean, std)
        assert (drawn < bound).double().mean().item() == pytest.approx(expected, abs=0.01)


def test_timesteps_of_flow_matching_are_logit_normal_in_t():
    drawn = timestep_table(Schedule(500, "flow"), 0.0, "logit-normal")
    t = (drawn + 1) / 500
    for bound in (0.1, 0.3, 0.5, 0.8, 0.95):
        expected = norm.cdf(torch.tensor(bound).logit().item())
        assert (t < bound).double().mean().item() == pytest.approx(expected, abs=0.01)


def test_the_classic_recipe_trains_v():
    few = Points(POINTS.data[:600])
    recipe = ClassicRecipe(1, (32, 32), 256, lr=1e-2, prediction="v")
    trainer = Trainer(few, LINEAR, recipe, device="cpu")
    assert trainer.task.schedule == LINEAR.predicting("v")
    trainer.run(trainer.total_steps)
    assert error(trainer.model(), trainer.task.schedule) < 0.1
    assert error(trainer.task.initial(), trainer.task.schedule) > 0.1
    assert error(trainer.model(), LINEAR) > 0.1


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_a_classifier_guides_to_its_class(name):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 2
    data = torch.randn(1000, 2, generator=generator) * 0.3
    data[:, 0] += torch.where(labels == 1, 1.0, -1.0)
    points, schedule = Points(data, labels), Schedule(50, name)
    recipe = replace(RECIPE, hidden_layers=(32, 32))
    denoiser = train_many([Task(points, schedule, recipe)], device="cpu")[0]
    classifier = train_many([Task(points, schedule, recipe, classify=True)], device="cpu")[0]
    plain = sample(denoiser, schedule, 400, device="cpu").x
    guided = sample(denoiser, schedule, 400, classifier=classifier, label=1, device="cpu").x
    assert 0.35 < (plain[:, 0] > 0).double().mean() < 0.65
    assert (guided[:, 0] > 0).double().mean() > 0.95
    torch.testing.assert_close(guided.mean(dim=0), torch.tensor([1.0, 0.0]), atol=0.2, rtol=0)
    assert guided[:, 0].std() < 0.65 < 0.9 < plain[:, 0].std()
