"""What scheduler objects take and refuse: the ways in which scripts for diffusers call them."""

import copy
import inspect
import json
import pickle
import warnings

import diffusers
import numpy as np
import pytest
import torch

from flashpoint.diffusion import DDIMScheduler, DDPMScheduler, Schedule, UserError
from flashpoint.diffusion.compat import settings

CLOSE = {"rtol": 1e-6, "atol": 1e-9}
BOTH = pytest.mark.parametrize("ours", [DDPMScheduler, DDIMScheduler])


def theirs_of(ours):
    return getattr(diffusers, ours.__name__)


def draws(n=3, shape=(5, 3), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *shape, generator=generator, dtype=dtype)


def ready(scheduler, count=10):
    scheduler.set_timesteps(count)
    return scheduler


def one_line(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 400


@BOTH
def test_arguments_have_the_order_and_the_defaults_of_diffusers(ours):
    def arguments(scheduler):
        parameters = inspect.signature(scheduler.__init__).parameters.values()
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        return {p.name: p.default for p in parameters if p.kind not in kinds}

    want = arguments(theirs_of(ours)) | {"clip_sample": False}
    assert list(arguments(ours)) == list(want)
    assert arguments(ours) == want
    for method in ("step", "set_timesteps", "add_noise", "get_velocity", "scale_model_input"):
        names = [
            [*inspect.signature(getattr(c, method)).parameters] for c in (ours, theirs_of(ours))
        ]
        assert names[0] == names[1], method
    assert ours(500, 1e-3, 0.03).config.num_train_timesteps == 500


@BOTH
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, tuple, list])
def test_betas_of_every_kind_are_kept_and_saved(ours, kind, tmp_path):
    betas = [0.125, 0.25, 0.5]
    scheduler = ours(num_train_timesteps=3, trained_betas=kind(betas))
    assert scheduler.betas.tolist() == betas
    scheduler.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["trained_betas"] == betas
    assert ours.from_pretrained(tmp_path).config == scheduler.config
    assert torch.equal(theirs_of(ours).from_pretrained(tmp_path).betas, scheduler.betas)


@BOTH
def test_a_changed_config_is_refused_and_not_without_effect(ours):
    scheduler = ours()
    for change in (
        lambda: setattr(scheduler.config, "clip_sample", True),
        lambda: scheduler.config.__setitem__("clip_sample", True),
        lambda: scheduler.config.update(clip_sample=True),
        lambda: scheduler.config.update({"clip_sample": True}),
        lambda: scheduler.config.pop("clip_sample"),
        lambda: scheduler.config.clear(),
        lambda: scheduler.config.setdefault("clip_sample", True),
        lambda: setattr(scheduler, "beta_end", 0.5),
        lambda: setattr(scheduler, "clip_sample", True),
    ):
        with pytest.raises(UserError, match=r"cannot be changed in place; from_config\(") as error:
            change()
        assert one_line(error)
    assert scheduler.config == ours().config
    assert ours.from_config(scheduler.config, clip_sample=True).clip_sample is True


@BOTH
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_step_alike(ours, copied):
    scheduler = ready(ours(beta_end=0.03, trained_betas=None))
    x, eps, _ = draws()
    other = copied(scheduler)
    assert copied(scheduler.config) == other.config == scheduler.config
    got, want = (s.step(eps, 500, x, generator=seeded()) for s in (other, scheduler))
    assert torch.equal(got.prev_sample, want.prev_sample)


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


@BOTH
def test_a_pipelines_subfolder_is_read(ours, tmp_path):
    theirs_of(ours)(beta_end=0.03).save_pretrained(tmp_path / "scheduler")
    for arguments in (
        (tmp_path, "scheduler"),
        (tmp_path / "scheduler",),
        (str(tmp_path / "scheduler" / "scheduler_config.json"),),
    ):
        assert ours.from_pretrained(*arguments).config.beta_end == 0.03
    assert ours.from_pretrained(tmp_path, subfolder="scheduler", beta_end=0.04).beta_end == 0.04
    with pytest.raises(UserError, match="did you mean subfolder='scheduler'"):
        ours.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"nowhere/scheduler_config\.json cannot be read"):
        ours.from_pretrained(tmp_path, subfolder="nowhere")
    (tmp_path / "scheduler_config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="must hold a JSON object, got list"):
        ours.from_pretrained(tmp_path)


@BOTH
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"clip_smaple": True}, "no setting of .*did you mean 'clip_sample'"),
        ({"beta_strat": 0.1}, "did you mean 'beta_start'"),
        ({"bogus": 3}, "bogus is no setting of DD.MScheduler, got 3; it has num_train_timesteps, "),
        ({"use_flow_sigmas": True}, "use_flow_sigmas must be False"),
        ({"shift": 3.0}, "shift must be 1.0"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "whose process is not that of"),
        ({"thresholding": "dynamic"}, "thresholding must be True or False, got 'dynamic'"),
        ({"dynamic_thresholding_ratio": 2}, "ratio must be a finite number from 0 to 1, got 2"),
        ({"sample_max_value": 0}, "sample_max_value must be a finite number of at least"),
        ({"rescale_betas_zero_snr": 1}, "rescale_betas_zero_snr must be True or False, got 1"),
        ({"num_train_timesteps": 2.5}, "num_train_timesteps must be an integer from 1 .* got 2.5"),
        ({"num_train_timesteps": True}, "num_train_timesteps must be an integer from 1"),
        ({"num_train_timesteps": 10**7}, "num_train_timesteps must be an integer from 1"),
        ({"beta_start": "small"}, "beta_start must be a finite number .* got 'small'"),
        ({"beta_end": float("nan")}, "beta_end must be a finite number"),
        ({"beta_schedule": 3}, "beta_schedule must be one of linear, .* got 3"),
        ({"beta_schedule": ["linear"]}, "beta_schedule must be one of linear"),
        ({"clip_sample": "yes"}, "clip_sample must be True or False, got 'yes'"),
        ({"clip_sample_range": -1}, "clip_sample_range must be a finite number of at least 0"),
        ({"prediction_type": None}, "prediction_type must be one of"),
        ({"steps_offset": 0.5}, "steps_offset must be an integer from 0 to 999, got 0.5"),
        ({"steps_offset": -1}, "steps_offset must be an integer from 0 to 999, got -1"),
        ({"trained_betas": []}, "trained_betas must be one finite number or more, got "),
        ({"trained_betas": [[0.1]]}, "trained_betas must be one finite number or more, got "),
        ({"trained_betas": ["a"] * 1000}, "trained_betas must be one finite number or more"),
        ({"trained_betas": [float("nan")] * 1000}, "trained_betas must be one finite number"),
        ({"trained_betas": [0.1, -0.2]}, "betas must be from 0 to 1"),
        ({"trained_betas": [1.0, 0.2]}, "betas must be .* the first above 0, got 0.2 to 1"),
        ({"beta_start": 0}, "betas must be .* the first above 0, got 0 to 0.02"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line(ours, setting, message):
    with pytest.raises(UserError, match=message) as error:
        ours.from_config({}, **setting)
    assert one_line(error)
    with pytest.raises(UserError, match=message):
        ours.from_config(setting)


@BOTH
def test_a_misspelt_setting_of_the_constructor_is_one_line(ours):
    with pytest.raises(UserError, match=r"clip_smaple is no setting .* did you mean 'clip_sample'"):
        ours(clip_smaple=True)
    with pytest.raises(UserError, match=r"skip_prk_steps is no setting of DD.MScheduler, got True"):
        ours(skip_prk_steps=True)


@BOTH
def test_a_subclass_has_arguments_of_its_own(ours):
    class Louder(ours):
        def __init__(self, volume=1, **settings):
            super().__init__(**settings)
            self.volume = volume

    scheduler = Louder(volume=3, beta_end=0.03)
    assert (scheduler.volume, scheduler.beta_end) == (3, 0.03)
    assert copy.deepcopy(scheduler).volume == 3


@BOTH
def test_numbers_near_the_largest_are_finite(ours):
    x = torch.full((5, 3), 3e38)
    assert ours().add_noise(x, x, 0).isfinite().any()


@BOTH
def test_settings_of_other_solvers_are_left_out_aloud(ours):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (
            "PNDM",
            "EulerDiscrete",
            "DPMSolverMultistep",
            "UniPCMultistep",
            "DDPM",
            "DDIM",
        ):
            config = getattr(diffusers, f"{name}Scheduler")(beta_end=0.03).config
            assert ours.from_config(config).config.beta_end == 0.03, name
    with pytest.warns(UserWarning, match="ignores skip_prk_steps=True, use_karras_sigmas=True: "):
        ours.from_config({"skip_prk_steps": True, "use_karras_sigmas": True})


def test_every_setting_that_is_neutral_here_is_one_of_diffusers():
    known = {}
    for name in dir(diffusers):
        if name.endswith("Scheduler") and isinstance(getattr(diffusers, name), type):
            parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
            for parameter in parameters.values():
                known.setdefault(parameter.name, []).append(parameter.default)
    # Of this package, and of earlier versions of diffusers, whose files still exist.
    known |= {"follow_timesteps": [False], "tensor_format": ["pt"], "predict_epsilon": [True]}
    for name, values in (settings._OF_SOLVERS | settings._OF_PROCESSES).items():
        assert any(value in known[name] for value in values), name


def test_a_setting_of_the_other_scheduler_is_left_out_aloud():
    with pytest.warns(UserWarning, match="DDIMScheduler ignores variance_type='learned'"):
        DDIMScheduler.from_config(DDPMScheduler(variance_type="learned").config)


@BOTH
@pytest.mark.parametrize(
    "kind", [int, np.int64, torch.tensor, np.asarray, lambda t: torch.tensor([t])]
)
def test_timesteps_of_every_kind_of_integer(ours, kind):
    scheduler = ready(ours())
    x, eps, _ = draws()
    got, want = (scheduler.step(eps, t, x, generator=seeded()) for t in (kind(500), 500))
    assert torch.equal(got.prev_sample, want.prev_sample)


@BOTH
@pytest.mark.parametrize(
    "timestep", [1.5, 500.0, np.float32(3), torch.tensor(3.0), "500", None, True, -1, 1000, 5000,
                 torch.tensor([3, 4]), torch.tensor(True)],
)  # fmt: skip
def test_a_wrong_timestep_is_one_line(ours, timestep):
    x, eps, _ = draws()
    message = "timestep must be an integer from 0 to 999, got"
    with pytest.raises(UserError, match=message) as error:
        ready(ours()).step(eps, timestep, x)
    assert one_line(error)
    if ours is DDPMScheduler:
        with pytest.raises(UserError, match=message):
            ready(ours()).previous_timestep(timestep)


@BOTH
@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
@pytest.mark.parametrize(
    "timesteps", [torch.tensor([0.5]), 1.5, torch.tensor([1000]), torch.tensor([-1]), -1, "a", None,
                  torch.tensor([1, 2]), torch.tensor([True]), [1, 2, 3, 4, 5000], [[1], [2, 3]]],
)  # fmt: skip
def test_wrong_timesteps_of_noise_are_one_line(ours, method, timesteps):
    x, eps, _ = draws()
    with pytest.raises(UserError, match="timesteps must be one integer from 0 to 999") as error:
        getattr(ours(), method)(x, eps, timesteps)
    assert one_line(error)


@BOTH
@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_noise_at_timesteps_of_every_kind(ours, method):
    x, eps, _ = draws()
    want = getattr(theirs_of(ours)(), method)(x, eps, torch.tensor([7]))
    for t in (7, [7], (7,), np.int64(7), np.full(5, 7), torch.tensor(7), torch.full((5, 1), 7)):
        torch.testing.assert_close(getattr(ours(), method)(x, eps, t), want, **CLOSE)
    rows = torch.arange(5) * 100  # one axis alone is the batch
    want = getattr(theirs_of(ours)(), method)(x[:, 0], eps[:, 0], rows)
    torch.testing.assert_close(getattr(ours(), method)(x[:, 0], eps[:, 0], rows), want, **CLOSE)
    half = getattr(ours(), method)(x.half(), eps, 7)
    assert half.dtype == torch.float64


@BOTH
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (None, "{} must be a float tensor .* got None"),
        (draws()[0].numpy(), "{} must be a float tensor .* got an array of float64"),
        (draws()[0].to_sparse(), "{} must be a float tensor .* got a sparse_coo tensor of float64"),
        (draws()[0] * float("nan"), "{} must be finite, got NaN or infinity in 5 of 5 rows"),
        (draws()[0][:2], r"noise must have the shape of {}, \[2, 3\], got \[5, 3\]"),
        (torch.zeros(5, 0), "{} must be a float tensor"),
    ],
)
def test_wrong_points_of_noise_are_one_line(ours, x, message):
    for method, name in (("add_noise", "original_samples"), ("get_velocity", "sample")):
        with pytest.raises(UserError, match=message.format(name)) as error:
            getattr(ours(), method)(x, draws()[1], 3)
        assert one_line(error)


@BOTH
@pytest.mark.parametrize("count", [0, -1, 1001, 2.5, 10.0, "10", None, True, float("nan"), [10]])
def test_a_wrong_number_of_steps_is_one_line(ours, count):
    with pytest.raises(UserError, match="num_inference_steps ") as error:
        ours().set_timesteps(count)
    assert one_line(error)


@BOTH
def test_a_wrong_device_and_an_offset_beyond_the_end_are_one_line(ours):
    for device in ("tpu", "cuda:99", 3.5):
        with pytest.raises(UserError, match="device "):
            ours().set_timesteps(10, device=device)
    with pytest.raises(UserError, match="steps_offset must be at most 0 with 1000 of 1000 steps"):
        ours(steps_offset=1).set_timesteps(1000)


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_output": draws()[0][:, :2]}, r"model_output must have the shape of sample, \[5, "),
        ({"model_output": draws()[0][:1]}, r"the shape of sample, \[5, 3\], got \[1, 3\]"),
        ({"model_output": draws()[0].numpy()}, "model_output must be a float .* got an array"),
        ({"model_output": None}, "model_output must be a float tensor .* got None"),
        ({"model_output": draws()[0] * float("nan")}, "model_output must be finite, .* 5 of 5"),
        ({"sample": draws()[0].long()}, "sample must be a float tensor .* got a tensor of int64"),
        ({"sample": torch.tensor(0.5)}, "sample must be a float tensor"),
        ({"sample": draws()[1] / torch.eye(5)[:, :3]}, "sample must be finite, got NaN"),
        ({"generator": 5}, "generator must be a torch.Generator or a list .* got 5"),
        ({"generator": [seeded(), seeded()]}, "one for each of 5 rows, got 2"),
        ({"generator": [seeded(), None]}, "generator must be a torch.Generator"),
    ],
)  # fmt: skip
def test_a_wrong_step_is_one_line(ours, arguments, message):
    x, eps, _ = draws()
    given = {"model_output": eps, "timestep": 500, "sample": x, **arguments}
    with pytest.raises(UserError, match=message) as error:
        ready(ours()).step(**given)
    assert one_line(error)


@pytest.mark.parametrize("eta", [-0.1, 1.5, "a", None, float("nan")])
def test_a_wrong_eta_or_noise_is_one_line(eta):
    x, eps, z = draws()
    with pytest.raises(UserError, match="eta must be a finite number from 0 to 1"):
        ready(DDIMScheduler()).step(eps, 500, x, eta=eta)
    with pytest.raises(UserError, match="variance_noise must have the shape of sample"):
        ready(DDIMScheduler()).step(eps, 500, x, eta=1.0, variance_noise=z[:2])


def test_a_learned_variance_wants_twice_the_axis():
    x, eps, _ = draws()
    with pytest.raises(UserError, match=r"sample with axis 1 doubled, \[5, 6\], got \[5, 3\]"):
        ready(DDPMScheduler(variance_type="learned")).step(eps, 500, x)


@BOTH
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_generators_draws_the_noise_of_each_row(ours, count, kind):
    x, eps, _ = draws(shape=(count, 3))
    options = {} if ours is DDPMScheduler else {"eta": 0.7}
    theirs = ready(theirs_of(ours)(clip_sample=False))
    want = theirs.step(eps, 500, x, generator=[seeded(i) for i in range(count)], **options)
    rows = kind(seeded(i) for i in range(count))
    got = ready(ours()).step(eps, 500, x, generator=rows, **options)
    torch.testing.assert_close(got.prev_sample, want.prev_sample, **CLOSE)


@BOTH
def test_outputs_are_indexed_as_those_of_diffusers(ours):
    x, eps, _ = draws()
    got, want = (
        ready(s()).step(eps, 500, x, generator=seeded())
        for s in (ours, lambda: theirs_of(ours)(clip_sample=False))
    )
    for key in (0, 1, -1, "prev_sample", "pred_original_sample"):
        torch.testing.assert_close(got[key], want[key], **CLOSE)
    assert type(got.to_tuple()) is type(got[:2]) is tuple
    assert len(got) == len(want) == 2
    with pytest.raises(TypeError):
        got["x_0"]


@BOTH
def test_mixed_types_give_the_wider_one(ours):
    x, eps, _ = draws(dtype=torch.float32)
    for output, sample in ((eps.half(), x), (eps, x.half()), (eps.bfloat16(), x.bfloat16())):
        got, want = (
            ready(s).step(output, 500, sample, generator=seeded()).prev_sample
            for s in (ours(), theirs_of(ours)(clip_sample=False))
        )
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)


def test_timesteps_of_ones_own():
    ours, theirs = DDPMScheduler(), diffusers.DDPMScheduler(clip_sample=False)
    x, eps, _ = draws()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(timesteps=[900, 500, 20])
    assert torch.equal(ours.timesteps, theirs.timesteps)
    for t in (900, 500, 20):
        assert ours.previous_timestep(t) == theirs.previous_timestep(t)
        got, want = (s.step(eps, t, x, generator=seeded()).prev_sample for s in (ours, theirs))
        torch.testing.assert_close(got, want, **CLOSE)
    for timesteps in ([20, 500], [500, 500], [], [1000, 3], [3.5], "a"):
        with pytest.raises(UserError, match="timesteps must"):
            ours.set_timesteps(timesteps=timesteps)
    with pytest.raises(
        UserError, match="num_inference_steps or timesteps must be given, and not both"
    ):
        ours.set_timesteps(10, timesteps=[3])


@BOTH
def test_a_wrong_source_is_one_line(ours):
    for call, message in (
        (lambda: ours.from_config(None), "config must be a dict of settings, got None"),
        (lambda: ours.from_config("folder"), "config must be a dict of settings"),
        (lambda: ours.from_schedule("linear"), "schedule must be a Schedule, got 'linear'"),
        (lambda: ours.from_schedule(Schedule(500), clip_smaple=True), "did you mean 'clip_sample'"),
        (lambda: ours.from_pretrained(3), "pretrained_model_name_or_path must be a path, got 3"),
        (lambda: ours.from_pretrained("/nowhere"), "no folder on this machine, and nothing"),
        (lambda: ours.from_pretrained("/nowhere", subfolder=3), "subfolder must be a path, got 3"),
        (lambda: ours().save_pretrained(None), "save_directory must be a path, got None"),
    ):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert one_line(error)


@BOTH
def test_a_changed_default_dtype_changes_nothing(ours):
    want = ready(ours(beta_schedule="scaled_linear"))
    torch.set_default_dtype(torch.float64)
    try:
        got = ready(ours(beta_schedule="scaled_linear"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got.betas, want.betas)
    assert got.betas.dtype == torch.float32
