"""Settings of scheduler objects against diffusers: bounds, betas, and changes of class."""

import inspect
import json
import warnings
from itertools import permutations, product

import diffusers
import pytest
import torch

from flashpoint import diffusion as fd
from flashpoint.diffusion import DDIMScheduler, DDPMScheduler, UserError
from flashpoint.diffusion.errors import ScheduleWarning

pytestmark = pytest.mark.filterwarnings("ignore:timestep_spacing=", "ignore:.*without sigmas")

CLOSE = {"rtol": 1e-6, "atol": 1e-9}
BOTH = pytest.mark.parametrize("ours", [DDPMScheduler, DDIMScheduler])
VARIANCE_PRESERVING = (
    "DDPMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
)
FLOW = "FlowMatchEulerDiscreteScheduler"
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def both(ours, **settings):
    settings = {"clip_sample": False, **settings}
    return ours(**settings), getattr(diffusers, ours.__name__)(**settings)


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def assert_chains_agree(ours, theirs, count, close=CLOSE, dtype=torch.float64, **options):
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(count)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    x = torch.randn(7, 3, 2, generator=seeded(0), dtype=dtype)
    for t in theirs.timesteps:
        output = (2 * x + t / 100).sin()
        got, want = (s.step(output, t, x, generator=seeded(), **options) for s in (ours, theirs))
        for name in ("prev_sample", "pred_original_sample"):
            torch.testing.assert_close(got[name], want[name], **close)
        x = want.prev_sample


@BOTH
@pytest.mark.parametrize(("ratio", "most"), [(0.995, 1.0), (0.6, 2.0), (0.9, 0.5), (0.0, 1.5)])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_thresholding(ours, ratio, most, prediction):
    options = {"dynamic_thresholding_ratio": ratio, "sample_max_value": most}
    pair = both(ours, thresholding=True, prediction_type=prediction, clip_sample=True, **options)
    assert_chains_agree(*pair, 20)


@BOTH
def test_thresholding_takes_points_and_half_precision(ours):
    scheduler = ours(thresholding=True, prediction_type="sample", sample_max_value=3.0)
    scheduler.set_timesteps(10)
    x_0 = torch.tensor([[4.0, 1.0], [0.5, -0.2], [-2.0, 2.0]])
    for dtype in (torch.float32, torch.float16):
        got = scheduler.step(x_0.to(dtype), 500, x_0.to(dtype)).pred_original_sample
        # The quantile 0.995 of two values, at least 1 and at most 3.
        bound = torch.tensor([[3.0], [1.0], [2.0]])
        want = (x_0.clamp(-bound, bound) / bound).to(dtype)
        torch.testing.assert_close(got, want)
    assert scheduler.step(x_0[:0], 500, x_0[:0]).prev_sample.shape == (0, 2)


@BOTH
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_zero_terminal_snr(ours, prediction, spacing):
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": spacing}
    options |= {"num_train_timesteps": 200, "beta_end": 0.1}
    pair = both(ours, prediction_type=prediction, **options)
    for name in ("betas", "alphas", "alphas_cumprod"):
        assert torch.equal(getattr(pair[0], name), getattr(pair[1], name))
    assert pair[0].alphas_cumprod[-1] == 0
    for count in (10, 200):
        assert_chains_agree(*pair, count)


@BOTH
def test_epsilon_cannot_step_from_where_no_data_is_left(ours):
    scheduler = ours(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x = torch.randn(5, 3, generator=seeded())
    with pytest.raises(UserError, match="must be sample or v_prediction at timestep 999, where"):
        scheduler.step(x, 999, x)
    assert scheduler.step(x, 899, x).prev_sample.isfinite().all()


@pytest.mark.parametrize("name", [*VARIANCE_PRESERVING])
def test_betas_of_any_number(name):
    betas = [0.01, 0.1, 0.3, 0.2, 0.4]
    settings = {"num_train_timesteps": 5, "trained_betas": betas}
    ours, theirs = (getattr(package, name)(**settings) for package in (fd, diffusers))
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    fewer = getattr(fd, name)(trained_betas=betas)
    assert len(fewer) == 1000
    assert torch.equal(fewer.betas, theirs.betas)


@BOTH
def test_timesteps_beyond_the_betas_are_refused(ours):
    scheduler = ours(trained_betas=[0.01, 0.1, 0.3])
    x = torch.randn(5, 3, generator=seeded())
    scheduler.set_timesteps(1000)
    assert scheduler.step(x, 2, x).prev_sample.isfinite().all()
    with pytest.raises(UserError, match="timestep must be an integer from 0 to 2, got 3"):
        scheduler.step(x, 3, x)
    with pytest.raises(UserError, match=r"timesteps must be one integer from 0 to 2"):
        scheduler.add_noise(x, x, 3)


@BOTH
@pytest.mark.parametrize("end", [0.5, 1.5])
def test_timesteps_where_betas_leave_nothing_are_told_and_refused(ours, end):
    left = getattr(diffusers, ours.__name__)(beta_end=end).alphas_cumprod
    with pytest.warns(ScheduleWarning, match="got 0 from timestep ([0-9]+) of 1000 on") as told:
        scheduler = ours(beta_end=end)
    assert told[0].filename == __file__
    last = int(str(told[0].message).split("timestep ")[1].split()[0]) - 1
    assert left[: last + 1].min() > 0 >= left[last + 1]
    x = torch.randn(5, 3, generator=seeded())
    scheduler.set_timesteps(1000)
    assert scheduler.step(x, last, x).prev_sample.isfinite().all()
    with pytest.raises(UserError, match=f"timestep must be an integer from 0 to {last}, got 999"):
        scheduler.step(x, 999, x)
    for solver in VARIANCE_PRESERVING[2:]:
        with pytest.raises(UserError, match="betas must leave alpha_bar above 0 in float32, got 0"):
            getattr(fd, solver)(beta_end=end)


@BOTH
@pytest.mark.parametrize("schedule", ["laplace", "exp"])
def test_further_curves_of_beta(ours, schedule):
    theirs = {"laplace": diffusers.DDPMScheduler, "exp": diffusers.HeunDiscreteScheduler}[schedule]
    want = theirs(beta_schedule=schedule).betas
    assert torch.equal(ours(beta_schedule=schedule).betas, want)


def test_the_previous_timestep_is_a_tensor():
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(timesteps=[900, 500, 20])
    found = [scheduler.previous_timestep(t) for t in (900, torch.tensor(500), 20)]
    assert [each.item() for each in found] == [500, 20, -1]
    assert all(each.dtype == torch.int64 for each in found)


def test_outputs_are_read_as_dicts():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    x = torch.randn(5, 3, generator=seeded())
    output = scheduler.step(x, 500, x)
    assert [*output.keys()] == ["prev_sample", "pred_original_sample"]
    assert all(a is b for a, b in zip(output.values(), output, strict=True))
    assert dict(output.items())["prev_sample"] is output["prev_sample"]


@pytest.mark.parametrize(("source", "target"), permutations(VARIANCE_PRESERVING, 2))
@pytest.mark.parametrize("source_package", [fd, diffusers])
def test_settings_that_were_left_out_take_the_defaults_of_the_new_class(
    source, target, source_package
):
    given = {"beta_start": 2e-4, "num_train_timesteps": 300}
    for extra in ({}, {"timestep_spacing": "trailing", "steps_offset": 2}):
        config = getattr(source_package, source)(**given, **extra).config
        theirs = getattr(diffusers, target).from_config(
            getattr(diffusers, source)(**given, **extra).config
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of clip_sample, which diffusers sets by default
            ours = getattr(fd, target).from_config(config)
        for name in set(inspect.signature(type(theirs).__init__).parameters) - {"self"}:
            if name != "clip_sample":
                assert ours.config[name] == theirs.config[name], name


@pytest.mark.parametrize(("first", "second"), permutations(VARIANCE_PRESERVING, 2))
def test_a_class_is_changed_and_changed_back(first, second):
    special = {
        "DDPMScheduler": {"variance_type": "fixed_large"},
        "DDIMScheduler": {"set_alpha_to_one": False},
        "DPMSolverMultistepScheduler": {"solver_order": 3},
        "EulerDiscreteScheduler": {"interpolation_type": "log_linear"},
        "HeunDiscreteScheduler": {"use_karras_sigmas": True},
    }
    before = getattr(fd, first)(beta_end=0.03, **special[first])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        middle = getattr(fd, second).from_config(before.config)
        after = getattr(fd, first).from_config(middle.config)
    assert {k: after.config[k] for k in before.config} == dict(before.config)
    assert type(after) in middle.compatibles


def test_clipping_that_diffusers_sets_by_default_is_kept():
    assert DDIMScheduler.from_config(diffusers.DDPMScheduler().config).clip_sample is True
    assert diffusers.DDIMScheduler.from_config(DDPMScheduler().config).config.clip_sample is False
    assert (
        fd.HeunDiscreteScheduler.from_config(diffusers.DDPMScheduler().config).clip_sample is False
    )


@pytest.mark.parametrize("name", [*VARIANCE_PRESERVING, FLOW])
def test_files_are_read_by_either_package(name, tmp_path):
    ours, theirs = (getattr(p, name)(num_train_timesteps=77) for p in (fd, diffusers))
    ours.save_config(tmp_path / "ours")
    theirs.save_config(tmp_path / "theirs")
    saved = json.loads((tmp_path / "ours" / "scheduler_config.json").read_text())
    assert saved["_class_name"] == name
    assert "_use_default_values" not in saved
    read = type(theirs).from_pretrained(tmp_path / "ours").config
    again = type(ours).from_pretrained(tmp_path / "theirs")
    for key, value in theirs.config.items():
        if not key.startswith("_") and key != "clip_sample":
            assert read[key] == again.config[key] == value, key
    assert type(ours).from_pretrained(tmp_path / "ours").config == ours.config


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("DPMSolverMultistep", {"algorithm_type": "dpm++"}, "algorithm_type must be one of dpmso"),
        ("DPMSolverMultistep", {"algorithm_type": "dpmsolver"}, "must be sigma_min with algorithm"),
        ("DPMSolverMultistep", {"solver_order": 4}, "solver_order must be an integer from 1 to 3"),
        ("DPMSolverMultistep", {"use_karras_sigmas": True, "use_lu_lambdas": True}, "False with"),
        ("DPMSolverMultistep", {"lambda_min_clipped": "x"}, "lambda_min_clipped must be a finite"),
        ("DPMSolverMultistep", {"time_shift_type": "linear"}, "one of exponential, got 'linear'"),
        ("DPMSolverMultistep", {"variance_type": "lerned"}, "or None, got 'lerned'; did you mean"),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min",
                                "prediction_type": "flow_prediction"}, "with flow_prediction"),
        ("EulerDiscrete", {"prediction_type": "flow_prediction"}, "prediction_type must be one of"),
        ("EulerDiscrete", {"sigma_min": 0}, "sigma_min must be a finite number of at least"),
        ("EulerDiscrete", {"final_sigmas_type": "none"}, "final_sigmas_type must be one of zero"),
        ("EulerDiscrete", {"timestep_type": "steps"}, "timestep_type must be one of discrete"),
        ("EulerDiscrete", {"use_karras_sigma": True}, "did you mean 'use_karras_sigmas'"),
        ("HeunDiscrete", {"use_beta_sigmas": 1}, "use_beta_sigmas must be True or False, got 1"),
        ("HeunDiscrete", {"sigma_min": 0.1}, "sigma_min must be None for HeunDiscreteScheduler"),
        ("FlowMatchEulerDiscrete", {"shift": 0}, "shift must be a finite number of at least"),
        ("FlowMatchEulerDiscrete", {"shift_terminal": 1}, "shift_terminal must be a finite number"),
        ("FlowMatchEulerDiscrete", {"beta_start": 0.1}, "beta_start is no setting of FlowMatchEul"),
        ("FlowMatchEulerDiscrete", {"_class_name": "DDIMScheduler"}, "whose process is not that"),
        ("EulerDiscrete", {"_class_name": FLOW}, "whose process is not that of EulerDiscrete"),
    ],
)  # fmt: skip
def test_a_wrong_setting_of_a_solver_is_one_line(name, settings, message):
    with pytest.raises(UserError, match=message) as error:
        getattr(fd, f"{name}Scheduler").from_config(settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*VARIANCE_PRESERVING[2:], FLOW])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "must be given, got none"),
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be an integer"),
        ({"num_inference_steps": 3, "timesteps": [5, 4]}, "must be given, got|must agree, got 3"),
        ({"timesteps": [20, 500]}, "timesteps must descend, got"),
        ({"timesteps": [5000, 3]}, "timesteps must be .*from 0 to 999|sigmas must be above 0 and"),
        ({"timesteps": "a"}, "timesteps must be"),
        ({"timesteps": []}, "timesteps must be"),
        ({"num_inference_steps": 3, "device": "tpu"}, "device must be one that this machine has"),
    ],
)
def test_a_wrong_chain_of_a_solver_is_one_line(name, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        getattr(fd, name)().set_timesteps(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*VARIANCE_PRESERVING[2:], FLOW])
def test_a_wrong_step_of_a_solver_is_one_line(name):
    x = torch.randn(5, 3, generator=seeded())
    calls = [
        ({"model_output": x[:2]}, r"model_output must have the shape of sample, \[5, 3\]"),
        ({"model_output": x / 0}, "model_output must be finite, got NaN or infinity"),
        ({"sample": x.long()}, "sample must be a float tensor"),
        ({"timestep": 123.5}, "timestep must be one of the scheduler's timesteps, got 123.5"),
    ]
    if name in ("EulerDiscreteScheduler", FLOW):
        calls.append(({"timestep": 999}, "timestep must be one of scheduler.timesteps, which are"))
        calls.append(({"generator": 3}, "generator must be a torch.Generator"))
    if name == "EulerDiscreteScheduler":
        calls.append(({"s_churn": -1}, "s_churn must be a finite number of at least 0, got -1"))
    if name == FLOW:
        calls.append(({"s_churn": 1.0}, "have no effect on flow matching: leave them out"))
        calls.append(({"per_token_timesteps": x}, "per_token_timesteps must be None"))
    for change, message in calls:
        scheduler = getattr(fd, name)()
        scheduler.set_timesteps(4)
        given = {"model_output": x, "timestep": scheduler.timesteps[1], "sample": x} | change
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scale_model_input was not called
            with pytest.raises(UserError, match=message) as error:
                scheduler.step(**given)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*VARIANCE_PRESERVING[2:], FLOW])
def test_a_chain_that_has_ended_says_so(name):
    scheduler = getattr(fd, name)()
    scheduler.set_timesteps(3)
    x = torch.randn(5, 3, generator=seeded())
    for t in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        scheduler.step(x, t, x)
    with pytest.raises(UserError, match=r"one of a chain that has not ended, .* set_timesteps"):
        scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(UserError, match="begin_index must be an integer from 0 to"):
        scheduler.set_begin_index(9)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_a_step_whose_input_was_not_scaled_says_so(name):
    scheduler = getattr(fd, name)()
    scheduler.set_timesteps(3)
    x = torch.randn(5, 3, generator=seeded())
    with pytest.warns(UserWarning, match="scale_model_input was not called before step") as told:
        scheduler.step(x, scheduler.timesteps[0], x)
    assert told[0].filename == __file__


@BOTH
@pytest.mark.parametrize(("clip", "threshold"), product([False, True], repeat=2))
def test_bounds_of_float32(ours, clip, threshold):
    pair = both(ours, clip_sample=clip, thresholding=threshold, prediction_type="v_prediction")
    assert_chains_agree(*pair, 50, {"rtol": 1e-5, "atol": 1e-5}, torch.float32)
