"""Schedulers that are solvers, step by step against those of diffusers, over their settings."""

import inspect
import random
from itertools import product

import diffusers
import pytest
import torch

from flashpoint import diffusion as fd
from flashpoint.diffusion import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    Schedule,
    UserError,
)

pytestmark = pytest.mark.filterwarnings("ignore:timestep", "ignore:get_velocity")

SOLVERS = (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
EACH = pytest.mark.parametrize("ours", SOLVERS)
GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
COMMON = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "steps_offset": (0, 1),
    "num_train_timesteps": (100, 333, 1000),
}
THRESHOLDS = {
    "thresholding": (False, True),
    "dynamic_thresholding_ratio": (0.995, 0.6),
    "sample_max_value": (1.0, 2.0, 0.5),
}
SETTINGS = {
    EulerDiscreteScheduler: COMMON
    | {
        "interpolation_type": ("linear", "log_linear"),
        "sigma_min": (None, 0.02),
        "sigma_max": (None, 30.0),
        "timestep_type": ("discrete", "continuous"),
        "final_sigmas_type": ("zero", "sigma_min"),
        "rescale_betas_zero_snr": (False, True),
    },
    HeunDiscreteScheduler: COMMON
    | {
        "beta_schedule": ("linear", "squaredcos_cap_v2", "exp"),
        "clip_sample": (False, True),
        "clip_sample_range": (1.0, 0.7),
    },
    DPMSolverMultistepScheduler: COMMON
    | THRESHOLDS
    | {
        "solver_order": (1, 2, 3),
        "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
        "solver_type": ("midpoint", "heun"),
        "lower_order_final": (True, False),
        "euler_at_final": (False, True),
        "final_sigmas_type": ("zero", "sigma_min"),
        "lambda_min_clipped": (-float("inf"), -3.0),
    },
    FlowMatchEulerDiscreteScheduler: {
        "num_train_timesteps": (100, 1000),
        "shift": (1.0, 3.0),
        "use_dynamic_shifting": (False, True),
        "shift_terminal": (None, 0.1),
        "invert_sigmas": (False, True),
        "time_shift_type": ("exponential", "linear"),
        "stochastic_sampling": (False, True),
    },
}


def both(ours, **settings):
    return ours(**settings), getattr(diffusers, ours.__name__)(**settings)


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def drawn(ours, seed):
    """Settings at random, and the arguments of set_timesteps, that both packages take."""
    chance = random.Random(seed)
    settings = {name: chance.choice(values) for name, values in SETTINGS[ours].items()}
    if chance.random() < 0.5:
        settings[chance.choice(GRIDS)] = True
    algorithm = settings.get("algorithm_type", "")
    if algorithm and not algorithm.endswith("++"):
        settings["final_sigmas_type"] = "sigma_min"
    if algorithm.startswith("sde") or settings.get("final_sigmas_type") == "sigma_min":
        settings |= {"solver_order": min(settings["solver_order"], 2)} if algorithm else {}
        settings |= {"solver_type": "midpoint"} if algorithm else {}
    chain = {"num_inference_steps": chance.choice((2, 3, 7, 20))}
    if settings.get("use_dynamic_shifting"):
        chain["mu"] = 0.7
    return settings, chain


def assert_near(got, want, scale, close):
    assert got.dtype == want.dtype
    assert (got - want).abs().max() <= close * max(1, want.abs().max(), scale)


def assert_chains_agree(pair, chain, dtype=torch.float32, close=1e-6, begin=True, **options):
    """All steps, each from diffusers' own sample, with an output that is not linear in it."""
    for scheduler in pair:
        scheduler.set_timesteps(**chain)
        if begin:
            scheduler.set_begin_index(0)
    ours, theirs = pair
    assert ours.timesteps.dtype == theirs.timesteps.dtype
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert ours.num_inference_steps == theirs.num_inference_steps
    x = torch.randn(5, 3, 2, generator=seeded(0), dtype=dtype)
    if hasattr(theirs, "init_noise_sigma"):
        assert ours.init_noise_sigma == theirs.init_noise_sigma
        x = x * theirs.init_noise_sigma
    draws = "generator" in inspect.signature(theirs.step).parameters
    for place, t in enumerate(theirs.timesteps):
        seen = [x, x]
        if hasattr(theirs, "scale_model_input"):
            seen = [each.scale_model_input(x, t) for each in pair]
            assert_near(*seen, 1, close)
        output = (2 * seen[1] + t / 100).sin().to(dtype)
        got, want = (
            each.step(output, t, x, **({"generator": seeded(place)} if draws else {}), **options)
            for each in pair
        )
        for name in want.keys():  # noqa: SIM118
            assert_near(got[name], want[name], float(x.abs().max()), close)
        assert ours.step_index == theirs.step_index == place + 1
        x = want.prev_sample


@EACH
@pytest.mark.parametrize("seed", range(25))
def test_settings_at_random_and_in_odd_pairs(ours, seed):
    settings, chain = drawn(ours, seed)
    assert_chains_agree(both(ours, **settings), chain)


@EACH
@pytest.mark.parametrize("seed", range(100, 104))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_samples(ours, seed, dtype):
    settings, chain = drawn(ours, seed)
    close = 1e-6 if dtype == torch.float64 else 0.03
    assert_chains_agree(both(ours, **settings), chain, dtype, close)


@EACH
@pytest.mark.parametrize("grid", [None, *GRIDS])
def test_every_grid_of_noise_levels(ours, grid):
    settings = {} if grid is None else {grid: True}
    assert_chains_agree(both(ours, **settings), {"num_inference_steps": 15})


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", SETTINGS[DPMSolverMultistepScheduler]["algorithm_type"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_order_of_dpm_solver(order, algorithm, solver_type):
    settings = {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver_type}
    settings |= {"final_sigmas_type": "sigma_min"}
    if order == 3 and algorithm.startswith("sde"):
        with pytest.raises(UserError, match="solver_order must be 1 or 2 with algorithm_type='sde"):
            DPMSolverMultistepScheduler(**settings)
        return
    for lower, count in product([False, True], [5, 20]):
        pair = both(DPMSolverMultistepScheduler, **settings, lower_order_final=lower)
        assert_chains_agree(pair, {"num_inference_steps": count})


@pytest.mark.parametrize(
    "settings",
    [
        {"use_lu_lambdas": True},
        {"use_lu_lambdas": True, "beta_schedule": "squaredcos_cap_v2"},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        {"use_flow_sigmas": True, "use_dynamic_shifting": True},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"algorithm_type": "deis", "solver_type": "logrho", "final_sigmas_type": "sigma_min"},
    ],
)
def test_other_settings_of_dpm_solver(settings):
    pair = both(DPMSolverMultistepScheduler, **settings)
    mu = {"mu": 0.5} if "use_dynamic_shifting" in settings else {}
    assert_chains_agree(pair, {"num_inference_steps": 10, **mu})
    assert_chains_agree(pair, {"num_inference_steps": 10})  # a second chain, with the same shift


def test_dpm_solver_takes_the_noise_itself_and_leaves_a_learned_variance_out():
    options = {"algorithm_type": "sde-dpmsolver++", "variance_type": "learned_range"}
    pair = both(DPMSolverMultistepScheduler, **options)
    x, output, z = torch.randn(3, 5, 3, 2, generator=seeded())
    for outputs in (output, torch.cat((output, z), dim=1)):
        for scheduler in pair:
            scheduler.set_timesteps(5)
        t = pair[0].timesteps[0]
        got, want = (s.step(outputs, t, x, variance_noise=z).prev_sample for s in pair)
        torch.testing.assert_close(got, want)


def test_a_step_of_no_length_changes_nothing():
    """Karras' noise levels end at that of timestep 0, where the last step stays: 0 / 0 for Heun."""
    scheduler = DPMSolverMultistepScheduler(
        use_karras_sigmas=True, final_sigmas_type="sigma_min", solver_type="heun"
    )
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(0)
    x = torch.randn(5, 2, generator=seeded())
    for t in scheduler.timesteps:
        before, x = x, scheduler.step(x.sin(), t, x).prev_sample
    assert torch.equal(x, before)


@pytest.mark.parametrize("s_churn", [1.0, 40.0])
@pytest.mark.parametrize("prediction", COMMON["prediction_type"])
def test_euler_with_churn(s_churn, prediction):
    pair = both(EulerDiscreteScheduler, prediction_type=prediction)
    options = {"s_churn": s_churn, "s_tmin": 0.1, "s_tmax": 20.0, "s_noise": 1.1}
    assert_chains_agree(pair, {"num_inference_steps": 20}, **options)


@EACH
def test_timesteps_and_noise_levels_of_ones_own(ours):
    own = [900, 700, 333, 20]
    assert_chains_agree(both(ours), {"timesteps": own})
    if ours in (EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler):
        levels = [14.0, 3.0, 0.5, 0.1, 0.0] if ours is EulerDiscreteScheduler else [0.9, 0.4, 0.1]
        assert_chains_agree(both(ours), {"sigmas": levels})
        assert_chains_agree(both(ours), {"sigmas": torch.tensor(levels)})
    if ours is FlowMatchEulerDiscreteScheduler:
        chain = {"sigmas": [0.9, 0.4, 0.1], "timesteps": [800.0, 500.0, 1.0]}
        assert_chains_agree(both(ours, shift=2.0), chain | {"num_inference_steps": 3})


@EACH
def test_a_chain_that_begins_in_the_middle(ours):
    pair = both(ours)
    for scheduler in pair:
        scheduler.set_timesteps(10)
    x, output = torch.randn(2, 5, 3, 2, generator=seeded())
    t = pair[0].timesteps[7]
    assert pair[0].index_for_timestep(t) == pair[1].index_for_timestep(t)
    for scheduler in pair:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
    for _ in range(2):
        got, want = (s.step(output, t, x).prev_sample for s in pair)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert pair[0].step_index == pair[1].step_index


@EACH
def test_noise_is_added_as_in_diffusers(ours):
    pair = both(ours)
    x, eps = torch.randn(2, 5, 3, 2, generator=seeded(), dtype=torch.float64)
    for scheduler in pair:
        scheduler.set_timesteps(10)
    t = pair[0].timesteps[[0, 3, 5, 6, 8]]

    def noised(scheduler, t):
        if ours is FlowMatchEulerDiscreteScheduler:
            return scheduler.scale_noise(x, t, eps)
        return scheduler.add_noise(x, eps, t)

    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(*(noised(s, t) for s in pair), **close)
    torch.testing.assert_close(*(noised(s, t[:1]) for s in pair), **close)
    torch.testing.assert_close(noised(pair[0], float(t[0])), noised(pair[0], t[:1]))
    for scheduler in pair:  # as pipelines say where they begin
        scheduler.set_begin_index(4)
    torch.testing.assert_close(*(noised(s, t) for s in pair), **close)
    with pytest.raises(UserError, match="timestep must be one of the scheduler's timesteps, got"):
        noised(ours(), 0.123)
    with pytest.raises(UserError, match=r"timesteps must be one of .* or one for each of 5 rows"):
        noised(pair[0], t[:2])


def test_the_velocity_of_euler_is_that_of_diffusers_and_told_to_be_wrong():
    pair = both(EulerDiscreteScheduler)
    x, eps = torch.randn(2, 5, 3, generator=seeded())
    with pytest.warns(UserWarning, match="takes alpha_bar of another timestep, as in diffusers"):
        got = pair[0].get_velocity(x, eps, pair[0].timesteps[:5])
    torch.testing.assert_close(got, pair[1].get_velocity(x, eps, pair[1].timesteps[:5]))


def test_flow_shifts_as_in_diffusers():
    pair = both(FlowMatchEulerDiscreteScheduler, shift=2.0, shift_terminal=0.2)
    t = torch.tensor([0.9, 0.5, 0.1])
    torch.testing.assert_close(*(s.stretch_shift_to_terminal(t) for s in pair))
    torch.testing.assert_close(*(s.time_shift(0.3, 1.5, t) for s in pair))
    for scheduler in pair:
        scheduler.set_shift(5.0)
    assert pair[0].shift == pair[1].shift == 5.0
    assert_chains_agree(pair, {"num_inference_steps": 6})
    with pytest.raises(UserError, match="sigmas must end below 1 to be stretched"):
        pair[0].set_timesteps(1)


@EACH
def test_arguments_have_the_order_and_the_defaults_of_diffusers(ours):
    theirs = getattr(diffusers, ours.__name__)
    given, want = (inspect.signature(c.__init__).parameters for c in (ours, theirs))
    assert list(given) == list(want)
    assert [p.default for p in given.values()] == [p.default for p in want.values()]
    assert ours.order == theirs.order
    for method in ("step", "set_timesteps", "set_begin_index", "index_for_timestep"):
        names = [[*inspect.signature(getattr(c, method)).parameters] for c in (ours, theirs)]
        assert names[0] == names[1], method
    assert len(ours(num_train_timesteps=77)) == 77


@EACH
def test_a_chain_before_set_timesteps(ours):
    pair = both(ours, num_train_timesteps=20)
    assert torch.equal(pair[0].timesteps, pair[1].timesteps)
    assert torch.equal(pair[0].sigmas, pair[1].sigmas)
    x, output = torch.randn(2, 5, 3, generator=seeded())
    if ours is DPMSolverMultistepScheduler:
        with pytest.raises(UserError, match="call set_timesteps before step"):
            pair[0].step(output, 3, x)
        return
    t = pair[0].timesteps[3]
    if ours is not FlowMatchEulerDiscreteScheduler:
        for scheduler in pair:
            scheduler.scale_model_input(x, t)
    torch.testing.assert_close(*(s.step(output, t, x).prev_sample for s in pair))


@EACH
def test_a_gpu_is_not_waited_for(ours, monkeypatch):
    scheduler = ours()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(0)
    x = torch.zeros(4, 2, device="meta")  # in place of a GPU

    def read(*_, **__):
        pytest.fail("the device was waited for")

    for t in scheduler.timesteps.to("meta"):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        with monkeypatch.context() as patch:
            for name in ("tolist", "item", "__bool__", "__float__", "__int__"):
                real = getattr(torch.Tensor, name)
                patch.setattr(
                    torch.Tensor,
                    name,
                    lambda self, *a, real=real: read() if self.is_meta else real(self, *a),
                )
            assert scheduler.step(x, t, x).prev_sample.is_meta


def test_from_schedule():
    schedule = Schedule(50, "cosine", prediction="v", zero_terminal_snr=True)
    for ours in (EulerDiscreteScheduler, DPMSolverMultistepScheduler, fd.DDIMScheduler):
        config = ours.from_schedule(schedule).config
        assert config.prediction_type == "v_prediction"
        assert config.rescale_betas_zero_snr
    with pytest.raises(UserError, match="rescale_betas_zero_snr must be False for Heun"):
        HeunDiscreteScheduler.from_schedule(schedule)
    flow = FlowMatchEulerDiscreteScheduler.from_schedule(Schedule(50, "flow"))
    flow.set_timesteps(50)
    torch.testing.assert_close(flow.sigmas[:-1].flip(0).double(), Schedule(50, "flow").noise)
    with pytest.raises(UserError, match=r"schedule must be flow, .* got linear and eps"):
        FlowMatchEulerDiscreteScheduler.from_schedule(Schedule(500))
    with pytest.raises(UserError, match=r"variance-preserving.* got flow and flow"):
        HeunDiscreteScheduler.from_schedule(Schedule(50, "flow"))
