"""Where a step of DDIM leads: to diffusers' stride or to the next timestep, and what is said."""

import json
import warnings

import pytest
import torch

from flashpoint.diffusion import DDIMScheduler, DDPMScheduler
from flashpoint.diffusion.compat import settings


def std_of_chain(scheduler, count, sigma=0.1):
    """The standard deviation at the end, with the best eps for points from N(0, sigma^2)."""
    scheduler.set_timesteps(count)
    alpha_bar = scheduler.alphas_cumprod.double()
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in scheduler.timesteps:
        a = alpha_bar[t]
        x = scheduler.step(x * (1 - a) ** 0.5 / (a * sigma**2 + 1 - a), t, x).prev_sample
    return x.std().item()


def test_following_the_timesteps_is_nearer_to_the_truth():
    with pytest.warns(UserWarning, match=r"each step leads to t - 3, as in diffusers"):
        as_diffusers = std_of_chain(DDIMScheduler(timestep_spacing="trailing"), 300)
    following = DDIMScheduler(timestep_spacing="trailing", follow_timesteps=True)
    assert abs(as_diffusers - 0.1) > 0.02
    assert abs(std_of_chain(following, 300) - 0.1) < 0.006
    assert DDIMScheduler.from_config(following.config).follow_timesteps


@pytest.mark.parametrize("spacing", settings.TIMESTEP_SPACINGS)
def test_both_strides_agree_and_nothing_is_said_where_they_are_the_same(spacing):
    options = {"timestep_spacing": spacing, "num_train_timesteps": 100, "beta_end": 0.2}
    strides = [DDIMScheduler(follow_timesteps=follow, **options) for follow in (False, True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert std_of_chain(strides[0], 100) == std_of_chain(strides[1], 100)
        strides[1].set_timesteps(33)


def test_a_file_says_that_timesteps_are_followed_only_if_they_are(tmp_path):
    for follow in (False, True):
        DDIMScheduler(follow_timesteps=follow).save_config(tmp_path)
        saved = json.loads((tmp_path / "scheduler_config.json").read_text())
        assert saved.get("follow_timesteps", False) is follow
        assert ("follow_timesteps" in saved) is follow
        assert DDIMScheduler.from_pretrained(tmp_path).follow_timesteps is follow


def test_a_chain_that_starts_below_the_noise_says_so():
    with pytest.warns(UserWarning, match="starts at timestep 599, whose alpha_bar is 0.0259"):
        DDPMScheduler().set_timesteps(600)
