"""Schedules against diffusers and against their definitions."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from flashpoint.diffusion import Schedule, UserError, reverse_table, sinusoidal_embedding
from flashpoint.diffusion.errors import ScheduleWarning
from flashpoint.diffusion.noise_levels import BETAS
from flashpoint.diffusion.schedules import TIME_FEATURES, given_schedule

from .helpers import flashpoint

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


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("steps", [1, 2, 500])
def test_every_schedule_adds_noise_at_every_step(name, steps):
    schedule = Schedule(steps, name)
    assert schedule.beta.shape == (steps,)
    assert ((schedule.beta > 0) & (schedule.beta < 1)).all()
    assert (schedule.alpha_bar.diff() < 0).all()
    variance = posterior_variance(schedule)
    assert (variance <= schedule.beta + 1e-15).all()
    assert variance[0] == 0


@pytest.mark.parametrize("name", [name for name in BETAS if name != "cosine"])
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
        ({"num_steps": 2.5}, "num_steps must be an integer, got 2.5"),
        ({"num_steps": True}, "num_steps must be an integer, got True"),
        ({"num_steps": "50"}, "num_steps must be an integer, got '50'"),
        ({"num_steps": 10**11}, "num_steps must be at most 1000000, got 100000000000"),
        ({"num_steps": 100_000, "beta_end": 0.5}, "num_steps must leave alpha_bar above 0"),
        ({"num_steps": 3, "beta_start": 1e-17}, "schedule must raise noise / signal at every"),
        (
            {"num_steps": 4000, "beta_end": 0.5, "prediction": "v", "zero_terminal_snr": True},
            "schedule must raise noise / signal .* got 4000 timesteps of linear with beta from",
        ),
        (
            {"name": "edm", "num_steps": 3, "sigma_min": 1.0, "sigma_max": 1.0000000000000002},
            "schedule must raise noise / signal .* sigma from 1.0 to 1.0000000000000002",
        ),
        ({"beta_start": "small"}, "beta_start must be between .* got 'small'"),
        (
            {"beta_start": 0.5, "beta_end": 0.1},
            "beta_end must be at least beta_start, 0.5, got 0.1",
        ),
        ({"name": "cosine", "beta_end": 0.5}, "beta_end must be left out with the cosine schedule"),
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"name": 3}, "schedule must be one of .*, got 3"),
        ({"time_feature": "center"}, "did you mean 'centered'"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Schedule(**arguments)


@pytest.mark.parametrize("t", [-1, 5, 1.5, True, "1", torch.tensor([1.0]), torch.tensor([True])])
def test_a_wrong_timestep_is_named(t):
    schedule, x = Schedule(5, "cosine"), torch.zeros(1, 2)
    for method in (schedule.x0_hat, schedule.eps_hat, schedule.score, schedule.noised):
        with pytest.raises(UserError, match="t must be"):
            method(x, x, t)


def test_a_timestep_may_be_an_integer_of_numpy():
    schedule, x = Schedule(5, "cosine"), torch.ones(1, 2)
    assert torch.equal(schedule.x0_hat(x, x, np.int64(3)), schedule.x0_hat(x, x, 3))


def test_a_weight_beyond_float32_is_refused():
    schedule = Schedule(1000, beta_end=0.5)
    with pytest.raises(UserError, match=r"weighting must be another than edm for eps .* float32"):
        schedule.forward_table("edm")
    assert schedule.predicting("v").forward_table("edm").float().isfinite().all()


def test_a_sinusoidal_time_feature_is_the_embedding_of_each_timestep():
    features = Schedule(50, time_feature="sinusoidal").time_features
    assert features.shape == (50, 16)
    assert torch.equal(features, sinusoidal_embedding(torch.arange(50), 16))
    assert len(features.unique(dim=0)) == 50


@pytest.mark.parametrize("T", [20, 50, 200])
def test_a_schedule_that_leaves_much_of_the_data_is_named(T):
    with pytest.warns(ScheduleWarning, match="the schedule leaves alpha_bar = ") as record:
        schedule = Schedule(T)
    (said,) = [str(warning.message) for warning in record]
    assert f"alpha_bar = {schedule.alpha_bar[-1]:.2f} at its last timestep" in said
    assert "larger beta_end, more timesteps or the cosine schedule" in said
    assert "\n" not in said
    assert record[0].filename == __file__
    with pytest.warns(ScheduleWarning, match=r"close to 0: take a larger sigma_max$"):
        Schedule(T, "edm", sigma_max=3.0)


@pytest.mark.parametrize(
    "schedule", [(), (1000,), (50, "cosine"), (50, "linear", 1e-3, 0.2), (500, "sech")]
)
def test_nothing_is_said_of_a_schedule_that_is_long_enough(schedule):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Schedule(*schedule).alpha_bar[-1] < 0.05


def test_a_short_schedule_loses_the_mean_of_the_data_and_a_long_one_does_not():
    """The loss behind the limit: with the best denoiser of N(m, s^2), s sqrt(alpha_bar) of m."""
    m, s = 1.0, 0.3
    lost = {}
    for T in (50, 500):
        schedule = Schedule(T)
        x = torch.zeros(1, dtype=torch.float64)  # the mean of N(0, 1): the chain is linear in it
        steps = torch.arange(T).flip(0)
        for t, (c_x, c_eps, *_) in zip(
            steps, reverse_table(schedule, steps, method="ddim"), strict=True
        ):
            a = schedule.alpha_bar[t]
            x = c_x * x + c_eps * (x - a.sqrt() * m) * (1 - a).sqrt() / (a * s**2 + 1 - a)
        lost[T] = (m - x).item()
        assert lost[T] == pytest.approx(s * schedule.alpha_bar[-1].sqrt().item(), rel=0.5)
    assert lost[500] < 0.03 < 0.2 < lost[50]


def test_studies_take_published_schedules_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert given_schedule(50).alpha_bar[-1] > 0.5


def test_the_command_line_says_it_once_in_one_line(tmp_path):
    steps = ["--steps", "2", "--classifier-steps", "2", "--batch-size", "32"]
    result = flashpoint(
        "train", "--data", "moons", "--recipe", "small", "--timesteps", 50, *steps, "--out",
        tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0
    said = [line for line in result.stderr.splitlines() if "alpha_bar" in line]
    assert len(said) == 1
    assert said[0].startswith("warning: the schedule leaves alpha_bar = 0.60 at its last timestep")
