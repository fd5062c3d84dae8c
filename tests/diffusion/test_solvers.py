"""Solvers against the ODE's solution for a mixture with a known score, and against diffusers."""

import diffusers
import pytest
import torch

from flashpoint.diffusion import (
    MLP,
    GaussianMixture,
    SampleConfig,
    Schedule,
    UserError,
    plots,
    sample,
    sample_many,
    sampling,
)
from flashpoint.diffusion.metrics import sliced_wasserstein
from flashpoint.diffusion.reverse_steps import timesteps
from flashpoint.diffusion.solvers import SOLVERS, chain_table
from flashpoint.diffusion.studies import few_steps

SCHEDULE = Schedule(500)
MIXTURE = GaussianMixture(
    torch.tensor([1.0, 2.0, 3.0]),
    torch.tensor([[1.0, 0.5], [-1.0, 0.8], [0.2, -1.0]]),
    torch.tensor(
        [[[0.02, 0.01], [0.01, 0.02]], [[0.03, 0.0], [0.0, 0.01]], [[0.01, 0], [0, 0.01]]]
    ),
)


def exact_noise(x, t):
    return MIXTURE.optimal_noise(x, SCHEDULE.alpha_bar[t].item())


def solver_timesteps(schedule, count):
    return timesteps(schedule, count, method="heun")


def ends_of_steps(method, schedule, steps, output, x, **options):
    """x after each step of a solver, with a function of x and the timestep as the network."""
    table, t = chain_table(schedule, steps, method=method, **options)
    after = list(few_steps.follow(table, lambda x, row: output(x, int(t[row])), x))
    rows = SOLVERS[method].rows_per_step
    return [*after[rows - 1 : -1 : rows], after[-1]]


def noise_at_T(n=400):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def solve(method, count, x):
    return few_steps.solve(method, MIXTURE, SCHEDULE, count, x)


def ddim(count, x):
    return solve("ddim", count, x)


@pytest.fixture(scope="module")
def all_steps():
    """The result of 500 steps, and how far two methods differ in it."""
    x = solve("heun", 500, noise_at_T())
    return x, distance(x, ddim(500, noise_at_T()))


def distance(x, y):
    return (x - y).norm(dim=1).mean().item()


DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.stochastic]
OTHERS = [
    Schedule(500, "flow"),
    Schedule(500, "edm"),
    Schedule(500, "cosine", prediction="v"),
    Schedule(500, prediction="x0", zero_terminal_snr=True),
]
SECOND_ORDER = [name for name in DETERMINISTIC if SOLVERS[name].order == 2]


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_the_error_falls_with_the_order_of_the_solver(method, all_steps):
    exact, _ = all_steps
    errors = [distance(solve(method, count, noise_at_T()), exact) for count in (10, 20, 50)]
    assert errors[0] < 0.1  # the components' smallest standard deviation is 0.1
    least = 0.8 * 2 ** SOLVERS[method].order  # of the fall from 10 to 20 steps
    assert errors[1] < errors[0] / min(least, 3)
    assert errors[2] < errors[1] / min(least, 3)


@pytest.mark.parametrize("schedule", OTHERS, ids=lambda schedule: schedule.name)
def test_the_order_is_the_same_for_other_schedules_and_predictions(schedule):
    exact = few_steps.solve("heun", MIXTURE, schedule, 400, noise_at_T())
    for method in DETERMINISTIC:
        many, few = (
            distance(few_steps.solve(method, MIXTURE, schedule, count, noise_at_T()), exact)
            for count in (50, 10)
        )
        assert many < few / (0.7 * 5 ** SOLVERS[method].order)


@pytest.mark.parametrize("method", SECOND_ORDER)
def test_few_steps_come_near_the_result_of_500(method, all_steps):
    exact, between_methods = all_steps
    assert between_methods < 0.002
    assert distance(solve(method, 10, noise_at_T()), exact) < 0.06
    assert distance(solve(method, 50, noise_at_T()), exact) < between_methods


@pytest.mark.parametrize("method", SECOND_ORDER)
def test_twenty_steps_are_as_good_as_500_where_20_of_ddim_are_not(method):
    x_T, data = noise_at_T(2000), MIXTURE.draw(2000, 1)
    best = sliced_wasserstein(solve("heun", 100, x_T), data)
    assert sliced_wasserstein(solve(method, 20, x_T), data) == pytest.approx(best, rel=0.02)
    assert sliced_wasserstein(ddim(20, x_T), data) > 1.1 * best


def test_the_figure_of_quality_against_steps():
    found = few_steps.step_errors(few_steps.eight_gaussians(), Schedule(100), (5, 20), n=50)
    assert list(found.evaluations) == ["ddim", *DETERMINISTIC]
    assert found.evaluations["ddim"] == found.evaluations["dpm++2m"] == [5, 20]
    assert found.evaluations["heun"] == [9, 39]
    assert all(0 < fine < coarse / 3 for coarse, fine in found.errors.values())
    assert found.errors["heun"][1] < found.errors["ddim"][1] / 2
    curves = {name: (found.evaluations[name], found.errors[name]) for name in found.errors}
    lines = plots.against_evaluations({"error": curves}).axes[0].lines
    assert [line.get_label() for line in lines] == list(found.errors)
    heun = lines[list(curves).index("heun")]
    assert heun.get_xydata().tolist() == [*map(list, zip(*curves["heun"], strict=True))]


@pytest.mark.parametrize("count", [1, 2, 10, 50])
def test_dpm_solver_is_that_of_diffusers(count):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=500, algorithm_type="dpmsolver++", solver_order=2
    )
    steps = solver_timesteps(SCHEDULE, count)
    scheduler.set_timesteps(timesteps=steps.tolist())
    want = noise_at_T()
    found = ends_of_steps("dpm++2m", SCHEDULE, steps, exact_noise, want)
    for t, x in zip(steps, found, strict=True):
        want = scheduler.step(exact_noise(want, t), t, want).prev_sample
        torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-4)  # theirs has float32 sigmas


def test_heun_is_that_of_diffusers():
    """Theirs in the variables of Karras et al., so without alpha, and from sigma to sigma."""
    scheduler = diffusers.HeunDiscreteScheduler(
        num_train_timesteps=500, beta_start=1e-4, beta_end=0.02, timestep_spacing="linspace"
    )
    scheduler.set_timesteps(25)
    steps = scheduler.timesteps[[0, *range(1, 49, 2)]].round().long()
    alpha_bar = SCHEDULE.alpha_bar[steps]
    sigma = torch.cat((((1 - alpha_bar) / alpha_bar).sqrt(), torch.zeros(1)))
    scheduler.sigmas = torch.cat((sigma[:1], sigma[1:-1].repeat_interleave(2), sigma[-1:]))
    x = noise_at_T(50)
    y = x / alpha_bar[0].sqrt()
    visited = [0, *(i for i in range(1, 25) for _ in range(2))]
    for t, i in zip(scheduler.timesteps, visited, strict=True):
        y = scheduler.step(exact_noise(y * alpha_bar[i].sqrt(), steps[i]), t, y).prev_sample
    *_, x = ends_of_steps("heun", SCHEDULE, steps, exact_noise, x)
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "first"), [("linear", 49), ("cosine", 46)])
@pytest.mark.parametrize("count", [1, 2, 10, 47, 50, None])
def test_timesteps_are_distinct_from_the_noisiest_down(name, first, count):
    steps = solver_timesteps(Schedule(50, name), count)
    assert len(steps) == min(count or 50, first + 1)
    assert steps[0] == (first if name == "linear" or len(steps) >= 10 else 45)
    assert (steps.diff() < 0).all()
    assert count == 1 or steps[-1] == 0


def test_timesteps_have_the_noise_asked_for():
    steps = solver_timesteps(SCHEDULE, 10)
    root = ((1 - SCHEDULE.alpha_bar) / SCHEDULE.alpha_bar)[steps] ** (0.5 / 7)
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(9), rtol=0.2, atol=0)


def model(outputs=2):
    torch.manual_seed(0)
    return MLP(3, outputs, [8])


@pytest.mark.parametrize("method", DETERMINISTIC)
@pytest.mark.parametrize("guided", [False, True])
def test_sampling_with_a_network(method, guided):
    """:func:`sample` against the solver around the network's own forward pass."""
    denoiser, classifier = model(), model(5)
    schedule = Schedule(60)
    options = {"classifier": classifier, "label": 3, "scale": 2.0} if guided else {}
    x_T = torch.randn(9, 2)
    arguments = {"method": method, "num_steps": 6, "x_T": x_T, "device": "cpu"}
    got = sample(denoiser, schedule, 9, keep_every=4, batch_size=5, **arguments, **options)
    steps = solver_timesteps(schedule, 6)

    def noise(x, t):
        feature = schedule.time_features[t].float().expand(len(x), 1)
        inputs = torch.cat((x, feature), dim=1).requires_grad_()
        eps = denoiser(inputs)
        if guided:
            log_p = classifier(inputs).log_softmax(dim=1)[:, 3].sum()
            grad = torch.autograd.grad(log_p, inputs)[0][:, :2]
            eps = eps - 2.0 * (1 - schedule.alpha_bar[t]).sqrt().float() * grad
        return eps.detach()

    want = [x_T, *ends_of_steps(method, schedule, steps, noise, x_T)]
    torch.testing.assert_close(got.x, want[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        got.trajectory, torch.stack([want[0], want[4], want[6]]), rtol=1e-4, atol=1e-4
    )
    again = sample(denoiser, schedule, 9, seed=7, **arguments, **options).x
    torch.testing.assert_close(again, got.x)  # no noise but x_T


@pytest.mark.parametrize("method", SOLVERS)
def test_all_steps_of_many_models_are_one_chain(method, monkeypatch):
    """Shorter chains rest at their end, whatever timesteps the others visit."""
    calls, run = [], sampling.sample_chain
    monkeypatch.setattr(sampling, "sample_chain", lambda *a, **k: calls.append(1) or run(*a, **k))
    monkeypatch.setattr(sampling, "_resting_is_cheap", lambda _: True)  # as on a GPU
    configs = [
        SampleConfig(model(), Schedule(60), method=method, num_steps=6, seed=1),
        SampleConfig(model(), Schedule(50, "cosine"), method=method, num_steps=9, seed=2),
    ]
    together = sample_many(configs, 7, keep_every=2, device="cpu")
    assert len(calls) == 1
    for config, got in zip(configs, together, strict=True):
        options = {"method": method, "num_steps": config.num_steps, "seed": config.seed}
        alone = sample(config.model, config.schedule, 7, keep_every=2, device="cpu", **options)
        torch.testing.assert_close(got.x, alone.x)
        torch.testing.assert_close(got.trajectory, alone.trajectory)


def test_a_wrong_number_of_steps_is_named():
    with pytest.raises(UserError, match="num_steps must be from 1 to 500, got 501"):
        sample(model(), SCHEDULE, 2, method="heun", num_steps=501, device="cpu")
