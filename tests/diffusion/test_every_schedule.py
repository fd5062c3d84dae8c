"""Every method on every schedule, with the best denoiser there is and with one that errs."""

import pytest
import torch

from flashpoint.diffusion import MLP, Schedule, invert, sample
from flashpoint.diffusion.metrics import sliced_wasserstein
from flashpoint.diffusion.noise_levels import BETAS
from flashpoint.diffusion.reverse_steps import timesteps
from flashpoint.diffusion.sampling import METHODS
from flashpoint.diffusion.studies.few_steps import closed_curve, solve

from .closed_forms import RoundMixture

CURVE = RoundMixture.of(closed_curve())  # of standard deviation 0.8 in each axis
DATA = CURVE.draw(600, 0)
# Of the mean standard deviation of the axes and of the sliced Wasserstein distance, by number of
# steps. Other draws of the data are within 0.03 of the first and at a distance of about 0.05.
BOUNDS = {
    5: (0.54, 1.0, 0.25),
    10: (0.67, 0.86, 0.15),
    20: (0.72, 0.84, 0.1),
    50: (0.76, 0.84, 0.08),
}


def schedule_of(name, T):
    if name == "cosine" or T == 1000:
        return Schedule(T, name)
    return Schedule(T, name, 0.1 / T, 10 / T)


def noise_at_T(n=600):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("alpha_bar", [1e-12, 0.3, 0.9999])
def test_the_best_denoiser_of_the_curve_is_that_of_any_mixture(alpha_bar):
    x = DATA * alpha_bar**0.5 + noise_at_T() * (1 - alpha_bar) ** 0.5
    want = closed_curve().optimal_noise(x, alpha_bar)
    torch.testing.assert_close(CURVE.optimal_noise(x, alpha_bar), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("error", [0.0, 0.03])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "T"), [*((name, 500) for name in BETAS), ("cosine", 100), ("linear", 1000)]
)
def test_samples_are_right_from_five_steps_up(name, T, method, error):
    for count, (low, high, most) in BOUNDS.items():
        if method == "edm" and count == 5:
            continue  # the noise that it adds in 5 steps is too much for the next ones
        x = solve(method, CURVE, schedule_of(name, T), count, noise_at_T(), error=error)
        assert low < x.std(dim=0).mean() < high
        assert sliced_wasserstein(x, DATA) < most


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("ddpm", "edm")])
def test_a_deterministic_chain_of_all_steps_is_right_too(method):
    x = solve(method, CURVE, Schedule(100, "cosine"), None, noise_at_T(), error=0.03)
    assert sliced_wasserstein(x, DATA) < BOUNDS[50][2]


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("count", [1, 5, 10, 100])
def test_chains_start_where_errors_are_not_magnified(name, count):
    schedule = schedule_of(name, 500)
    for steps in (timesteps(schedule, count, method=method) for method in METHODS):
        alpha_bar = schedule.alpha_bar[steps[0]]
        assert ((1 - alpha_bar) / alpha_bar).sqrt() <= (14.1 if count >= 10 else 8)
        assert alpha_bar < 0.05  # little of the data is left
        assert len(steps) == count


def test_only_ddpm_visits_timesteps_that_hold_no_data():
    schedule = Schedule(500, "cosine")
    assert timesteps(schedule, None).tolist() == list(range(499, -1, -1))
    remain = timesteps(schedule, None, method="ddim")
    assert remain.tolist() == list(range(len(remain) - 1, -1, -1))
    assert 450 < len(remain) < 500
    assert torch.equal(timesteps(schedule, 499, method="ddim"), remain)
    assert torch.equal(timesteps(schedule, 500, method="heun"), remain)
    linear = Schedule(500)
    for method in ("ddim", "heun"):
        assert len(timesteps(linear, None, method=method)) == 500


def test_points_are_found_again_on_the_cosine_schedule():
    """Inversion and sampling visit the same timesteps, for a denoiser of N(0, I): eps = sigma x."""
    network = MLP(4, 3)
    with torch.no_grad():
        network.model[0].weight.copy_(torch.eye(3, 4) * 0.9)
        network.model[0].bias.zero_()
    schedule, x = Schedule(200, "cosine"), DATA[:20].float()
    x_T = invert(network, schedule, x, num_steps=50, device="cpu")
    options = {"method": "ddim", "num_steps": 50, "x_T": x_T, "device": "cpu"}
    torch.testing.assert_close(sample(network, schedule, 20, **options).x, x, rtol=1e-3, atol=1e-3)
