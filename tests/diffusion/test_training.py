"""Training: it learns, it resumes bit for bit, and its recipe is what it says."""

from dataclasses import replace

import pytest
import torch

from flashpoint.diffusion import (
    ConditionalMLP,
    Points,
    Recipe,
    Schedule,
    Trainer,
    UserError,
    sample,
    states_points,
)
from flashpoint.diffusion.training import timestep_table

SCHEDULE = Schedule(50)
RECIPE = Recipe(steps=60, hidden_layers=(32, 32), batch_size=128, lr=1e-2, low_noise=0.0)
STATES = states_points(500)


def trainer(**options):
    return Trainer(STATES, SCHEDULE, options.pop("recipe", RECIPE), device="cpu", **options)


@pytest.mark.parametrize("classify", [False, True])
def test_the_loss_falls(classify):
    run = trainer(classify=classify, recipe=replace(RECIPE, steps=300))
    run.run(300)
    assert run.losses[-50:].mean() < 0.8 * run.losses[:10].mean()
    assert run.losses.isfinite().all()


def test_a_classifier_learns_the_states():
    run = trainer(classify=True, recipe=replace(RECIPE, steps=600))
    run.run(600)
    features = SCHEDULE.time_features[0].float().expand(len(STATES), -1)
    right = run.model()(torch.cat((STATES.data, features), dim=1)).argmax(1) == STATES.labels
    assert right.double().mean() > 0.97


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    a, b, c = trainer(seed=1), trainer(seed=1), trainer(seed=2)
    for run in (a, b, c):
        run.run(5)
    assert torch.equal(a.parameters, b.parameters)
    assert not torch.equal(a.parameters, c.parameters)


@pytest.mark.parametrize("stop", [1, 29, 59])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(stop, tmp_path):
    whole, first, second = trainer(), trainer(), trainer()
    whole.run(60)
    first.run(stop)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second.run(60)
    assert second.step == 60
    for name, value in whole.state_dict().items():
        assert torch.equal(torch.as_tensor(second.state_dict()[name]), torch.as_tensor(value)), name


def test_training_stops_at_the_recipes_end_and_reports_every_step():
    run, seen = trainer(), []
    run.run(1000, seen.append)
    assert seen == list(range(1, 61))


def test_the_result_is_the_average_of_the_weights():
    run = trainer()
    run.run(60)
    model = run.model()
    assert torch.equal(model.network().parameters, run.state.ema)
    assert not torch.equal(run.state.ema, run.parameters)


def test_learning_rate_rises_to_its_peak_and_falls_to_zero():
    recipe = Recipe(steps=1000, lr=0.5, warmup=0.1)
    rates = torch.tensor([recipe.learning_rate(step, 10, ()) for step in range(1000)])
    assert rates.argmax() == 100
    assert rates.max() == 0.5
    assert (rates[:101].diff() > 0).all()
    assert (rates[100:].diff() < 0).all()
    assert 0 < rates[-1] < 1e-5


def test_timesteps_are_uniform_in_t_or_in_the_logarithm_of_the_noise():
    assert torch.equal(timestep_table(SCHEDULE, 0.0), torch.arange(50))
    log_sigma = ((1 - SCHEDULE.alpha_bar) / SCHEDULE.alpha_bar).log() / 2
    table = timestep_table(SCHEDULE, 1.0)
    share = torch.bincount(table, minlength=50) / len(table)
    torch.testing.assert_close(
        share[1:] / share[-1], log_sigma.diff() / log_sigma.diff()[-1],
        rtol=0.05, atol=0, check_dtype=False,
    )  # fmt: skip
    mixed = torch.bincount(timestep_table(SCHEDULE, 0.4), minlength=50) / len(table)
    torch.testing.assert_close(mixed, 0.4 * share + 0.6 / 50, rtol=0.05, atol=1e-4)
    assert timestep_table(Schedule(1), 1.0).unique().tolist() == [0]


def test_a_state_of_another_run_is_refused():
    saved = trainer().state_dict()
    with pytest.raises(UserError, match="saved parameters have shape"):
        trainer(recipe=replace(RECIPE, hidden_layers=(32,))).load_state_dict(saved)
    with pytest.raises(UserError, match="saved losses have shape"):
        trainer(recipe=replace(RECIPE, steps=10)).load_state_dict(saved)
    with pytest.raises(UserError, match="another seed"):
        trainer(seed=1).load_state_dict(saved)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"warmup": 1.0}, "warmup must be in"),
        ({"ema_decay": -0.1}, "ema_decay must be in"),
        ({"low_noise": 1.1}, "low_noise must be from 0 to 1"),
        ({"p_uncond": -0.1}, "p_uncond must be from 0 to 1"),
        ({"class_embedding": "learnt"}, "did you mean 'learned'"),
    ],
)
def test_a_wrong_recipe_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Recipe(**arguments)


def test_a_classifier_without_labels_is_refused():
    with pytest.raises(UserError, match="needs labels"):
        Trainer(Points(torch.randn(9, 2)), SCHEDULE, RECIPE, classify=True, device="cpu")
    with pytest.raises(UserError, match="a conditional denoiser needs labels"):
        Trainer(Points(torch.randn(9, 2)), SCHEDULE, replace(RECIPE, p_uncond=0.1), device="cpu")


@pytest.mark.parametrize("embedding", ["learned", "sinusoidal"])
def test_a_conditional_denoiser_learns_the_classes_and_all_of_them_together(embedding):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 2
    data = torch.randn(600, 2, generator=generator) * 0.1 + (2.0 * labels[:, None] - 1)
    recipe = Recipe(
        steps=500, hidden_layers=(64, 64), batch_size=256, lr=1e-2, ema_decay=0.95, p_uncond=0.3,
        class_embedding=embedding,
    )  # fmt: skip
    run = Trainer(Points(data, labels), Schedule(40, "cosine"), recipe, device="cpu")
    run.run(500)
    model = run.model()
    assert isinstance(model, ConditionalMLP)
    for label in range(2):
        x = sample(model, Schedule(40, "cosine"), 200, label=label, device="cpu").x
        assert ((x.sum(dim=1) > 0) == bool(label)).double().mean() > 0.9  # chance 0.5
    x = sample(model, Schedule(40, "cosine"), 400, device="cpu").x
    assert (x.sum(dim=1) > 0).double().mean() == pytest.approx(0.5, abs=0.12)
    again = Trainer(Points(data, labels), Schedule(40, "cosine"), recipe, device="cpu")
    again.run(120)
    resumed = Trainer(Points(data, labels), Schedule(40, "cosine"), recipe, device="cpu")
    resumed.load_state_dict(again.state_dict())
    resumed.run(380)
    assert torch.equal(resumed.parameters, run.parameters)
