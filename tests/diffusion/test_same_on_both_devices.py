"""What samples and measures, at least once on a GPU: it gives what it gives on a CPU.

The draws are the same on both, so results differ by rounding alone.
"""

import pytest
import torch

from flashpoint.diffusion import (
    MLP,
    ConditionalMLP,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionClassifier,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    GaussianMixture,
    HeunDiscreteScheduler,
    Recipe,
    SampleConfig,
    Schedule,
    Task,
    class_table,
    excess_loss,
    interpolate,
    invert,
    sample,
    sample_many,
    sample_with_reward,
    states_points,
    train_many,
)
from flashpoint.diffusion.sampling import METHODS

from .helpers import smooth

pytestmark = pytest.mark.gpu

SCHEDULE = Schedule(60)
ROWS = 300
# Largest difference relative to the root mean square: of kernels in fp16 over a chain, of kernels
# that keep the accuracy of float32.
HALF, FULL = 2e-2, 1e-3


@pytest.fixture
def denoiser():
    return smooth(MLP(3, 2, [64, 64]))


@pytest.fixture
def conditional():
    return smooth(ConditionalMLP(3, 2, [64, 64], class_features=class_table(3)))


def assert_same(call, device, tolerance):
    """call(device) gives on the device what it gives on a CPU."""
    found, expected = (torch.as_tensor(call(where)).double().cpu() for where in (device, "cpu"))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.square().mean().sqrt()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_steps", [None, 20])
def test_every_method(device, denoiser, method, num_steps):
    options = {"method": method, "num_steps": num_steps, "seed": 3}
    assert_same(lambda d: sample(denoiser, SCHEDULE, ROWS, device=d, **options).x, device, HALF)


@pytest.mark.parametrize("method", METHODS)
def test_guidance_of_a_classifier(device, denoiser, method):
    judge, labels = MLP(3, 3, [20, 40]), torch.arange(ROWS) % 3
    options = {"classifier": judge, "label": labels, "scale": 2.0, "method": method}
    assert_same(lambda d: sample(denoiser, SCHEDULE, ROWS, device=d, **options).x, device, HALF)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_guidance_without_a_classifier(device, conditional, method, scale):
    options = {"label": torch.arange(ROWS) % 4, "scale": scale, "method": method}
    assert_same(lambda d: sample(conditional, SCHEDULE, ROWS, device=d, **options).x, device, HALF)


def test_networks_too_wide_for_one_launch(device):
    wide = smooth(MLP(3, 2, [600, 600]))
    assert_same(lambda d: sample(wide, SCHEDULE, ROWS, device=d).x, device, FULL)


def test_many_models_and_what_is_kept(device, denoiser):
    configs = [SampleConfig(denoiser, SCHEDULE, seed=seed, num_steps=30) for seed in range(3)]

    def kept(where):
        return torch.stack([
            each.trajectory for each in sample_many(configs, ROWS, keep_every=7, device=where)
        ])  # fmt: skip

    assert_same(kept, device, HALF)


@pytest.mark.parametrize("posterior_draws", [0, 4])
def test_rewards(device, denoiser, posterior_draws):
    """Which candidate is chosen may hang on rounding, so the points are compared as a whole."""

    def moments(where):
        x = sample_with_reward(
            denoiser, SCHEDULE, 2000, lambda x: x[:, 0], candidates=8, temperature=0.5,
            posterior_draws=posterior_draws, device=where,
        ).x  # fmt: skip
        return torch.stack((x.mean(0), x.std(0)))

    assert_same(moments, device, 0.05)


def test_inversion_and_interpolation(device, denoiser):
    x = torch.randn(2, ROWS, 2)
    assert_same(lambda d: invert(denoiser, SCHEDULE, x[0], device=d), device, FULL)
    assert_same(lambda d: interpolate(denoiser, SCHEDULE, *x, count=3, device=d), device, HALF)


def test_classification_by_denoising(device, conditional):
    x = torch.randn(ROWS, 2)

    def likelihood(where):
        return DiffusionClassifier(conditional, SCHEDULE, device=where).log_likelihood(x)

    assert_same(likelihood, device, FULL)


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_schedulers(device, scheduler):
    x, eps = torch.randn(2, ROWS, 2)

    def previous(where):
        steps = scheduler.from_schedule(SCHEDULE)
        steps.set_timesteps(10, device=where)
        generator = torch.Generator().manual_seed(0)  # of the CPU, so that the noise is the same
        t = steps.timesteps[3]
        noisy = steps.add_noise(x.to(where), eps.to(where), t.expand(ROWS))
        return steps.step(eps.to(where), t, noisy, generator=generator).prev_sample

    assert_same(previous, device, FULL)


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        HeunDiscreteScheduler,
    ],
)
def test_chains_of_schedulers(device, scheduler):
    x = torch.randn(ROWS, 2)

    def chain(where):
        steps = scheduler(100)
        steps.set_timesteps(4, device=where)
        sample = x.to(where)
        for t in steps.timesteps:
            if hasattr(steps, "init_noise_sigma"):
                steps.scale_model_input(sample, t)
            sample = steps.step(sample.sin(), t, sample).prev_sample
        return sample

    assert_same(chain, device, FULL)


def test_many_trainings_together(device):
    """Each model ends near where it ends alone on a CPU."""
    recipe = Recipe(steps=200, hidden_layers=(32, 32), batch_size=128)
    tasks = [Task(states_points(250), SCHEDULE, recipe, seed=seed) for seed in range(3)]

    def losses(where):
        mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
        trained = train_many(tasks, device=where)
        return torch.stack([excess_loss(each.cpu(), SCHEDULE, mixture).mean() for each in trained])

    assert_same(losses, device, 0.1)
