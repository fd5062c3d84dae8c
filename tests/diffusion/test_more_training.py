"""A training goes on for longer, starts from trained weights, and is watched on held-out points."""

from dataclasses import replace

import pytest
import torch

from flashpoint.diffusion import (
    MLP,
    ClassicRecipe,
    Points,
    Recipe,
    Schedule,
    Task,
    Trainer,
    UserError,
    states_points,
)
from flashpoint.diffusion.training import CosineDecay, PlainRecipe, PlateauDecay, on_device
from flashpoint.diffusion.training.engine import Engine

SCHEDULE = Schedule(20, beta_end=0.3)
RECIPE = Recipe(steps=40, hidden_layers=(16, 16), batch_size=64, lr=1e-2, low_noise=0.0)
PLAIN = PlainRecipe(steps=40, hidden_layers=(16, 16), batch_size=64)
CLASSIC = ClassicRecipe(2, (16, 16), 200, lr=1e-2)
STATES = states_points(60)


def trainer(recipe=RECIPE, **options):
    return Trainer(STATES, options.pop("schedule", SCHEDULE), recipe, device="cpu", **options)


def after(recipe, steps):
    run = trainer(recipe)
    run.run(steps)
    return run


def gone_on(recipe, run):
    longer = trainer(recipe)
    longer.load_state_dict(run.state_dict())
    assert longer.step == run.step
    longer.run(longer.total_steps)
    return longer


@pytest.mark.parametrize("stop", [25, 40])
@pytest.mark.parametrize(
    ("recipe", "longer"),
    [
        (PLAIN, replace(PLAIN, steps=70)),
        (CLASSIC, replace(CLASSIC, epochs=4)),
        (
            replace(CLASSIC, decay=PlateauDecay(0.5, 0)),
            replace(CLASSIC, epochs=12, decay=PlateauDecay(0.5, 0)),
        ),
    ],
    ids=["plain", "steps of the rate", "plateau"],
)
def test_a_training_made_longer_is_the_long_one_where_the_rate_does_not_know_the_end(
    recipe, longer, stop
):
    whole = after(longer, 10_000)
    again = gone_on(longer, after(recipe, stop))
    assert again.total_steps > trainer(recipe).total_steps
    for name, value in whole.state_dict().items():
        assert torch.equal(torch.as_tensor(again.state_dict()[name]), torch.as_tensor(value)), name


@pytest.mark.parametrize(
    ("recipe", "longer"),
    [
        (RECIPE, replace(RECIPE, steps=70)),
        (
            replace(CLASSIC, decay=CosineDecay()),
            replace(CLASSIC, decay=CosineDecay(), epochs=4),
        ),
        (replace(RECIPE, steps=70), replace(RECIPE, steps=41)),
    ],
    ids=["one cycle", "cosine", "shorter"],
)
def test_the_rates_to_come_are_those_of_the_recipe_of_now(recipe, longer):
    first = after(recipe, 7)
    again = gone_on(longer, first)
    expected = trainer(longer)
    for engine in (expected.engine,):
        engine.parameters.copy_(first.engine.parameters)
        for here, there in zip(engine.state, first.engine.state, strict=True):
            here.copy_(there)
        engine.step = 7
        engine._step_numbers += 7
    expected.run(10_000)
    assert torch.equal(again.parameters, expected.parameters)
    assert torch.equal(again.losses[:7], first.losses)
    assert torch.equal(again.losses[7:], expected.losses[7:])
    assert len(again.losses) == again.total_steps


def test_a_recipe_of_fewer_steps_than_are_done_is_refused():
    saved = after(RECIPE, 30).state_dict()
    message = "the recipe must have at least the 30 steps that are done in the saved state, got 29"
    with pytest.raises(UserError, match=message):
        trainer(replace(RECIPE, steps=29)).load_state_dict(saved)
    trainer(replace(RECIPE, steps=30)).load_state_dict(saved)


def test_a_state_of_an_older_version_goes_on_for_longer():
    saved = after(RECIPE, 30).state_dict()
    del saved["total"]
    longer = trainer(replace(RECIPE, steps=50))
    longer.load_state_dict(saved)
    assert longer.step == 30
    with pytest.raises(UserError, match="another recipe"):
        trainer(replace(RECIPE, steps=50, lr=1e-3)).load_state_dict(saved)


def test_thinned_losses_are_taken_over(monkeypatch):
    monkeypatch.setattr(on_device, "MOST_LOSSES", 16)
    longer = replace(PLAIN, steps=90)
    whole, again = after(longer, 90), gone_on(longer, after(PLAIN, 40))
    assert len(again.losses) == 16
    known = torch.cat((after(PLAIN, 40).losses, whole.losses))
    assert torch.isin(again.losses, known).all()
    assert torch.equal(again.losses[8:], whole.losses[8:])


def test_of_networks_of_several_lengths_one_that_has_ended_stays():
    def engine(*lengths):
        tasks = [Task(STATES, SCHEDULE, replace(RECIPE, steps=steps)) for steps in lengths]
        return Engine(tasks, device="cpu")

    first = engine(10, 30)
    first.run(20)
    with pytest.raises(UserError, match="that ended at step 10, before the others, cannot go on"):
        engine(15, 30).load_state_dict(first.state_dict())
    again, whole = engine(10, 40), engine(10, 30)
    again.load_state_dict(first.state_dict())
    again.run(40)
    whole.run(30)
    assert torch.equal(again.parameters[0], whole.parameters[0])
    assert torch.equal(again.losses.until(0, 40), whole.losses.until(0, 30))
    assert len(again.losses.until(1, 40)) == 40


def test_a_training_starts_from_trained_weights():
    first = after(RECIPE, 40).model()
    run = trainer(initial=first)
    assert torch.equal(run.parameters, first.network().parameters[0])
    assert torch.equal(run.model().network().parameters, first.network().parameters)
    run.run(40)
    assert not torch.equal(run.parameters, first.network().parameters[0])


CONDITIONAL = replace(RECIPE, p_uncond=0.1)


@pytest.mark.parametrize(
    ("initial", "options", "message"),
    [
        (3, {}, "initial must be a network, got int"),
        (MLP(3, 2, [16]), {}, "3-16-16-2 with prelu, got 3-16-2 with prelu"),
        (MLP(3, 2, [16, 16], activation="silu"), {}, "with prelu, got 3-16-16-2 with silu"),
        (
            MLP(9, 2, [16, 16]), {"recipe": CONDITIONAL},
            "must take the class as the recipe says: class_embedding 'learned' of 5 classes",
        ),
        (
            RECIPE, {"schedule": replace(SCHEDULE, prediction="v")},
            "a model that predicts eps, got one for v",
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(initial, options, message):
    if isinstance(initial, Recipe):
        initial = trainer(initial).model()
    with pytest.raises(UserError, match=message):
        trainer(**options, initial=initial)


def test_weights_that_are_not_finite_are_refused():
    initial = trainer().model()
    initial.linears()[0].weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="initial must have finite weights"):
        trainer(initial=initial)


@pytest.mark.parametrize("classify", [False, True])
def test_the_validation_loss_is_that_of_the_training_on_other_points(classify):
    recipe = replace(RECIPE, steps=200, ema_decay=0.5, weighting="min-snr")
    run = trainer(recipe, classify=classify)
    run.run(200)
    found = [run.validation_loss(STATES) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0] == pytest.approx(run.losses[-60:].mean().item(), rel=0.1)
    far = replace(STATES, data=STATES.data.flip(1) + 3)
    assert run.validation_loss(far) > 2 * found[0]


def test_the_validation_loss_of_a_conditional_denoiser_knows_the_classes():
    run = trainer(replace(CONDITIONAL, steps=300, p_uncond=0.0, ema_decay=0.9, lr=2e-2))
    run.run(300)
    wrong = replace(STATES, labels=(STATES.labels + 2) % 5)
    assert run.validation_loss(wrong) > 1.02 * run.validation_loss(STATES)


def test_points_of_another_kind_have_no_validation_loss():
    run = trainer(classify=True)
    for points, message in (
        (STATES.data, "points must be Points, got Tensor"),
        (Points(torch.randn(9, 3), torch.arange(9) % 5), "points must have dimension 2, got 3"),
        (Points(torch.randn(9, 2), torch.arange(9) % 3), "points must have 5 classes, got 3"),
        (Points(torch.randn(9, 2)), "points must have 5 classes, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            run.validation_loss(points)
    assert trainer().validation_loss(Points(torch.randn(9, 2))) > 0


def test_a_network_that_learns_few_points_by_heart_is_seen():
    cloud = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    train, held_out = Points(cloud).split(1 / 6)  # 50 and 10
    recipe = Recipe(
        steps=160, hidden_layers=(256, 256, 256), batch_size=256, lr=6e-3, ema_decay=0.8,
        weight_decay=0.0, low_noise=0.0,
    )  # fmt: skip
    run = Trainer(train, Schedule(50, "cosine"), recipe, device="cpu")
    watched = []
    for _ in range(8):
        run.run(20)
        watched.append(run.validation_loss(held_out))
    assert watched[-1] > 1.15 * min(watched)
    assert watched.index(min(watched)) < 4
    assert run.losses[-20:].mean() < 0.85 * run.losses[20:40].mean()
    assert run.validation_loss(train) < 0.7 * watched[-1]
