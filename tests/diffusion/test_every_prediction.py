"""Every method for every schedule and prediction, with the best denoisers there are."""

import pytest
import torch

from flashpoint.diffusion import MLP, Schedule, UserError, sample, sample_many
from flashpoint.diffusion.metrics import sliced_wasserstein
from flashpoint.diffusion.noise_levels import BETAS
from flashpoint.diffusion.predictions import PREDICTIONS
from flashpoint.diffusion.reverse_steps import timesteps
from flashpoint.diffusion.sampling import METHODS, SampleConfig
from flashpoint.diffusion.studies.few_steps import closed_curve, solve

from .closed_forms import RoundMixture

CURVE = RoundMixture.of(closed_curve())  # of standard deviation 0.8 in each axis
DATA = CURVE.draw(600, 0)
# Of the mean standard deviation of the axes and of the sliced Wasserstein distance, by number of
# steps, as in test_every_schedule.py. The levels of flow and EDM go down to sigma = 0.002 in place
# of 0.01, so that 10 steps over them are larger.
BOUNDS = {10: (0.67, 0.86, 0.15), 20: (0.72, 0.84, 0.1), 50: (0.76, 0.84, 0.08)}
LOW_BOUNDS = BOUNDS | {10: (0.6, 0.88, 0.18)}
RISING = {"beta_start": 0.1 / 500, "beta_end": 10 / 500}
SCHEDULES = {
    **{name: Schedule(500, name, **({} if name == "cosine" else RISING)) for name in BETAS},
    "flow": Schedule(500, "flow"),
    "edm": Schedule(500, "edm"),
    "zero": Schedule(500, prediction="v", zero_terminal_snr=True, **RISING),
}


def noise_at_T(n=600):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def predictions(name):
    return [p for p in PREDICTIONS if p != "eps" or name not in ("flow", "zero")]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_samples_are_right_and_the_same_for_every_prediction(name, method):
    schedule = SCHEDULES[name]
    bounds = LOW_BOUNDS if name in ("flow", "edm") else BOUNDS
    for count, (low, high, most) in bounds.items():
        first = None
        for prediction in predictions(name) if count == 10 else [schedule.prediction]:
            x = solve(method, CURVE, schedule.predicting(prediction), count, noise_at_T())
            assert low < x.std(dim=0).mean() < high
            assert sliced_wasserstein(x, DATA) < most
            first = x if first is None else first
            torch.testing.assert_close(x, first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_an_error_of_any_output_is_not_magnified(name, method):
    """An error of x0_hat is one of the samples, of up to 0.15; others count for less."""
    for prediction in predictions(name):
        schedule = SCHEDULES[name].predicting(prediction)
        x = solve(method, CURVE, schedule, 20, noise_at_T(), error=0.03)
        assert sliced_wasserstein(x, DATA) < (0.2 if prediction == "x0" else 0.12)


@pytest.mark.parametrize("method", METHODS)
def test_a_list_of_timesteps_from_the_last_one_down_is_right_too(method):
    """That of published code, where the first steps are lost on noise in all but name."""
    for name in ("cosine", "flow", "edm"):
        schedule = SCHEDULES[name].predicting("v")
        steps = timesteps(schedule, 50, spacing="trailing", method=method)
        x = solve(method, CURVE, schedule, None, noise_at_T(), steps=steps)
        assert sliced_wasserstein(x, DATA) < 0.12


def network(prediction=None):
    torch.manual_seed(0)
    model = MLP(3, 2, [8])
    model.prediction = prediction
    return model


def test_a_model_that_predicts_something_else_is_refused():
    schedule = Schedule(50)
    options = {"num_steps": 3, "device": "cpu"}
    want = sample(network(), schedule, 3, **options).x
    assert torch.equal(sample(network("eps"), schedule, 3, **options).x, want)
    message = 'of a model that predicts v, got one for eps: take schedule.predicting("v")'
    with pytest.raises(UserError, match=r"schedule must be that") as caught:
        sample(network("v"), schedule, 3, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    sample(network("v"), schedule.predicting("v"), 3, **options)


@pytest.mark.parametrize("method", METHODS)
def test_models_of_all_schedules_and_predictions_sample_in_one_call(method):
    """Each as alone, with paths, from noise and from points."""
    schedules = [
        Schedule(40, name, prediction=prediction, time_feature="linspace")
        for name in ("cosine", "flow", "edm")
        for prediction in ("x0", "v", "flow", "edm")
    ]
    points = torch.randn(5, 2)
    options = {"method": method, "num_steps": 6, "init": points, "start": 25}
    configs = [SampleConfig(network(), s, seed=k, **options) for k, s in enumerate(schedules)]
    together = sample_many(configs, 5, keep_every=2, device="cpu")
    for k, (schedule, got) in enumerate(zip(schedules, together, strict=True)):
        alone = sample(network(), schedule, 5, seed=k, keep_every=2, device="cpu", **options)
        torch.testing.assert_close(got.x, alone.x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.trajectory, alone.trajectory, rtol=1e-4, atol=1e-4)
        assert got.trajectory.shape == (4, 5, 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_start_from_points_has_their_noise(name):
    schedule = SCHEDULES[name]
    options = {"init": torch.full((20_000, 2), 3.0), "start": 200, "keep_every": 1}
    model = MLP(2 + schedule.time_features.shape[1], 2, [8])
    chain = sample(model, schedule, 20_000, method="heun", num_steps=1, device="cpu", **options)
    start = chain.trajectory[0]
    signal, noise = schedule.signal[200].item(), schedule.noise[200].item()
    assert start.mean().item() == pytest.approx(3 * signal, abs=0.02)
    assert start.std().item() == pytest.approx(noise, rel=0.02)
