"""What networks see and predict: each parametrisation against the formulas of its paper."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

from flashpoint.diffusion import Schedule, TimeEmbedding, UserError
from flashpoint.diffusion.choices import SCHEDULES
from flashpoint.diffusion.errors import ScheduleWarning
from flashpoint.diffusion.noise_levels import BETAS
from flashpoint.diffusion.predictions import PREDICTIONS, WEIGHTINGS

T = 40
WEIGHT = 4  # column of a forward table


def schedule_of(name, prediction=None, **fields):
    beta = {} if name in ("cosine", "flow", "edm") else {"beta_end": 0.4}
    return Schedule(T, name, prediction=prediction, **beta, **fields)


def processes():
    """(name, fields) of each schedule, and of one whose last timestep holds no data."""
    return [*((name, {}) for name in SCHEDULES), ("cosine", {"zero_terminal_snr": True})]


def pairs():
    """(name, prediction, fields) of all that go together."""
    return [
        (name, prediction, fields)
        for name, fields in processes()
        for prediction in PREDICTIONS
        if prediction != "eps" or not (fields or name == "flow")
    ]


def points(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("name", "prediction", "fields"), pairs())
def test_the_target_says_what_x_0_and_eps_are(name, prediction, fields):
    schedule, t = schedule_of(name, prediction, **fields), torch.arange(T)
    x_0, eps = points(0), points(1)
    x_t, target = schedule.noised(x_0, eps, t), schedule.target_of(x_0, eps, t)
    torch.testing.assert_close(schedule.x0_hat(x_t, target, t), x_0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.eps_hat(x_t, target, t), eps, rtol=1e-9, atol=1e-9)
    score = schedule.score(x_t, target, t)
    torch.testing.assert_close(score, -eps / schedule.noise[:, None], rtol=1e-9, atol=1e-9)
    one = schedule.x0_hat(x_t[7], target[7], 7)  # a timestep as a number
    torch.testing.assert_close(one, x_0[7], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "prediction", "fields"), pairs())
def test_the_best_network_for_a_gaussian_has_its_score(name, prediction, fields):
    schedule, t, x_t = schedule_of(name, prediction, **fields), torch.arange(T), points()
    variance = (schedule.signal.square() + schedule.noise.square())[:, None]  # of x_0 ~ N(0, I)
    p, q = (each[:, None] for each in schedule.target)
    signal, noise = schedule.signal[:, None], schedule.noise[:, None]
    best = (p * signal + q * noise) * x_t / variance  # the mean of the target given x_t
    torch.testing.assert_close(schedule.score(x_t, best, t), -x_t / variance)


def test_eps_and_x0_are_themselves():
    x_0, eps, t = points(0), points(1), torch.arange(T)
    assert torch.equal(schedule_of("cosine", "eps").target_of(x_0, eps, t), eps)
    assert torch.equal(schedule_of("cosine", "x0").target_of(x_0, eps, t), x_0)


@pytest.mark.parametrize("name", BETAS)
def test_v_is_that_of_salimans_and_ho(name):
    """v = alpha eps - sigma x_0, and x_0 = alpha x_t - sigma v (2022, section 4, appendix D)."""
    schedule, t = schedule_of(name, "v"), torch.arange(T)
    alpha, sigma = schedule.alpha_bar.sqrt()[:, None], (1 - schedule.alpha_bar).sqrt()[:, None]
    x_0, eps = points(0), points(1)
    v = schedule.target_of(x_0, eps, t)
    torch.testing.assert_close(v, alpha * eps - sigma * x_0)
    x_t = schedule.noised(x_0, eps, t)
    torch.testing.assert_close(x_t, alpha * x_0 + sigma * eps)
    other = points(2)  # whatever the network predicts
    torch.testing.assert_close(schedule.x0_hat(x_t, other, t), alpha * x_t - sigma * other)
    torch.testing.assert_close(schedule.eps_hat(x_t, other, t), sigma * x_t + alpha * other)


def test_flow_is_a_straight_line():
    """x_t = (1 - t) x_0 + t eps with velocity eps - x_0 (Liu et al. 2023)."""
    schedule, index = Schedule(T, "flow"), torch.arange(T)
    t = (index.double()[:, None] + 1) / T
    x_0, eps = points(0), points(1)
    x_t, velocity = schedule.noised(x_0, eps, index), schedule.target_of(x_0, eps, index)
    torch.testing.assert_close(x_t, (1 - t) * x_0 + t * eps)
    torch.testing.assert_close(velocity, eps - x_0)
    other = points(2)
    torch.testing.assert_close(schedule.x0_hat(x_t, other, index), x_t - t * other)
    assert schedule.signal[-1] == 0
    assert schedule.sigma[-1] == math.inf
    assert schedule.alpha_bar[-1] == 0


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_is_the_preconditioned_network_of_karras(sigma_data):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (2022, equation 7 and table 1)."""
    low, high, rho = 0.01, 50.0, 7
    schedule = Schedule(T, "edm", sigma_min=low, sigma_max=high, sigma_data=sigma_data)
    assert (schedule.prediction, schedule.time_feature) == ("edm", "c_noise")
    ramp = torch.linspace(1, 0, T, dtype=torch.float64)  # equation 5, from the least noise up
    sigma = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    root = (sigma**2 + sigma_data**2).sqrt()
    c_skip, c_out, c_in = sigma_data**2 / root**2, sigma * sigma_data / root, 1 / root
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    t = torch.arange(T)

    def column(x):
        return x[:, None]

    x_0, eps, output = points(0), points(1), points(2)
    x = x_0 + column(sigma) * eps
    torch.testing.assert_close(schedule.sigma, sigma)
    torch.testing.assert_close(schedule.time_features[:, 0], sigma.log() / 4)
    seen = schedule.noised(x_0, eps, t)
    torch.testing.assert_close(seen, column(c_in) * x, rtol=1e-6, atol=1e-12)
    denoised = column(c_skip) * x + column(c_out) * output
    torch.testing.assert_close(schedule.x0_hat(seen, output, t), denoised, rtol=1e-6, atol=1e-9)
    error = (output - schedule.target_of(x_0, eps, t)).square()
    lost = column(schedule.forward_table("edm")[:, WEIGHT]) * error
    torch.testing.assert_close(lost, column(weight) * (denoised - x_0).square(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_edm_prediction_under_another_process_is_the_same_network(name):
    """x_t / signal is x_0 + sigma eps, which c_skip and c_out belong to."""
    schedule = schedule_of(name, "edm", sigma_data=0.5)
    t = torch.arange(T - 1)  # without the end, where sigma is infinite
    sigma = schedule.sigma[t, None]
    root = (sigma**2 + 0.25).sqrt()
    x_0, eps, output = points(0)[:-1], points(1)[:-1], points(2)[:-1]
    denoised = 0.25 / root**2 * (x_0 + sigma * eps) + sigma * 0.5 / root * output
    x_t = schedule.noised(x_0, eps, t)
    torch.testing.assert_close(schedule.x0_hat(x_t, output, t), denoised, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", BETAS)
def test_zero_terminal_snr_is_that_of_diffusers(name):
    plain, zero = schedule_of(name), schedule_of(name, "v", zero_terminal_snr=True)
    theirs = (1 - rescale_zero_terminal_snr(plain.beta)).cumprod(0)
    torch.testing.assert_close(zero.alpha_bar, theirs, rtol=1e-9, atol=1e-15)
    assert zero.alpha_bar[-1] == 0
    torch.testing.assert_close(zero.alpha_bar[0], plain.alpha_bar[0])


def gain_of(snr, prediction):
    """The squared factor from an error of the network to one of x_0, by hand."""
    return {"eps": 1 / snr, "x0": torch.ones_like(snr), "v": 1 / (snr + 1)}[prediction]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("name", BETAS)
def test_weights_are_those_of_the_papers(name, prediction):
    schedule = schedule_of(name, prediction)
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    of_x0 = gain_of(snr, prediction)
    wanted = {
        "uniform": torch.ones_like(snr),
        "min-snr": snr.clamp(max=5) * of_x0,  # Hang et al. 2023, equation 8
        "p2": snr * of_x0 / (1 + snr),  # of eps: 1 / (1 + SNR); Choi et al. 2022, equation 8
        "edm": (1 + snr) * of_x0,  # lambda = 1 / sigma^2 + 1 / sigma_data^2; Karras et al. 2022
    }
    assert wanted.keys() == WEIGHTINGS.keys()
    for name_, weight in wanted.items():
        table = schedule.forward_table(name_)
        assert table.shape == (T, 5)
        torch.testing.assert_close(table[:, WEIGHT], weight)
        p, q = schedule.target
        assert torch.equal(
            table[:, :WEIGHT], torch.stack((schedule.signal, schedule.noise, p, q), dim=1)
        )


@pytest.mark.parametrize(("name", "prediction", "fields"), pairs())
def test_every_weight_is_finite(name, prediction, fields):
    schedule = schedule_of(name, prediction, **fields)
    for weighting in WEIGHTINGS:
        table = schedule.forward_table(weighting)
        assert table.isfinite().all()
        assert (table[:, WEIGHT] >= 0).all()
        # The same errors of x_0 count alike whatever is predicted.
        if weighting != "uniform" and schedule.signal[-1] > 0:
            other = schedule.predicting("x0").forward_table(weighting)[:, WEIGHT]
            gain = schedule.x0_coefficients[1].square()
            torch.testing.assert_close(table[:, WEIGHT], other * gain)


def test_features_of_fractions_lie_between_their_neighbours():
    half = torch.tensor([2.5], dtype=torch.float64)
    for feature in ("linspace", "centered", "c_noise"):
        schedule = Schedule(T, "cosine", time_feature=feature)
        features = schedule.time_features[:, 0]
        torch.testing.assert_close(schedule.features_of(half)[0, 0], features[2:4].mean())
        torch.testing.assert_close(schedule.features_of(torch.arange(T)), schedule.time_features)
    sigma = Schedule(T, "edm").sigma
    between = (Schedule(T, "edm").features_of(half) * 4).exp()
    torch.testing.assert_close(between[0, 0], (sigma[2] * sigma[3]).sqrt())


def test_a_schedule_keeps_all_but_the_prediction():
    schedule = Schedule(T, "linear", beta_end=0.4, time_feature=TimeEmbedding(4), sigma_data=0.5)
    other = schedule.predicting("edm")
    assert other.prediction == "edm"
    assert other.predicting("eps") == schedule
    with pytest.warns(ScheduleWarning):
        short = Schedule(20)
    short.predicting("v")  # which warns no more


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction": "velocity"}, "prediction must be one of eps, x0, v, flow, edm, got"),
        ({"prediction": "EPS"}, "prediction must be one of .* got 'EPS'"),
        ({"prediction": 3}, "prediction must be one of .*, got 3"),
        (
            {"name": "flow", "prediction": "eps"},
            "prediction must be x0, v, flow or edm where no data is left at the last timestep, got "
            "eps with the flow schedule",
        ),
        ({"zero_terminal_snr": True}, "prediction must be x0, v, flow or edm where no data"),
        ({"zero_terminal_snr": 1, "prediction": "v"}, "zero_terminal_snr must be True or False"),
        (
            {"name": "flow", "zero_terminal_snr": True},
            "zero_terminal_snr must be left out with the flow schedule",
        ),
        (
            {"num_steps": 1, "zero_terminal_snr": True, "prediction": "v"},
            "num_steps must be at least 2 with zero_terminal_snr",
        ),
        ({"name": "flow", "beta_end": 0.1}, "beta_end must be left out with the flow schedule"),
        ({"name": "edm", "beta_start": 0.1}, "beta_start must be left out with the edm schedule"),
        ({"sigma_max": 10.0}, "sigma_max must be left out with the linear schedule, got 10.0"),
        ({"name": "edm", "sigma_min": 0.0}, "sigma_min must be from 1e-6 to 1e6, got 0.0"),
        ({"name": "edm", "sigma_min": 90.0}, "sigma_max must be above sigma_min, 90.0, got 80.0"),
        ({"sigma_data": math.nan}, "sigma_data must be from 1e-6 to 1e6, got nan"),
        ({"sigma_data": "1"}, "sigma_data must be from 1e-6 to 1e6, got '1'"),
        (
            {"name": "flow", "time_feature": "c_noise"},
            "time_feature must be another than c_noise",
        ),
        ({"time_feature": {"width": 3}}, "time_feature is no TimeEmbedding"),
    ],
)
def test_what_does_not_go_together_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        Schedule(**arguments)
    assert "\n" not in str(caught.value)


def test_an_unknown_weighting_is_named():
    with pytest.raises(UserError, match="did you mean 'min-snr'"):
        Schedule(T, "cosine").forward_table("min_snr")
