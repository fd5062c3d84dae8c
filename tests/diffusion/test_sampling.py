"""Reverse steps against diffusers' schedulers and closed forms; guidance against its formula."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from flashpoint.diffusion import MLP, Schedule, UserError, sample
from flashpoint.diffusion.sampling import reverse_table, timesteps
from flashpoint.kernels import reverse_step

SCHEDULE = Schedule(50)
SCHEDULER = {"num_train_timesteps": 50, "beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False}


def step(table, index, x, eps, z=None, grad=None):
    return reverse_step(x, eps, table[index], z=z, grad_log_p=grad)


def draws(n=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 40, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("variance", "theirs"), [("beta", "fixed_large"), ("posterior", None)])
def test_ddpm_steps_are_those_of_diffusers(variance, theirs):
    scheduler = DDPMScheduler(**SCHEDULER, variance_type=theirs or "fixed_small")
    steps = timesteps(SCHEDULE, None)
    table = reverse_table(SCHEDULE, steps, method="ddpm", variance=variance)
    x, eps, _ = draws()
    for index in (0, 10, 48, 49):
        t = int(steps[index])
        mean = step(table, index, x, eps)
        generator = torch.Generator().manual_seed(1)
        want = scheduler.step(eps, t, x, generator=generator).prev_sample
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        got = step(table, index, x, eps, z)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)  # theirs in float32
        if t == 0:
            assert torch.equal(got, mean)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [50, 10])
def test_ddim_steps_are_those_of_diffusers(eta, count):
    scheduler = DDIMScheduler(**SCHEDULER, set_alpha_to_one=True, timestep_spacing="leading")
    scheduler.set_timesteps(count)
    steps = scheduler.timesteps
    table = reverse_table(SCHEDULE, steps, method="ddim", eta=eta)
    x, eps, z = draws()
    for index in (0, 3, count - 1):
        want = scheduler.step(eps, int(steps[index]), x, eta=eta, variance_noise=z).prev_sample
        if index == count - 1:  # diffusers' last step goes to alpha_bar 1, without noise for us
            want = scheduler.step(eps, int(steps[index]), x, eta=0.0).prev_sample
        torch.testing.assert_close(step(table, index, x, eps, z), want, rtol=1e-5, atol=1e-6)


def test_guided_ddim_step_is_the_published_formula():
    steps = timesteps(SCHEDULE, None)
    table = reverse_table(SCHEDULE, steps, method="ddim", scale=lambda t: 1 + t / 10)
    x, eps, grad = draws()
    index, t = 7, int(steps[7])
    a, prev = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar[t - 1]
    eps_hat = eps - (1 + t / 10) * (1 - a).sqrt() * grad
    x0_hat = (x - (1 - a).sqrt() * eps_hat) / a.sqrt()
    want = prev.sqrt() * x0_hat + (1 - prev).sqrt() * eps_hat
    torch.testing.assert_close(step(table, index, x, eps, grad=grad), want)


def test_strided_ddpm_step_has_the_posterior_of_the_skipped_steps():
    steps = torch.tensor([40, 20, 0])
    table = reverse_table(SCHEDULE, steps, method="ddpm", variance="posterior")
    x_0, eps, _ = draws()
    a, prev = SCHEDULE.alpha_bar[40], SCHEDULE.alpha_bar[20]
    x = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    ratio = a / prev
    mean = (prev.sqrt() * (1 - ratio) * x_0 + ratio.sqrt() * (1 - prev) * x) / (1 - a)
    torch.testing.assert_close(step(table, 0, x, eps), mean)
    torch.testing.assert_close(table[0, 2] ** 2, (1 - prev) / (1 - a) * (1 - ratio))


def spread_of_chain(num_steps, options):
    """Mean and standard deviation after the chain, for data N(0.7, 0.3^2) and its exact eps*.

    eps* = sqrt(1 - a) (x - sqrt(a) m) / (a s^2 + 1 - a) is linear in x, so both follow from the
    coefficients alone.
    """
    schedule = Schedule(num_steps, beta_start=0.05 / num_steps, beta_end=10 / num_steps)
    steps = timesteps(schedule, None)
    a = schedule.alpha_bar[-1]
    mean, variance = a.sqrt() * 0.7, a * 0.3**2 + 1 - a
    for t, (c_x, c_eps, c_z, _) in zip(
        steps, reverse_table(schedule, steps, **options), strict=True
    ):
        a = schedule.alpha_bar[t]
        slope = (1 - a).sqrt() / (a * 0.3**2 + 1 - a)
        mean = (c_x + c_eps * slope) * mean - c_eps * slope * a.sqrt() * 0.7
        variance = (c_x + c_eps * slope) ** 2 * variance + c_z**2
    return mean.item(), variance.sqrt().item()


@pytest.mark.parametrize("options", [{"method": "ddpm", "variance": "beta"}, {"method": "ddim"},
                                     {"method": "ddim", "eta": 1.0},
                                     {"method": "ddpm", "variance": "posterior"}])  # fmt: skip
def test_an_exact_denoiser_gives_the_data_distribution(options):
    (mean, coarse), (_, fine) = spread_of_chain(500, options), spread_of_chain(4000, options)
    assert mean == pytest.approx(0.7, abs=0.003)
    assert coarse == pytest.approx(0.3, rel=0.03)
    assert abs(fine - 0.3) < abs(coarse - 0.3) / 4  # the error is that of the discretisation


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_timesteps_run_from_the_noisiest_to_zero(count):
    steps = timesteps(SCHEDULE, count)
    assert len(steps) == count
    assert steps[0] == 49
    assert (steps.diff() < 0).all()
    assert count == 1 or steps[-1] == 0


def model(outputs=2):
    torch.manual_seed(0)
    return MLP(3, outputs, [8])


def test_samples_do_not_depend_on_the_batch_size():
    arguments = {"seed": 3, "num_steps": 5, "device": "cpu"}
    whole = sample(model(), SCHEDULE, 17, **arguments).x
    parts = sample(model(), SCHEDULE, 17, batch_size=5, **arguments).x
    torch.testing.assert_close(parts, whole)
    assert not torch.equal(sample(model(), SCHEDULE, 17, **{**arguments, "seed": 4}).x, whole)


def test_labels_may_differ_by_row():
    arguments = {"classifier": model(5), "scale": 3.0, "device": "cpu"}
    mixed = sample(model(), SCHEDULE, 4, label=torch.tensor([0, 1, 0, 4]), **arguments).x
    for label, row in ((0, 0), (1, 1), (4, 3)):
        same = sample(model(), SCHEDULE, 4, label=label, **arguments).x
        torch.testing.assert_close(same[row], mixed[row])


def test_deterministic_sampling_from_given_noise():
    x_T = torch.randn(6, 2)
    first, second = (
        sample(model(), SCHEDULE, 6, method="ddim", x_T=x_T, seed=seed, device="cpu").x
        for seed in (1, 2)
    )
    assert torch.equal(first, second)


def test_trajectory():
    result = sample(model(), SCHEDULE, 6, keep_every=20, batch_size=4, device="cpu")
    assert result.trajectory.shape == (4, 6, 2)
    assert torch.equal(result.trajectory[-1], result.x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_steps": 51}, "num_steps must be from 1 to 50"),
        ({"num_steps": 0}, "num_steps must be from 1 to 50"),
        ({"method": "ddmp"}, "did you mean 'ddpm'"),
        ({"variance": "alpha"}, "variance must be one of"),
        ({"eta": -1.0}, "eta must be at least 0"),
        ({"label": 1}, "classifier and label"),
        ({"device": "tpu"}, "device must be cpu"),
        ({"device": "cuda:99"}, "does not exist"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        sample(model(), SCHEDULE, **{"n": 2, "device": "cpu", **arguments})


def test_an_unknown_label_is_named():
    with pytest.raises(UserError, match="label must be from 0 to 4"):
        sample(model(), SCHEDULE, 2, classifier=model(5), label=5, device="cpu")


def test_ddpm_is_ddim_with_all_of_its_noise():
    steps = timesteps(SCHEDULE, 20)
    ddpm = reverse_table(SCHEDULE, steps, method="ddpm", variance="posterior", scale=1.5)
    ddim = reverse_table(SCHEDULE, steps, method="ddim", eta=1.0, scale=1.5)
    torch.testing.assert_close(ddpm, ddim)
