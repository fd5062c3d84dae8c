"""Reverse steps against diffusers' schedulers and closed forms; guidance against its formula."""

import math
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from flashpoint.diffusion import MLP, Schedule, UserError, sample, sampling
from flashpoint.diffusion.reverse_steps import reverse_table, timesteps
from flashpoint.diffusion.sampling import METHODS, SampleConfig, sample_many
from flashpoint.kernels import reverse_step, sample_chain

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


@pytest.mark.parametrize("guided", [False, True])
def test_samples_do_not_depend_on_the_batch_size(guided):
    """Not in a single bit, for few rows and for chunks with few rows at their end."""
    options = {"classifier": model(5), "label": 2} if guided else {}
    arguments = {"seed": 3, "num_steps": 5, "device": "cpu", "keep_every": 2, **options}
    whole = sample(model(), SCHEDULE, 1003, **arguments)
    for n in (*range(1, 40), 1001, 1002):
        part = sample(model(), SCHEDULE, n, **arguments)
        assert torch.equal(part.x, whole.x[:n])
        assert torch.equal(part.trajectory, whole.trajectory[:, :n])
    for batch_size in (1, 5, 40):
        part = sample(model(), SCHEDULE, 50, batch_size=batch_size, **arguments)
        assert torch.equal(part.x, whole.x[:50])
    part = sample(model(), SCHEDULE, 3, first_row=7, **arguments)
    assert torch.equal(part.x, whole.x[7:10])
    assert not torch.equal(
        sample(model(), SCHEDULE, 17, **{**arguments, "seed": 4}).x, whole.x[:17]
    )


def test_labels_may_differ_by_row():
    arguments = {"classifier": model(5), "scale": 3.0, "device": "cpu"}
    mixed = sample(model(), SCHEDULE, 4, label=torch.tensor([0, 1, 0, 4]), **arguments).x
    for label, row in ((0, 0), (1, 1), (4, 3)):
        same = sample(model(), SCHEDULE, 4, label=label, **arguments).x
        torch.testing.assert_close(same[row], mixed[row])


@pytest.mark.parametrize("options", [{"method": "ddim"}, {"method": "ddpm", "variance": "none"}])
def test_deterministic_sampling_from_given_noise(options):
    x_T = torch.randn(6, 2)
    first, second = (
        sample(model(), SCHEDULE, 6, x_T=x_T, seed=seed, device="cpu", **options).x
        for seed in (1, 2)
    )
    assert torch.equal(first, second)


def test_ddpm_without_noise_is_the_mean_of_every_step():
    x = x_T = torch.randn(6, 2)
    network = model()
    for t in range(49, -1, -1):
        a, beta = SCHEDULE.alpha_bar[t].item(), SCHEDULE.beta[t].item()
        feature = SCHEDULE.time_features[t].float().expand(6, -1)
        eps = network(torch.cat((x, feature), dim=1)).detach()
        x = (x - beta / (1 - a) ** 0.5 * eps) / (1 - beta) ** 0.5
    got = sample(network, SCHEDULE, 6, x_T=x_T, variance="none", device="cpu").x
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-5)


def conditional_model(seed=0):
    """Three classes, each told by four numbers."""
    torch.manual_seed(seed)
    network = MLP(3 + 4, 2, [8])
    network.class_features = torch.randn(4, 4)
    return network


@pytest.mark.parametrize("method", METHODS)
def test_classes_of_a_conditional_model_may_differ_by_row(method):
    arguments = {"method": method, "num_steps": 10, "device": "cpu"}
    network = conditional_model()
    labels = torch.tensor([0, 1, 3, 2])
    mixed = sample(network, SCHEDULE, 4, label=labels, scale=2.0, **arguments).x
    for label, row in ((0, 0), (1, 1), (2, 3)):
        same = sample(network, SCHEDULE, 4, label=label, scale=2.0, **arguments).x
        torch.testing.assert_close(same[row], mixed[row])
    free = sample(network, SCHEDULE, 4, **arguments).x  # of no class
    torch.testing.assert_close(free[2], mixed[2])
    assert not torch.allclose(free[0], mixed[0])


def test_a_classifier_free_chain_is_its_published_loop():
    network, label, w = conditional_model(), 1, lambda t: t / 10
    x = x_T = torch.randn(5, 2)
    for t in range(49, -1, -1):
        a, prev = (SCHEDULE.alpha_bar[i].item() if i >= 0 else 1.0 for i in (t, t - 1))
        feature = SCHEDULE.time_features[t].float().expand(5, -1)
        told, untold = (
            network(torch.cat((x, feature, network.class_features[y].expand(5, -1)), 1)).detach()
            for y in (label, 3)
        )
        eps = (1 + w(t)) * told - w(t) * untold
        x_0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        x = prev**0.5 * x_0 + (1 - prev) ** 0.5 * eps
    got = sample(network, SCHEDULE, 5, x_T=x_T, method="ddim", label=label, scale=w, device="cpu").x
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)


def test_scale_zero_takes_one_evaluation_of_the_conditional_model(monkeypatch):
    seen = []
    run = sampling.sample_chain
    monkeypatch.setattr(
        sampling, "sample_chain", lambda *a, **k: seen.append(k["condition"].free) or run(*a, **k)
    )
    for options in ({}, {"scale": 0}, {"scale": 1.0}, {"scale": lambda t: 0 * t}):
        sample(conditional_model(), SCHEDULE, 3, label=0, num_steps=2, device="cpu", **options)
    assert seen == [False, False, True, True]


def test_a_classifier_guides_a_conditional_model_that_is_told_no_class():
    network, judge = conditional_model(), model(5)
    options = {"classifier": judge, "label": 4, "num_steps": 10, "device": "cpu"}
    guided = sample(network, SCHEDULE, 3, **options).x
    plain = MLP(3, 2, [8])
    plain.load_state_dict(network.state_dict() | {
        "model.0.weight": network.model[0].weight[:, :3],
        "model.0.bias": network.model[0].bias
        + network.model[0].weight[:, 3:] @ network.class_features[3],
    })  # fmt: skip
    torch.testing.assert_close(guided, sample(plain, SCHEDULE, 3, **options).x)


def many():
    """Configurations that differ in everything; the first three run together on a GPU."""
    labels = torch.tensor([0, 1, 2, 0, 3])
    return [
        SampleConfig(model(), SCHEDULE, seed=1),
        SampleConfig(model(), Schedule(20), seed=2, method="ddim", num_steps=7),
        SampleConfig(model(), Schedule(30, "cosine"), seed=3, variance="beta"),
        SampleConfig(conditional_model(), SCHEDULE, label=labels, scale=1.0, num_steps=9),
        SampleConfig(conditional_model(1), SCHEDULE, label=1, scale=lambda t: t / 50, seed=8),
        SampleConfig(conditional_model(), SCHEDULE, label=2),
        SampleConfig(model(), SCHEDULE, classifier=model(5), label=labels, x_T=torch.ones(5, 2)),
        SampleConfig(model(), SCHEDULE, method="heun", num_steps=5, seed=4),
        SampleConfig(model(), SCHEDULE, method="heun", num_steps=5, seed=5),
    ]


@pytest.mark.parametrize("resting_is_cheap", [True, False])
@pytest.mark.parametrize("batch_size", [100_000, 6])
def test_many_models_sample_as_each_does_alone(monkeypatch, batch_size, resting_is_cheap):
    monkeypatch.setattr(sampling, "_resting_is_cheap", lambda _: resting_is_cheap)
    options = {"keep_every": 4, "device": "cpu"}
    together = sample_many(many(), 5, batch_size=batch_size, **options)
    for config, samples in zip(many(), together, strict=True):
        fields = dict(vars(config))
        alone = sample(fields.pop("model"), fields.pop("schedule"), 5, **fields, **options)
        assert samples.trajectory.shape == alone.trajectory.shape
        torch.testing.assert_close(samples.x, alone.x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(samples.trajectory, alone.trajectory, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("resting_is_cheap", "expected"), [(True, [3, 2, 1, 1]), (False, [1, 1, 1, 1, 1, 1, 1])]
)
def test_models_of_one_kind_run_in_one_call(monkeypatch, resting_is_cheap, expected):
    monkeypatch.setattr(sampling, "_resting_is_cheap", lambda _: resting_is_cheap)
    calls = []
    run = sampling.sample_chain
    monkeypatch.setattr(
        sampling, "sample_chain",
        lambda denoiser, *rest, **k: calls.append(len(denoiser.parameters))
        or run(denoiser, *rest, **k),
    )  # fmt: skip
    sample_many(many()[:7], 5, device="cpu")
    assert calls == expected


def test_rows_may_be_shared_between_ranks():
    whole = sample(model(), SCHEDULE, 9, num_steps=5, device="cpu").x
    parts = [
        sample(model(), SCHEDULE, n, first_row=first, num_steps=5, device="cpu").x
        for first, n in ((0, 4), (4, 5))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_progress_counts_the_samples_of_all_models(monkeypatch):
    monkeypatch.setattr(sampling, "_resting_is_cheap", lambda _: True)
    seen = []
    sample_many(many()[:4], 5, batch_size=6, device="cpu", progress=seen.append)
    assert seen == [6, 12, 15, 20]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ddim", "num_steps": 5, "classifier": 3, "label": torch.arange(6) % 3},
        {"variance": "beta", "num_steps": 4, "scale": 2.0, "label": torch.arange(6) % 4},
        {"method": "ddim", "eta": 0.5, "num_steps": 5, "scale": lambda t: t / 10, "label": 1},
    ],
    ids=["guided", "classifier-free", "scale of t"],
)
def test_strided_guided_chains_of_rows_of_any_class_on_the_kernels(device, monkeypatch, options):
    options = dict(options)
    network = conditional_model()
    if "classifier" in options:
        network, options["classifier"] = model(), model(options["classifier"])
    arguments = (network, SCHEDULE, 6)
    options |= {"keep_every": 2, "device": device}
    found = []
    for backend in ("triton", "torch"):
        run = partial(sample_chain, backend=backend, precision="fp32")
        monkeypatch.setattr(sampling, "sample_chain", run)
        found.append(sample(*arguments, **options))
    assert len(found[0].trajectory) == 1 + -(-options["num_steps"] // 2)
    torch.testing.assert_close(found[0].trajectory, found[1].trajectory, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[0].trajectory[-1], found[0].x)


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
        ({"method": "ddim", "eta": -1.0}, "eta must be from 0 to 1, got -1.0"),
        ({"label": 1}, "classifier and label"),
        ({"classifier": MLP(3, 5)}, "classifier and label"),
        ({"classifier": MLP(3, 5), "label": 0.5}, "label must be a whole number"),
        ({"classifier": MLP(3, 5), "label": torch.zeros(3, dtype=torch.int64)}, r"label .* \[2\]"),
        ({"x_T": torch.zeros(3, 2)}, r"x_T must be \[2, 2\], got \[3, 2\]"),
        ({"classifier": MLP(3, 5), "label": 0, "scale": math.nan}, "scale must be finite"),
        ({"classifier": torch.nn.Linear(3, 5), "label": 0}, "classifier must be a network .*fail"),
        ({"model": model(5)}, "model must have 6 inputs, .* got 3; is it a denoiser"),
        ({"schedule": Schedule(50, time_feature="sinusoidal")}, "must have 18 inputs, .* got 3"),
        ({"first_row": -1}, "first_row must be at least 0"),
        ({"keep_every": -1}, "keep_every must be at least 0"),
        ({"device": "tpu"}, "device must be cpu"),
        ({"device": "cuda:99"}, "does not exist"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        sample(**{"model": model(), "schedule": SCHEDULE, "n": 2, "device": "cpu", **arguments})


def test_a_half_precision_model_and_noise_of_any_type_are_sampled_in_float32():
    x_T = torch.randn(4, 2).half()
    expected = sample(model().half().float(), SCHEDULE, 4, x_T=x_T.float(), device="cpu").x
    for given in (x_T.double(), x_T.numpy(), x_T.tolist()):
        x = sample(model().half(), SCHEDULE, 4, x_T=given, device="cpu").x
        assert x.dtype == torch.float32
        assert torch.equal(x, expected)


def test_an_unknown_label_is_named():
    with pytest.raises(UserError, match="label must be from 0 to 4"):
        sample(model(), SCHEDULE, 2, classifier=model(5), label=5, device="cpu")
    with pytest.raises(UserError, match="label must be from 0 to 3, got -1"):
        sample(conditional_model(), SCHEDULE, 2, label=-1, device="cpu")


def test_ddpm_is_ddim_with_all_of_its_noise():
    steps = timesteps(SCHEDULE, 20)
    ddpm = reverse_table(SCHEDULE, steps, method="ddpm", variance="posterior", scale=1.5)
    ddim = reverse_table(SCHEDULE, steps, method="ddim", eta=1.0, scale=1.5)
    torch.testing.assert_close(ddpm, ddim)
