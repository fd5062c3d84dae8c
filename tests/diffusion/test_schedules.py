"""Schedules against diffusers and against their definitions."""

import pytest
import torch
from diffusers import DDPMScheduler

from flashpoint.diffusion import Schedule, UserError, reverse_table, sinusoidal_embedding
from flashpoint.diffusion.schedules import SCHEDULES, TIME_FEATURES

DIFFUSERS_NAMES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
    "sigmoid": "sigmoid",
}


@pytest.mark.parametrize("steps", [10, 500])
@pytest.mark.parametrize("name", DIFFUSERS_NAMES)
def test_beta_is_that_of_diffusers(name, steps):
    theirs = DDPMScheduler(steps, beta_schedule=DIFFUSERS_NAMES[name]).betas.double()
    ours = Schedule(steps, name).beta
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=1e-7)


def posterior_variance(schedule):
    """sigma^2 of the reverse steps, [T], in the order of the timesteps."""
    table = reverse_table(schedule, torch.arange(schedule.num_steps).flip(0), variance="posterior")
    return table[:, 2].square().flip(0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 500])
def test_every_schedule_adds_noise_at_every_step(name, steps):
    schedule = Schedule(steps, name)
    assert schedule.beta.shape == (steps,)
    assert ((schedule.beta > 0) & (schedule.beta < 1)).all()
    assert (schedule.alpha_bar.diff() < 0).all()
    variance = posterior_variance(schedule)
    assert (variance <= schedule.beta + 1e-15).all()
    assert variance[0] == 0


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "cosine"])
def test_beta_rises_from_start_to_end(name):
    beta = Schedule(500, name, 0.001, 0.03).beta
    ends = torch.tensor([0.001, 0.03], dtype=torch.float64)
    torch.testing.assert_close(beta[[0, -1]], ends, atol=1e-4, rtol=0)
    assert (beta.diff() > 0).all()


def test_sech_rises_from_start_to_end_along_a_hyperbolic_secant():
    beta = Schedule(101, "sech", 0.01, 0.2).beta
    assert torch.allclose(beta[[0, -1]], torch.tensor([0.01, 0.2], dtype=torch.float64))
    sech = 1 / torch.linspace(-4, 0, 101, dtype=torch.float64).cosh()
    assert torch.corrcoef(torch.stack((beta, sech)))[0, 1] > 1 - 1e-12


def test_posterior_variance_is_that_of_the_gaussian_posterior():
    s = Schedule(50)
    t = 20
    # Product of q(x_t | x_{t-1}) and q(x_{t-1} | x_0): precisions add.
    precision = s.alpha[t] / s.beta[t] + 1 / (1 - s.alpha_bar[t - 1])
    torch.testing.assert_close(posterior_variance(s)[t], 1 / precision)


@pytest.mark.parametrize("time_feature", TIME_FEATURES)
def test_inputs_are_points_and_the_features_of_their_timestep(time_feature):
    schedule, x = Schedule(5, time_feature=time_feature), torch.randn(3, 2)
    features = schedule.time_features.float()
    assert torch.equal(schedule.inputs(x, 4), torch.cat((x, features[[4, 4, 4]]), dim=1))
    t = torch.tensor([0, 3, 1])
    assert torch.equal(schedule.inputs(x, t), torch.cat((x, features[t]), dim=1))
    assert torch.equal(schedule.inputs(x[0], 2), schedule.inputs(x[:1], 2)[0])


def test_time_features():
    assert torch.equal(
        Schedule(5).time_features[:, 0], torch.linspace(-1, 1, 5, dtype=torch.float64)
    )
    centered = Schedule(4, time_feature="centered").time_features[:, 0]
    assert centered.tolist() == [-1, -0.5, 0, 0.5]


def test_sinusoidal_embedding():
    embedding = sinusoidal_embedding(torch.tensor([0, 3]), 4)
    angles = torch.tensor([3.0, 3.0 / 100], dtype=torch.float64)
    assert embedding[0].tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(embedding[1], torch.cat((angles.sin(), angles.cos())))
    with pytest.raises(ValueError, match="dim must be"):
        sinusoidal_embedding(torch.tensor([0]), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"beta_start": 0.0}, "beta_start must be between"),
        ({"beta_end": 1.0}, "beta_end must be between"),
        ({"beta_end": float("nan")}, "beta_end must be between"),
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"time_feature": "center"}, "did you mean 'centered'"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Schedule(**arguments)


def test_a_sinusoidal_time_feature_is_the_embedding_of_each_timestep():
    features = Schedule(50, time_feature="sinusoidal").time_features
    assert features.shape == (50, 16)
    assert torch.equal(features, sinusoidal_embedding(torch.arange(50), 16))
    assert len(features.unique(dim=0)) == 50
