"""Scheduler objects against those of diffusers: numbers, timesteps, noise, files."""

import json
from itertools import product

import diffusers
import pytest
import torch

from flashpoint.diffusion import DDIMScheduler, DDPMScheduler, Schedule, UserError
from flashpoint.diffusion.compat import checks

pytestmark = pytest.mark.filterwarnings("ignore:timestep_spacing=")  # of both packages the same

# In float64 the schedulers differ by nothing but the order of sums.
CLOSE = {"rtol": 1e-6, "atol": 1e-9}
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")


def draws(n=3, dtype=torch.float64, shape=(17, 3)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *shape, generator=generator, dtype=dtype)


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def both(name, **settings):
    ours, theirs = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}[name], f"{name}Scheduler"
    settings = {"clip_sample": False, **settings}
    return ours(**settings), getattr(diffusers, theirs)(**settings)


def assert_chains_agree(ours, theirs, count, dtype=torch.float64, close=CLOSE, **options):
    """All steps, each from diffusers' own x_t, with a model output that is not linear in it."""
    ours.set_timesteps(count)
    theirs.set_timesteps(count)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    x = draws(1, dtype)[0]
    for t in theirs.timesteps:
        output = (2 * x + t / 100).sin()
        want = theirs.step(output, t, x, generator=seeded(), **options)
        got = ours.step(output, t, x, generator=seeded(), **options)
        torch.testing.assert_close(got.prev_sample, want.prev_sample, **close)
        torch.testing.assert_close(got.pred_original_sample, want.pred_original_sample, **close)
        x = want.prev_sample


@pytest.mark.parametrize("beta_schedule", [*BETAS, "sigmoid"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm_with_every_variance_and_schedule(beta_schedule, variance_type):
    pair = both("DDPM", beta_schedule=beta_schedule, variance_type=variance_type)
    assert torch.equal(pair[0].alphas_cumprod, pair[1].alphas_cumprod)
    assert_chains_agree(*pair, 20)


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
@pytest.mark.parametrize(("prediction", "clip"), [*product(PREDICTIONS, [False, True])])
def test_every_prediction_type_clipped_and_not(name, prediction, clip):
    settings = {"prediction_type": prediction, "clip_sample": clip, "clip_sample_range": 0.8}
    assert_chains_agree(*both(name, **settings), 20)


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
@pytest.mark.parametrize(("spacing", "count"), [*product(SPACINGS, [1, 7, 50])])
def test_every_spacing(name, spacing, count):
    assert_chains_agree(*both(name, timestep_spacing=spacing, num_train_timesteps=50), count)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("total", [50, 333, 500, 1000])
def test_timesteps_for_every_number_of_steps(spacing, total):
    ours, theirs = both("DDPM", timestep_spacing=spacing, num_train_timesteps=total, steps_offset=1)
    for count in range(1, total, 7):
        ours.set_timesteps(count)
        theirs.set_timesteps(count)
        assert torch.equal(ours.timesteps, theirs.timesteps), count


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize(("to_one", "clipped"), [*product([True, False], [True, False])])
def test_noisy_ddim(eta, to_one, clipped):
    pair = both("DDIM", set_alpha_to_one=to_one, clip_sample=True)
    assert_chains_agree(*pair, 20, eta=eta, use_clipped_model_output=clipped)


def test_ddim_takes_the_noise_itself():
    ours, theirs = both("DDIM")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    x, eps, z = draws()
    got, want = (s.step(eps, 500, x, eta=0.7, variance_noise=z) for s in (ours, theirs))
    torch.testing.assert_close(got.prev_sample, want.prev_sample, **CLOSE)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_ddpm_with_a_learned_variance(variance_type):
    ours, theirs = both("DDPM", variance_type=variance_type)
    x, eps, raw = draws()
    output = torch.cat((eps, raw.sigmoid()), dim=1)
    for t in (999, 400, 1, 0):
        want = theirs.step(output, t, x, generator=seeded()).prev_sample
        got = ours.step(output, t, x, generator=seeded()).prev_sample
        torch.testing.assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_float32_and_the_whole_chain_without_set_timesteps(name):
    close = {"rtol": 1e-5, "atol": 1e-5}
    assert_chains_agree(*both(name, num_train_timesteps=100), 100, torch.float32, close)


def test_ddpm_steps_before_set_timesteps_visit_every_timestep():
    ours, theirs = both("DDPM")
    x, eps, _ = draws()
    got, want = (s.step(eps, 700, x, generator=seeded()).prev_sample for s in (ours, theirs))
    torch.testing.assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("shape", [(17, 3), (5, 2, 3), (4, 1, 2, 3), (0, 3)])
def test_noise_and_velocity_of_any_shape(shape):
    ours, theirs = both("DDPM")
    x, eps, _ = draws(shape=shape)
    t = torch.arange(shape[0]) * 50
    for method in ("add_noise", "get_velocity"):
        got, want = (getattr(s, method)(x, eps, t) for s in (ours, theirs))
        torch.testing.assert_close(got, want, **CLOSE)
    one = torch.tensor([3])
    torch.testing.assert_close(ours.add_noise(x, eps, one), theirs.add_noise(x, eps, one), **CLOSE)


def test_half_precision_samples_stay_half():
    x, eps, _ = draws(dtype=torch.float16)
    assert DDPMScheduler().step(eps, 500, x).prev_sample.dtype == torch.float16


def test_outputs_are_tuples_and_the_rest_of_the_interface():
    scheduler = DDIMScheduler(num_train_timesteps=20)
    scheduler.set_timesteps(10, device="cpu")
    x, eps, _ = draws()
    output = scheduler.step(eps, scheduler.timesteps[0], x)
    plain = scheduler.step(eps, scheduler.timesteps[0], x, return_dict=False)
    assert type(plain) is tuple
    assert torch.equal(plain[0], output.prev_sample)
    assert torch.equal(output[1], output.pred_original_sample)
    assert scheduler.scale_model_input(x, 3) is x
    assert (scheduler.init_noise_sigma, scheduler.order, len(scheduler)) == (1.0, 1, 20)
    assert scheduler.config.num_train_timesteps == scheduler.config["num_train_timesteps"] == 20
    with pytest.raises(AttributeError, match="no 'num_steps'"):
        _ = scheduler.config.num_steps


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_configs_are_read_by_either_package(name, tmp_path):
    ours, theirs = both(
        name, beta_schedule="scaled_linear", num_train_timesteps=77, prediction_type="v_prediction"
    )
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    read = type(theirs).from_pretrained(tmp_path / "ours").config
    for key in theirs.config.keys() - {"_use_default_values", "_diffusers_version"}:
        assert read[key] == theirs.config[key], key
    assert type(ours).from_pretrained(tmp_path / "theirs").config == ours.config
    assert json.loads((tmp_path / "ours" / "scheduler_config.json").read_text())["_class_name"]


def test_one_scheduler_takes_the_config_of_another():
    ddpm = DDPMScheduler(num_train_timesteps=30, beta_end=0.1)
    ddim = DDIMScheduler.from_config(ddpm.config, clip_sample=True)
    assert (ddim.config.beta_end, ddim.config.clip_sample) == (0.1, True)
    assert diffusers.DDIMScheduler.from_config(ddpm.config).config.clip_sample is False


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "sigmoid", "sech"])
def test_from_schedule(name, tmp_path):
    schedule = Schedule(40, name)
    scheduler = DDIMScheduler.from_schedule(schedule, clip_sample=True)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), schedule.alpha_bar)
    scheduler.save_pretrained(tmp_path)
    theirs = diffusers.DDIMScheduler.from_pretrained(tmp_path)
    assert torch.equal(theirs.alphas_cumprod, scheduler.alphas_cumprod)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_schedule": "linaer"}, "did you mean 'linear'"),
        ({"prediction_type": "eps"}, "prediction_type must be one of epsilon"),
        ({"timestep_spacing": "even"}, "timestep_spacing must be one of"),
        ({"variance_type": "fixed_large_log"}, "variance_type must be one of"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be an integer from 1"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        DDPMScheduler.from_config(settings)


def test_a_wrong_step_is_named(tmp_path):
    x, eps, _ = draws()
    scheduler = DDPMScheduler()
    with pytest.raises(UserError, match="must be an integer from 1 to 1000, got 1001"):
        scheduler.set_timesteps(1001)
    scheduler.set_timesteps(10)
    with pytest.raises(UserError, match="one of the scheduler's timesteps, got 901"):
        scheduler.step(eps, 901, x)
    with pytest.raises(UserError, match="call set_timesteps"):
        DDIMScheduler().step(eps, 0, x)
    with pytest.raises(UserError, match=r"scheduler_config\.json cannot be read"):
        DDPMScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_pipelines_of_diffusers_run_with_either(name):
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = diffusers.UNet2DModel(8, 1, 1, block_out_channels=(8, 8), norm_num_groups=2, **blocks)
    images = []
    for scheduler in both(name, clip_sample=True):
        pipeline = getattr(diffusers, f"{name}Pipeline")(unet=unet, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        rows = [seeded(1), seeded(2)]
        options = {"batch_size": 2, "num_inference_steps": 5, "output_type": "np"}
        images.append(pipeline(generator=rows, **options).images)
    assert abs(images[0] - images[1]).max() < 1e-5


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_a_step_can_be_differentiated_mapped_and_compiled(name):
    x, eps, _ = draws()
    scheduler = both(name)[0]
    scheduler.set_timesteps(10)

    def step(x):
        return scheduler.step(eps, 0, x).prev_sample

    want = step(x)
    mapped = torch.func.vmap(lambda o, x: scheduler.step(o, 0, x).prev_sample)
    torch.testing.assert_close(mapped(eps[:, None], x[:, None])[:, 0], want)
    assert torch.func.grad(lambda x: step(x).sum())(x).isfinite().all()
    if name == "DDIM":  # DDPM looks its next timestep up among them
        compiled = torch.compile(step, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), want)


def test_tensors_on_a_gpu_are_not_read_before_a_step(monkeypatch):
    def read(*_, **__):
        pytest.fail("the device was waited for")

    monkeypatch.setattr(torch.Tensor, "sum", read)
    monkeypatch.setattr(torch.Tensor, "aminmax", read)
    x = torch.zeros(4, 2, device="meta")  # in place of a GPU
    checks.finite(x=x)
    assert len(checks.timesteps(x[:, 0].long(), 4, 10)) == 4
    with pytest.raises(pytest.fail.Exception, match="waited"):
        checks.finite(x=torch.zeros(4, 2))
