"""Embeddings of a timestep against the code of others, and networks that were trained with one."""

import itertools
import json
import math
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from flashpoint.diffusion import (
    MLP,
    BlockMLP,
    PointMasses,
    Recipe,
    Schedule,
    TimeEmbedding,
    Trainer,
    UserError,
    excess_loss,
    load,
    sinusoidal_embedding,
)
from flashpoint.diffusion.data import Points

T = torch.arange(1000)
CLOSE = {"rtol": 0, "atol": 1e-4}  # theirs is float32 of angles up to 1,000


@pytest.mark.parametrize(
    ("flip", "shift", "scale", "period"),
    [*itertools.product([False, True], [0, 1], [1, 0.25], [10_000, 100])],
)
def test_embeddings_of_diffusers(flip, shift, scale, period):
    want = get_timestep_embedding(T, 32, flip, shift, scale, period)
    order = "cos-sin" if flip else "sin-cos"
    mine = TimeEmbedding(32, order, float(period), scale, frequency_shift=shift)
    torch.testing.assert_close(mine.features(T).float(), want, **CLOSE)


def test_the_interleaved_embedding_of_transformers():
    table = torch.zeros(1000, 8)
    divisor = torch.exp(torch.arange(0, 8, 2) * (-math.log(10_000.0) / 8))
    table[:, 0::2] = torch.sin(T[:, None] * divisor)
    table[:, 1::2] = torch.cos(T[:, None] * divisor)
    torch.testing.assert_close(TimeEmbedding(8, "interleaved").features(T).float(), table, **CLOSE)


def test_the_number_itself_and_timesteps_counted_from_one():
    assert torch.equal(TimeEmbedding(1).features(T), T[:, None].double())
    share = TimeEmbedding(1, scale=1 / 1000).features(T)
    torch.testing.assert_close(share, T[:, None].double() / 1000)
    later = TimeEmbedding(6, shift=1).features(T[:-1])
    assert torch.equal(later, TimeEmbedding(6).features(T[1:]))
    assert TimeEmbedding(6).features(T.reshape(10, 100)).shape == (10, 100, 6)
    assert torch.equal(TimeEmbedding().features(T), sinusoidal_embedding(T, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 3}, "dim must be 1 or a positive even number, got 3"),
        ({"dim": 0}, "dim must be 1 or a positive even number, got 0"),
        ({"dim": 8.0}, "dim must be 1 or a positive even number, got 8.0"),
        ({"dim": True}, "dim must be 1 or a positive even number, got True"),
        ({"order": "interleave"}, "order must be one of sin-cos, .* did you mean 'interleaved'"),
        ({"order": None}, "order must be one of sin-cos"),
        ({"base": 0}, "base must be a finite number above 0, got 0"),
        ({"base": "10000"}, "base must be a finite number above 0, got '10000'"),
        ({"scale": math.nan}, "scale must be a finite number, got nan"),
        ({"shift": math.inf}, "shift must be a finite number, got inf"),
        (
            {"dim": 2, "frequency_shift": 1},
            "frequency_shift must be less than dim / 2 = 1, got 1.0",
        ),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        TimeEmbedding(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", ["sinus", 3, {"dims": 3}, {"dim": 3}, False])
def test_a_wrong_time_feature_is_named(given):
    with pytest.raises(UserError, match=r"time_feature|dim must be 1"):
        Schedule(500, time_feature=given)


def test_numbers_of_numpy_are_written_to_files():
    embedding = TimeEmbedding(np.int64(8), scale=np.float32(0.5), shift=np.int32(1))
    schedule = Schedule(500, time_feature=embedding)
    assert embedding == TimeEmbedding(8, scale=0.5, shift=1)
    assert Schedule(**json.loads(json.dumps(asdict(schedule)))) == schedule


EMBEDDINGS = [
    TimeEmbedding(8, order, frequency_shift=shift)
    for order, shift in itertools.product(("sin-cos", "cos-sin", "interleaved"), (0, 1))
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network of another's code: blocks, and an embedding that the file does not name."""
    path = tmp_path_factory.mktemp("peer") / "denoiser.pth"
    points = Points(torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * 0.5 + 1)
    recipe = Recipe(400, (64, 64), 256, ema_decay=0.98, activation="relu", linear_input=True)
    schedule = Schedule(500, time_feature=TimeEmbedding(8, "interleaved"))
    trainer = Trainer(points, schedule, recipe, device="cpu")
    trainer.run(recipe.steps)
    torch.save(BlockMLP.from_mlp(trainer.model()).state_dict(), path)
    return path, points


def test_the_right_embedding_has_by_far_the_least_error(trained):
    path, points = trained
    target, steps, errors = PointMasses(points.data), range(100, 500, 50), {}
    for embedding in EMBEDDINGS:
        schedule = Schedule(500, time_feature=embedding)
        model = load(path, schedule=schedule).model
        errors[embedding] = excess_loss(model, schedule, target, steps=steps, n=200).mean()
    right = errors.pop(TimeEmbedding(8, "interleaved"))
    assert right < min(errors.values()) / 20


def test_the_right_embedding_gives_the_right_samples(trained):
    path, points = trained
    means = []
    for embedding in (TimeEmbedding(8, "interleaved"), TimeEmbedding(8, frequency_shift=1)):
        x = load(path, schedule=Schedule(500, time_feature=embedding)).sample(
            200, device="cpu", num_steps=50
        ).x  # fmt: skip
        means.append((x.mean(0) - points.data.mean(0)).norm().item())
    assert means[0] < 0.2 < means[1] / 3


def test_a_safetensors_file_remembers_the_embedding(trained, tmp_path):
    schedule = Schedule(500, time_feature=EMBEDDINGS[5])
    load(trained[0], schedule=schedule).save(tmp_path / "a.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path / "a.safetensors").schedule == schedule


def test_an_embedding_that_is_not_in_the_file_is_said(tmp_path):
    for name in ("a.pt", "a.pth"):
        torch.save(MLP(3, 2, [8]).state_dict(), tmp_path / name)
        with pytest.warns(UserWarning, match=f"{name} does not say how .* linspace\\(-1, 1, T\\)"):
            load(tmp_path / name, schedule=Schedule(500))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load(tmp_path / name, schedule=Schedule(500, time_feature=TimeEmbedding(1)))


def test_a_folder_says_once_what_it_assumes_and_of_the_callers_line(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save(MLP(3, 2, [8]).state_dict(), tmp_path / "checkpoints/denoiser.pt")
    torch.save(MLP(3, 5, [8]).state_dict(), tmp_path / "checkpoints/classifier.pt")
    for path in (tmp_path, tmp_path / "checkpoints/denoiser.pt"):
        with pytest.warns(UserWarning, match="denoiser.pt does not say how") as said:
            load(path, schedule=Schedule(500))
        assert [one.filename for one in said] == [__file__]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"epoch": 3, "model_state_dict": state, "loss": 0.5},
        lambda state: {"state_dict": state},
        lambda state: {"model": {f"module.{name}": x for name, x in state.items()}},
        lambda state: {f"_orig_mod.{name}": x for name, x in state.items()},
    ],
)
def test_state_dicts_are_found_in_what_is_saved_around_them(wrap, tmp_path):
    model = BlockMLP(3, 2, [8, 8])
    torch.save(wrap(model.state_dict()), tmp_path / "a.pth")
    schedule = Schedule(500, time_feature="centered")
    read = load(tmp_path / "a.pth", schedule=schedule).model.state_dict()
    assert all(torch.equal(read[name], x) for name, x in model.state_dict().items())
