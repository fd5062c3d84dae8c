"""EDM's sampler and Heun's method against the published algorithms, written out in float64."""

import itertools
import math
from functools import partial

import pytest
import torch

from flashpoint.diffusion import MLP, Schedule, UserError, sample, sampling
from flashpoint.diffusion.reverse_steps import levels_at, timesteps
from flashpoint.diffusion.solvers import Churn, chain_table
from flashpoint.diffusion.studies.few_steps import best_output, closed_curve, follow
from flashpoint.kernels import sample_chain

CURVE = closed_curve()
SCHEDULES = [
    Schedule(500, "edm"),
    Schedule(500, "edm", prediction="x0", sigma_data=0.5),
    Schedule(500, "linear"),
    Schedule(500, "cosine", prediction="v"),
    Schedule(500, "sech", prediction="flow"),
]
NAMES = [f"{schedule.name}-{schedule.prediction}" for schedule in SCHEDULES]


def denoised(x, sigma):
    """D(x; sigma), the mean of x_0 given x = x_0 + sigma eps."""
    scale = math.sqrt(1 + sigma**2)
    return x - sigma * CURVE.optimal_noise(x / scale, 1 / scale**2)


def algorithm_2(x, sigma, churn, highest=math.inf):
    """Karras et al. 2022, algorithm 2, of x_0 + sigma eps: yields (x, sigma) after each step.

    What is yielded has the noise of the next step's line 6, as in a table. No sigma is raised
    above the highest. Algorithm 1 is that with S_churn = 0.
    """
    generator, levels = torch.Generator().manual_seed(1), [*sigma.tolist(), 0.0]
    t_hat = levels[0]
    for t_next in levels[1:]:
        d = (x - denoised(x, t_hat)) / t_hat
        x_next = x + (t_next - t_hat) * d
        if t_next == 0:
            yield x_next, 0.0
            return
        d_next = (x_next - denoised(x_next, t_next)) / t_next
        x, t_hat = x + (t_next - t_hat) * (d + d_next) / 2, t_next
        if churn.s_tmin <= t_next <= churn.s_tmax:
            gamma = min(churn.s_churn / (len(levels) - 1), math.sqrt(2) - 1)
            t_hat = min((1 + gamma) * t_next, highest)
        if t_hat > t_next:
            z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = x + math.sqrt(t_hat**2 - t_next**2) * churn.s_noise * z
        yield x, t_hat


def check(schedule, method, churn, highest, count=18):
    """Compares the table with the algorithm after each step."""
    steps = timesteps(schedule, count, spacing="karras", method=method)
    table, t = chain_table(schedule, steps, method=method, churn=churn)
    assert table.shape == (2 * count - 1, 7)
    signal, noise = levels_at(schedule, t)
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    output = lambda x, row: best_output(CURVE, schedule, x, t[row : row + 1])  # noqa: E731
    after = [*follow(table, output, x)]
    sigma = schedule.sigma[steps]
    want = list(algorithm_2(x / signal[0], sigma, churn, highest))
    assert len(want) == count
    for i, (y, t_hat) in enumerate(want):
        row = min(2 * i + 1, 2 * count - 2)
        scale = signal[row + 1] if row + 1 < len(t) else 1.0
        torch.testing.assert_close(after[row], scale * y, rtol=1e-6, atol=1e-6)
        if row + 1 < len(t):
            assert (noise / signal)[row + 1].item() == pytest.approx(t_hat, rel=1e-9)
    return table


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
def test_heun_is_algorithm_1(schedule):
    table = check(schedule, "heun", Churn(0.0), math.inf)
    assert not table[:, 2].any()
    steps = timesteps(schedule, 18, spacing="karras", method="edm")
    calm, _ = chain_table(schedule, steps, method="edm", churn=Churn(0.0))
    assert torch.equal(calm, table)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
@pytest.mark.parametrize("s_churn", [3.0, 40.0])
def test_edm_is_algorithm_2(schedule, s_churn):
    churn = Churn(s_churn, s_tmin=0.05, s_tmax=4.0, s_noise=1.003)
    table = check(schedule, "edm", churn, math.inf)
    assert 3 <= (table[:, 2] != 0).sum() < 14  # of 17


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
def test_no_level_is_raised_above_the_start(schedule):
    table = check(schedule, "edm", Churn(100.0), schedule.sigma.max().item())
    if schedule.prediction != "eps":
        assert (table[1::2, 2] != 0).all()


def test_heun_on_flow_is_that_of_its_velocity():
    """x is followed along dx = v dt, Heun's method as it is written in textbooks."""
    schedule = Schedule(500, "flow")
    steps = timesteps(schedule, 12, method="heun")
    table, t = chain_table(schedule, steps, method="heun")

    def velocity(x, row):
        return best_output(CURVE, schedule, x, t[row : row + 1])

    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, got = follow(table, velocity, x)
    tau = [*((steps + 1) / 500).double().tolist(), 0.0]
    for i, (now, following) in enumerate(itertools.pairwise(tau)):
        v = velocity(x, 2 * i)
        ahead = x + (following - now) * v
        if following:
            v = (v + velocity(ahead, 2 * i + 1)) / 2
        x = x + (following - now) * v
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


def network():
    torch.manual_seed(0)
    return MLP(3, 2, [16, 16])


@pytest.mark.parametrize(
    "schedule",
    [Schedule(40, "flow"), Schedule(40, "edm"), Schedule(40, "cosine", prediction="v")],
    ids=lambda schedule: schedule.name,
)
def test_the_chain_with_noise_and_memory_on_the_kernels(device, monkeypatch, schedule):
    options = {"method": "edm", "num_steps": 6, "s_churn": 2.0, "s_noise": 1.1, "seed": 4}
    found = []
    for backend in ("triton", "torch"):
        run = partial(sample_chain, backend=backend, precision="fp32")
        monkeypatch.setattr(sampling, "sample_chain", run)
        found.append(sample(network(), schedule, 5, keep_every=1, device=device, **options))
    assert found[0].trajectory.shape == (7, 5, 2)
    torch.testing.assert_close(found[0].trajectory, found[1].trajectory, rtol=1e-4, atol=1e-4)
    options["s_churn"] = 0.0
    calm = sample(network(), schedule, 5, device=device, **options).x
    assert not torch.allclose(calm, found[0].x, rtol=0.01, atol=0.01)
    heun = sample(network(), schedule, 5, method="heun", num_steps=6, seed=4, device=device).x
    assert torch.equal(calm, heun)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"s_churn": 3.0, "method": "heun"}, "s_churn must be left out unless method is edm"),
        ({"s_noise": 1.0, "method": "ddpm"}, "s_noise must be left out unless method is edm"),
        ({"s_churn": -1.0}, "s_churn must be at least 0 and finite, got -1.0"),
        ({"s_churn": "much"}, "s_churn must be at least 0 and finite, got 'much'"),
        ({"s_churn": 10**400}, "s_churn must be at least 0 and finite, got 1000"),
        ({"s_tmin": math.inf}, "s_tmin must be at least 0 and finite, got inf"),
        ({"s_tmin": 10**30, "s_tmax": 1.0}, r"s_tmax must be at least s_tmin, 1e\+30, got 1.0"),
        ({"variance": "", "method": "ddpm"}, "variance must be one of beta, posterior, none"),
        ({"s_tmin": 2.0, "s_tmax": 1.0}, "s_tmax must be at least s_tmin, 2.0, got 1.0"),
        ({"s_noise": math.nan}, "s_noise must be at least 0 and finite, got nan"),
    ],
)
def test_a_wrong_noise_is_named(options, message):
    with pytest.raises(UserError, match=message):
        sample(network(), Schedule(50), 2, device="cpu", **{"method": "edm", **options})


def test_any_sigma_may_be_raised():
    options = {"method": "edm", "num_steps": 5, "device": "cpu"}
    default = sample(network(), Schedule(50), 2, **options).x
    assert torch.equal(sample(network(), Schedule(50), 2, s_tmax=math.inf, **options).x, default)
    highest = sample(network(), Schedule(50), 2, s_tmax=10**30, **options).x
    assert torch.equal(highest, default)
