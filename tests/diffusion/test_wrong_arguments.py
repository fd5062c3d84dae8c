"""Wrong arguments of sampling and its neighbours: one line that names them, before any work."""

import math

import numpy as np
import pytest
import torch

from flashpoint.diffusion import (
    MLP,
    ConditionalMLP,
    DiffusionClassifier,
    SampleConfig,
    Schedule,
    UserError,
    class_reward,
    class_table,
    export_model,
    interpolate,
    invert,
    reverse_table,
    sample,
    sample_many,
    sample_with_reward,
    sinusoidal_embedding,
    slerp,
    train_many,
)

SCHEDULE = Schedule(20)
PLAIN = MLP(3, 2, [8])
CLASSES = ConditionalMLP(3, 2, [8], class_features=class_table(3))
JUDGE = MLP(3, 3, [8])
X = torch.zeros(4, 2)
NOT_COUNTS = (2.5, True, "4", None, math.nan, -1)


def reward(x):
    return x[:, 0]


def draw(n=2, model=PLAIN, schedule=SCHEDULE, **options):
    return sample(model, schedule, n, **{"device": "cpu", **options})


def classifier(model=CLASSES, **options):
    return DiffusionClassifier(model, SCHEDULE, device="cpu", **options)


def seek(n=2, model=PLAIN, reward=reward, schedule=SCHEDULE, **options):
    return sample_with_reward(model, schedule, n, reward, device="cpu", **options)


def back(x=X, model=PLAIN, schedule=SCHEDULE, **options):
    return invert(model, schedule, x, device="cpu", **options)


def between(a=X, b=X, model=PLAIN, **options):
    return interpolate(model, SCHEDULE, a, b, device="cpu", **options)


def broken(model):
    """A copy with one weight that is not finite."""
    copy = MLP(3, model.shape.widths[-1], [8])
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        copy.model[0].weight[0, 0] = math.nan
    return copy


WRONG = [
    *((draw, {name: value}, f"{name} must be") for value in NOT_COUNTS
      for name in ("n", "batch_size", "first_row", "keep_every")),
    *((draw, {"num_steps": value}, "num_steps must be") for value in NOT_COUNTS
      if value is not None),
    *((draw, {"seed": value}, "seed must be") for value in NOT_COUNTS),
    *((draw, {"method": "edm", name: value}, f"{name} must be at least 0")
      for name in ("s_churn", "s_tmin", "s_tmax", "s_noise") for value in ("1", math.nan, -1)),
    *((seek, {name: value}, f"{name} must be") for value in NOT_COUNTS
      for name in ("n", "candidates", "posterior_draws", "batch_size", "seed")),
    *((classifier, {name: value}, f"{name} must be") for value in NOT_COUNTS
      for name in ("noises", "seed")),
    *((back, {"iterations": value},
       "iterations must be") for value in NOT_COUNTS),
    *((between, {"count": value},
       "count must be") for value in NOT_COUNTS),
    (draw, {"num_steps": 21}, "num_steps must be from 1 to 20, got 21"),
    (draw, {"method": 3}, "method must be one of .*, got 3"),
    (draw, {"method": None}, "method must be one of .*, got None"),
    (draw, {"method": "ddim", "eta": 3.0}, "eta must be from 0 to 1, got 3.0"),
    (draw, {"method": "ddim", "eta": "1"}, "eta must be from 0 to 1, got '1'"),
    (draw, {"method": "ddim", "eta": math.nan}, "eta must be from 0 to 1, got nan"),
    (draw, {"variance": 1}, "variance must be one of .*, got 1"),
    *((draw, {"method": method, "eta": 1.0},
       f"eta must be left out unless method is ddim, got 1.0 with {re}")
      for method, re in (("ddpm", "ddpm"), ("heun", "heun"), ("dpm++2m", r"dpm\+\+2m"))),
    *((draw, {"method": method, "variance": "beta"}, "variance must be left out unless")
      for method in ("ddim", "heun", "dpm++2m")),
    (draw, {"scale": 2.0}, "scale must be left out without a label"),
    (draw, {"scale": 2.0, "model": CLASSES}, "scale must be left out without a label"),
    (draw, {"scale": "2", "model": CLASSES, "label": 1}, "scale must be finite.*, got '2'"),
    (draw, {"scale": math.inf, "model": CLASSES, "label": 1}, "scale must be finite.*, got inf"),
    (draw, {"scale": len, "model": CLASSES, "label": 1}, "scale must return a tensor .20."),
    (draw, {"scale": lambda t: t[:3], "model": CLASSES, "label": 1}, "scale must return a tensor"),
    (draw, {"label": "cat", "model": CLASSES}, "label must be a whole number .* got 'cat'"),
    (draw, {"label": True, "model": CLASSES}, "label must be a whole number .* torch.bool"),
    (draw, {"label": [0, 1, 2], "model": CLASSES}, r"label must be .* int64 \[2\]"),
    (draw, {"label": 7, "model": CLASSES}, "label must be from 0 to 3, got 7"),
    (draw, {"label": 0, "classifier": MLP(4, 3, [8])}, "classifier must have 3 inputs"),
    (draw, {"label": 0, "classifier": "judge"}, "classifier must be an MLP.*, got str"),
    (draw, {"label": 0, "classifier": broken(JUDGE)}, "classifier must have finite weights"),
    (draw, {"model": None}, "model must be an MLP.*, got NoneType"),
    (draw, {"model": broken(PLAIN)}, "model must have finite weights, got NaN or infinity in 1 of"),
    (draw, {"schedule": 20}, "schedule must be a Schedule, got int"),
    (draw, {"x_T": "noise"}, r"x_T must be \[2, 2\] numbers, got str"),
    (draw, {"x_T": torch.zeros(2, 2, dtype=torch.complex64)}, "x_T must be real numbers"),
    (draw, {"x_T": torch.full((2, 2), math.nan)}, "x_T must be finite, got .* in 2 of 2 rows"),
    (draw, {"init": X[:2]}, "init needs start"),
    (draw, {"start": 5}, "start needs init or x_T"),
    (draw, {"init": X[:2], "x_T": X[:2], "start": 5}, "init and x_T exclude each other"),
    (draw, {"init": X[:3], "start": 5}, r"init must be \[2, 2\], got \[3, 2\]"),
    (draw, {"init": X[:2], "start": 20}, "start must be from 0 to 19, got 20"),
    (draw, {"init": X[:2], "start": 2.5}, "start must be an integer, got 2.5"),
    (draw, {"init": X[:2], "start": 5, "num_steps": 7}, "num_steps must be from 1 to 6, got 7"),
    (sample_many, {"configs": [PLAIN], "n": 2}, "configs must be SampleConfigs, got MLP"),
    (sample_many, {"configs": [SampleConfig(PLAIN, SCHEDULE, "3")], "n": 2}, "seed must be"),
    (seek, {"temperature": "hot"}, "temperature must be at least 0 and finite, got 'hot'"),
    (seek, {"temperature": math.nan}, "temperature must be at least 0"),
    (seek, {"dim": 2.0}, "dim must be an integer"),
    (seek, {"reward": 3}, "reward must be a function of points, got int"),
    (seek, {"reward": len}, "reward must return a tensor .20., got int"),
    (seek, {"reward": lambda x: x[:, 0] * math.nan}, "reward must return numbers, got NaN"),
    (seek, {"model": 3}, "dim must be given"),
    (seek, {"model": 3, "dim": 2}, "model must be a network or a function, got int"),
    (seek, {"model": broken(PLAIN)}, "model must have finite weights"),
    (seek, {"schedule": None}, "schedule must be a Schedule"),
    (class_reward, {"predict_proba": None, "label": 1}, "predict_proba must be a method"),
    (class_reward, {"predict_proba": print, "label": "cat"}, "label must be an integer, got 'cat'"),
    (class_reward, {"predict_proba": print, "label": -1}, "label must be at least 0, got -1"),
    (back, {"x": [[1, 2, 3]]}, r"x must be \[n, 2\]"),
    (back, {"x": "x"}, "x must be .* got str"),
    (back, {"x": X * math.inf}, "x must be finite"),
    (back, {"label": 1}, "label must be left out"),
    (back, {"model": CLASSES, "label": 9}, "label must be from 0 to 3"),
    (back, {"model": CLASSES, "label": "cat"}, "label must be a whole"),
    (back, {"schedule": "linear"}, "schedule must be a Schedule, got str"),
    (back, {"model": broken(PLAIN)}, "model must have finite weights"),
    (between, {"b": None}, "b must be .* NoneType"),
    (between, {"label": 0}, "label must be left"),
    (slerp, {"a": X, "b": 3, "weight": torch.ones(1)}, "b must be a tensor"),
    (slerp, {"a": X, "b": X[:1], "weight": torch.ones(1)}, "a and b must have one shape"),
    (slerp, {"a": X, "b": X, "weight": 0.5}, "weight must be a tensor"),
    (classifier, {"model": None, "num_classes": 2}, "model must be a network or a function"),
    (classifier, {"num_classes": 0}, "num_classes must be at least 1, got 0"),
    (classifier, {"num_classes": 2.5}, "num_classes must be an integer, got 2.5"),
    (classifier, {"timesteps": [1, 2]}, "timesteps must be a tensor int64"),
    (classifier, {"timesteps": torch.ones(2)}, "timesteps must be a tensor int64"),
    (classifier, {"prior": "even"}, "prior must be 3 numbers, got 'even'"),
    (classifier, {"prior": [1, math.inf, 1]}, "prior must be 3 positive numbers"),
    (export_model, {"model": 3, "schedule": SCHEDULE, "format": "onnx", "path": "x"}, "model must"),
    (draw, {"device": [1]}, "device must be cpu"),
    (draw, {"progress": 3}, "progress must be True, False or a function, got 3"),
    (sample_many, {"configs": None, "n": 2}, "configs must be SampleConfigs, got NoneType"),
    (train_many, {"tasks": None}, "tasks must be a list of Tasks, got None"),
    (train_many, {"tasks": [3]}, r"tasks must be a list of Tasks, got \[3\]"),
    (classifier, {"model": PLAIN, "num_classes": 3}, "model must be a ConditionalMLP, got MLP"),
    (classifier, {"num_classes": 4}, "num_classes must be from 1 to 3, got 4"),
    (seek, {"dim": 5}, "dim must be that of the model, 2, got 5"),
    (export_model, {"model": PLAIN, "schedule": 3, "format": "onnx", "path": "x"}, "schedule must"),
    (class_table, {"num_classes": 2.5}, "num_classes must be an integer, got 2.5"),
    (MLP, {"input_dim": "a", "output_dim": 2}, "input_dim must be an integer, got 'a'"),
    (MLP, {"input_dim": 3, "output_dim": 2, "hidden_layers": [8.5]}, "hidden_layers must be"),
    (MLP, {"input_dim": 3, "output_dim": 2, "hidden_layers": 8}, "hidden_layers must be widths"),
    (sinusoidal_embedding, {"t": [1, 2], "dim": 4}, "t must be a tensor, got list"),
    (sinusoidal_embedding, {"t": torch.arange(3), "dim": 4.0}, "dim must be an integer, got 4.0"),
    *((reverse_table, {"schedule": SCHEDULE, "steps": steps}, "steps must")
      for steps in ([3, 1], torch.tensor([20, 1]), torch.tensor([1, 3]), torch.tensor([3.0]))),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "message"), WRONG)
def test_a_wrong_argument_is_one_line_that_names_it(function, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        function(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("x", ["x", [[1.0, 2.0, 3.0]], torch.full((1, 2), math.nan), 3])
def test_wrong_points_of_a_classifier_are_named(x):
    for method in (classifier().predict, classifier().predict_proba, classifier().log_likelihood):
        with pytest.raises(UserError, match="x must be"):
            method(x)
    for labels in ("cat", [0.5], [0, 1, 2]):
        with pytest.raises(UserError, match="label must be"):
            classifier().score(X[:1], labels)


def test_what_was_given_is_shown_in_one_line():
    for value in (torch.zeros(3, 3), np.zeros((3, 3)), ["x\n"] * 100):
        for wrong in ({"n": value}, {"num_steps": value}, {"method": value}, {"seed": value}):
            with pytest.raises(UserError, match=r"must be .*, got") as caught:
                draw(**wrong)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 150


def test_integers_of_numpy_and_lists_are_taken():
    x = draw(np.int64(3), num_steps=np.int32(4), seed=np.int64(2), batch_size=np.int16(2)).x
    assert torch.equal(x, draw(3, num_steps=4, seed=2, batch_size=2).x)
    labels = draw(2, CLASSES, label=np.array([0, 1]), scale=np.float64(0.5)).x
    assert torch.equal(labels, draw(2, CLASSES, label=[0, 1], scale=0.5).x)


def huge():
    """A network of finite weights whose samples are not."""
    network = MLP(3, 2, [8])
    with torch.no_grad():
        for layer in network.linears():
            layer.weight.mul_(1e18)
    return network


def test_samples_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="samples are not finite: 5 of 5 rows"):
        draw(5, huge())
    with pytest.raises(UserError, match="samples are not finite: 5 of 10 rows"):
        sample_many(
            [SampleConfig(PLAIN, SCHEDULE), SampleConfig(huge(), SCHEDULE)], 5, device="cpu"
        )
    with pytest.raises(UserError, match="samples are not finite: 5 of 5 rows"):
        seek(5, huge(), reward=lambda x: x[:, 0].nan_to_num())
    with pytest.raises(UserError, match="points of noise are not finite: 4 of 4 rows"):
        invert(huge(), SCHEDULE, X + 1, device="cpu")
    with pytest.raises(UserError, match="points of noise are not finite: 4 of 4 rows"):
        interpolate(huge(), SCHEDULE, X + 1, X + 2, device="cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_any_precision_are_taken_everywhere(dtype, tmp_path):
    given = ConditionalMLP(3, 2, [8], class_features=class_table(3)).to(dtype)
    plain = ConditionalMLP(3, 2, [8], class_features=class_table(3))
    plain.load_state_dict(given.state_dict())
    judge, x = MLP(3, 3, [8]).to(dtype), torch.randn(4, 2)
    single = MLP(3, 3, [8])
    single.load_state_dict(judge.state_dict())
    for function, options in (
        (lambda model, **k: draw(4, model, **k).x, {"label": 1}),
        (lambda model, **k: invert(model, SCHEDULE, x, device="cpu", **k), {"label": 1}),
        (
            lambda model, **k: interpolate(model, SCHEDULE, x, x + 1, device="cpu", **k),
            {"label": 1},
        ),
        (lambda model, **k: classifier(model, noises=1, **k).log_likelihood(x), {}),
        (lambda model, **k: seek(4, model, **k).x, {}),
    ):
        assert torch.equal(function(given, **options), function(plain, **options))
    guided = [draw(4, classifier=each, label=2).x for each in (judge, single)]
    assert torch.equal(*guided)
    for suffix, format in ((".safetensors", "safetensors"), (".pt2", "torch.export")):
        assert export_model(given, SCHEDULE, format, tmp_path / f"model{suffix}") < 1e-6
    assert next(given.parameters()).dtype == dtype
