"""Spacings of timesteps against diffusers' and Karras's, and lists of one's own."""

import diffusers
import pytest
import torch

from flashpoint.diffusion import MLP, SampleConfig, Schedule, UserError, sample
from flashpoint.diffusion.chains import METHODS, prepare
from flashpoint.diffusion.choices import SCHEDULES
from flashpoint.diffusion.predictions import PREDICTIONS
from flashpoint.diffusion.reverse_steps import levels_at, timestep_of, timesteps
from flashpoint.diffusion.spacings import SPACINGS

CPU = torch.device("cpu")


def model():
    torch.manual_seed(0)
    return MLP(3, 2, [8])


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("T", "count"), [(1000, 10), (1000, 333), (500, 50), (50, 50), (7, 3)])
def test_named_spacings_are_those_of_diffusers(spacing, T, count):
    scheduler = diffusers.DDIMScheduler(T, timestep_spacing=spacing)
    scheduler.set_timesteps(count)
    steps = timesteps(Schedule(T, prediction="v"), count, spacing=spacing, method="ddim")
    assert steps.tolist() == scheduler.timesteps.tolist()


def test_karras_spacing_on_edm_is_the_published_one():
    """Levels of rho = 7 lie on the schedule's own grid, so that the nearest are the levels."""
    schedule = Schedule(1 + 17 * 20, "edm")
    place = torch.arange(18, dtype=torch.float64) / 17
    root = 80 ** (1 / 7) + place * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    steps = timesteps(schedule, 18, spacing="karras", method="heun")
    torch.testing.assert_close(schedule.sigma[steps], root**7)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("count", [1, 2, 9, 40, 100, None])
def test_timesteps_are_distinct_and_as_many_as_asked_for(name, spacing, count):
    schedule = Schedule(100, name, prediction="v")
    steps = timesteps(schedule, count, spacing=spacing, method="ddim")
    assert len(steps) == (count or 100)
    assert (steps.diff() < 0).all()
    assert 0 <= steps[-1] <= steps[0] <= 99
    if spacing != "leading":
        assert steps[0] == 99
    if spacing != "trailing" and count != 1:
        assert steps[-1] == 0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("method", ["ddpm", "ddim", "heun"])
def test_timesteps_of_all_predictions_are_those_of_eps(name, method):
    zero = {"zero_terminal_snr": True} if name == "scaled_linear" else {}
    for count in (1, 5, 20, 70, None):
        found = []
        for prediction in PREDICTIONS:
            if prediction != "eps" or (name != "flow" and not zero):
                schedule = Schedule(100, name, prediction=prediction, **zero)
                found.append(timesteps(schedule, count, method=method).tolist())
        assert all(steps == found[0] for steps in found)
        sigma = schedule.sigma[found[0]]
        assert sigma[0].isinf() == (name == "flow" or bool(zero))
        if count in (5, 20):
            assert (sigma[1:] <= (8 if count == 5 else 14.1)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_chain_visits_the_timesteps_of_a_list(method):
    schedule, given = Schedule(60), [55, 31, 30, 7]
    options = {"method": method, "x_T": torch.randn(4, 2), "device": "cpu", "seed": 2}
    want = sample(model(), schedule, 4, timesteps=given, keep_every=1, **options)
    assert len(want.trajectory) == 5
    for same in (torch.tensor(given), torch.tensor(given, dtype=torch.int32), tuple(given)):
        assert torch.equal(sample(model(), schedule, 4, timesteps=same, **options).x, want.x)
    calm = {"s_churn": 0.0} if method == "edm" else {}  # no timesteps in between
    config = SampleConfig(model(), schedule, method=method, timesteps=given, **calm)
    seen = prepare(config, 1, CPU).features
    assert torch.equal(seen.unique_consecutive(dim=0), schedule.time_features[given].float())
    named = sample(model(), schedule, 4, num_steps=4, spacing="leading", **options)
    listed = sample(model(), schedule, 4, timesteps=[45, 30, 15, 0], **options)
    assert torch.equal(named.x, listed.x)


def test_points_may_start_a_list():
    schedule, points = Schedule(60, "flow"), torch.randn(4, 2)
    options = {"method": "heun", "device": "cpu", "init": points}
    got = sample(model(), schedule, 4, timesteps=[29, 14, 3], keep_every=1, **options)
    noise = (got.trajectory[0] - 0.5 * points) / 0.5  # x_t half way
    assert noise.std() < 2
    same = sample(model(), schedule, 4, num_steps=3, start=29, keep_every=1, **options)
    assert torch.equal(same.trajectory[0], got.trajectory[0])


@pytest.mark.parametrize(
    "schedule",
    [Schedule(90, name) for name in SCHEDULES]
    + [Schedule(90, "edm", sigma_data=0.5), Schedule(90, prediction="v", zero_terminal_snr=True)],
    ids=str,
)
def test_levels_between_timesteps(schedule):
    whole = torch.arange(90)
    assert all(map(torch.equal, levels_at(schedule, whole), (schedule.signal, schedule.noise)))
    t = torch.tensor([0.3, 20.5, 70.9, 87.2], dtype=torch.float64)
    signal, noise = levels_at(schedule, t)
    torch.testing.assert_close(timestep_of(schedule, noise / signal), t)
    finite = schedule.sigma[:89]
    torch.testing.assert_close(timestep_of(schedule, finite), whole[:89].double())
    if schedule.name == "flow":
        torch.testing.assert_close((signal, noise), (1 - (t + 1) / 90, (t + 1) / 90))
    elif schedule.name == "edm":
        features = schedule.features_of(t)[:, 0]
        torch.testing.assert_close((noise / signal).log() / 4, features)
        unit = signal.square() * schedule.sigma_data**2 + noise.square()
        torch.testing.assert_close(unit, torch.ones(4, dtype=torch.float64))
    else:
        one = signal.square() + noise.square()
        torch.testing.assert_close(one, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": "even"}, "spacing must be one of linspace, karras, leading, trailing"),
        ({"spacing": "karas"}, "did you mean 'karras'"),
        ({"spacing": 3}, "spacing must be one of .*, got 3"),
        ({"timesteps": []}, "timesteps must be a tensor int64"),
        ({"timesteps": [3, 3, 1]}, r"timesteps must fall, .* got \[3, 3, 1\]"),
        ({"timesteps": [1, 3]}, r"timesteps must fall, .* got \[1, 3\]"),
        ({"timesteps": [50, 3]}, r"timesteps must fall, from 49 at most to 0 at least"),
        ({"timesteps": [3, -1]}, r"timesteps must fall, from 49 at most to 0 at least"),
        ({"timesteps": 5}, "timesteps must be a tensor int64"),
        ({"timesteps": [3.0, 1.0]}, "timesteps must be a tensor int64"),
        ({"timesteps": [3, True, 0]}, r"timesteps must be whole numbers, got \[3, True, 0\]"),
        ({"timesteps": torch.tensor([True])}, "timesteps must be a tensor int64"),
        ({"timesteps": "900,3"}, "timesteps must be whole numbers, got '900,3'"),
        ({"timesteps": [3, 1], "num_steps": 2}, "num_steps must be left out with timesteps, got 2"),
        ({"timesteps": [3, 1], "spacing": "karras"}, "spacing must be left out with timesteps"),
        (
            {"timesteps": [3, 1], "start": 3, "x_T": torch.zeros(2, 2)},
            "start must be left out with timesteps, got 3",
        ),
    ],
)
def test_a_wrong_spacing_or_list_is_named(options, message):
    with pytest.raises(UserError, match=message) as caught:
        sample(model(), Schedule(50), 2, device="cpu", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint64, torch.int8])
def test_a_list_may_be_of_any_integers(dtype):
    options = {"seed": 1, "device": "cpu"}
    expected = sample(model(), Schedule(50), 2, timesteps=[40, 7, 0], **options).x
    for given in (torch.tensor([40, 7, 0], dtype=dtype), torch.tensor([40, 7, 0]).to_sparse()):
        assert torch.equal(sample(model(), Schedule(50), 2, timesteps=given, **options).x, expected)
