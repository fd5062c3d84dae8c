"""What cannot be trained or sampled is refused in one line, before any work."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from flashpoint.diffusion import MLP, Points, Recipe, Schedule, Trainer, UserError, sample
from flashpoint.diffusion.own_networks import takes_timesteps

from .own_networks import Conditional, Residual

GENERATOR = torch.Generator().manual_seed(0)
POINTS = Points(torch.randn(43, 2, generator=GENERATOR), torch.arange(43) % 3)
SCHEDULE = Schedule(21, "cosine")
RECIPE = Recipe(steps=5, batch_size=16)
CONDITIONAL = replace(RECIPE, p_uncond=0.1)


class Of(Residual):
    """A network whose output is a function of the right one, its points and timesteps."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    def forward(self, x, t):
        return self.function(super().forward(x, t), x, t)


class Table(nn.Module):
    """A network with a table of embeddings of so many timesteps."""

    def __init__(self, steps):
        super().__init__()
        self.of_t = nn.Embedding(steps, 2)

    def forward(self, x, t):
        return x + self.of_t(t)


class Holds(Residual):
    """A network with a tensor that no deepcopy copies."""

    def __init__(self):
        super().__init__()
        self.held = self.first.weight * 2


class Keeps(Residual):
    """A network that remembers its output, with the graph behind it."""

    def forward(self, x, t):
        self.last_output = super().forward(x, t)
        return self.last_output


def nan_weights():
    model = Residual()
    model.first.weight.data[0, 0] = torch.nan
    return model


def of_another_prediction():
    model = Residual()
    model.prediction = "v"
    return model


def counted_otherwise():
    model = Conditional(3)
    model.num_classes = 4
    return model


WRONG = {
    "a function": (sample, RECIPE, "must be an nn.Module of .x_t, t. of your own, got fun"),
    "an MLP": (MLP(3, 2, [4]), RECIPE, "of your own, got MLP; the recipe's hidden_layers"),
    "no parameter": (nn.Identity(), RECIPE, "must have parameters to train, got none"),
    "all fixed": (Residual().requires_grad_(False), RECIPE, "must have parameters to train"),
    "arguments": (nn.Linear(2, 2), RECIPE, r"network of \(x_t float32 \[3, 2\], t int64 \[3\]\), "
                     "but it failed: TypeError"),
    "no class": (Conditional(3), RECIPE, "failed: TypeError: .*missing 1 required .*'y'"),
    "class not taken": (Residual(), CONDITIONAL, r"y int64 \[3\] from 0 to 3\), but it failed"),
    "classes it says": (counted_otherwise(), CONDITIONAL, "model.num_classes must be 3, that of"),
    "few classes": (Conditional(2), CONDITIONAL, "failed: IndexError"),
    "few timesteps": (Table(20), RECIPE, "failed: IndexError"),
    "width": (Residual(outputs=3), RECIPE, r"must return \[3, 2\] for 3 rows, got \[3, 3\]"),
    "axes": (Of(lambda y, *_: y.sum()), RECIPE, r"must return \[3, 2\] for 3 rows, got \[\]"),
    "tuple": (Of(lambda *parts: parts), RECIPE, "must return a tensor, got tuple"),
    "dtype": (Of(lambda y, *_: y.long()), RECIPE, "must return floating-point numbers"),
    "nan": (Of(lambda y, _, t: y / t[:, None]), RECIPE, "must return finite numbers, got NaN"),
    "nan weights": (nan_weights(), RECIPE, "must have finite weights, got NaN or infinity in 1 of"),
    "float64": (Residual().double(), RECIPE, r"float32 parameters, got torch.float64 in first.wei"),
    "bf16": (Residual().bfloat16(), RECIPE, r"got torch.bfloat16 in first.weight; model.float\(\)"),
    "not yet shaped": (nn.LazyLinear(2), RECIPE, "parameters of known shape: call it once"),
    "pooled": (Of(lambda y, *_: y + y.mean(dim=0)), RECIPE, "rows of a batch as independent"),
    "no copy": (Holds(), RECIPE, "must be a module that copy.deepcopy copies"),
    "no later copy": (Keeps(), RECIPE, "copy.deepcopy copies: once it has run, "),
    "no gradient": (Of(lambda y, *_: y.detach()), RECIPE, "return an output with a gradient"),
    "prediction": (of_another_prediction(), RECIPE, "prediction must be eps, .* got 'v'; None"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_network_that_cannot_be_trained_is_refused_in_one_line(name):
    model, recipe, message = WRONG[name]
    with pytest.raises(UserError, match=message) as raised:
        Trainer(POINTS, SCHEDULE, recipe, model=model, device="cpu")
    assert "\n" not in str(raised.value)


def test_arguments_without_effect_are_refused():
    with pytest.raises(UserError, match="precision must be left out with a model of your own"):
        Trainer(POINTS, SCHEDULE, RECIPE, model=Residual(), precision="bf16")
    with pytest.raises(UserError, match="compile must be left out without a model"):
        Trainer(POINTS, SCHEDULE, RECIPE, compile=True)
    model = Conditional(3)
    model.num_classes = 3
    with pytest.raises(UserError, match="p_uncond must be given in the recipe of a model with"):
        Trainer(POINTS, SCHEDULE, RECIPE, model=model)
    with pytest.raises(UserError, match="a classifier needs labels"):
        Trainer(Points(POINTS.data), SCHEDULE, RECIPE, model=Residual(), classify=True)
    compiled = torch.compile(Residual())
    with pytest.raises(UserError, match=r"must be the network itself, got what torch.compile made"):
        Trainer(POINTS, SCHEDULE, RECIPE, model=compiled)


def test_an_output_of_another_shape_while_it_trains_is_named():
    model = Of(lambda y, *_: y if len(y) <= 3 else y[:1])
    run = Trainer(POINTS, SCHEDULE, RECIPE, model=model, device="cpu")
    with pytest.raises(UserError, match=r"model must return \[16, 2\] for 16 rows, got \[1, 2\]"):
        run.run(1)


def known(model, **attributes):
    model.point_dim = 2
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


UNFIT = {
    "dimension": (Residual(), {}, "model must say the dimension of its points.* point_dim"),
    "classes": (known(Conditional(3)), {}, "failed: TypeError"),
    "no classes": (known(Residual()), {"label": 1}, "classifier and label must be given together"),
    "label": (known(Conditional(3), num_classes=3), {"label": 4}, "label must be from 0 to 3"),
    "prediction": (known(Residual(), prediction="v"), {}, "schedule must be that of a model"),
    "classifier": (known(Residual()), {"classifier": nn.Linear(2, 3), "label": 1}, "classifier must"
                   " be a network of"),
    "its labels": (known(Residual()), {"classifier": Residual(outputs=3), "label": 3}, "0 to 2"),
    "fractions": (known(Table(21)), {"method": "edm"}, "t float32 .*but it failed: RuntimeError"),
    "x_T": (known(Residual()), {"x_T": torch.ones(4, 3)}, r"x_T must be \[4, 2\], got \[4, 3\]"),
    "function": (takes_timesteps, {}, "model must be an MLP, .*, got function"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_sampled_is_refused_in_one_line(name):
    model, options, message = UNFIT[name]
    with pytest.raises(UserError, match=message) as raised:
        sample(model, SCHEDULE, 4, num_steps=5, device="cpu", **options)
    assert "\n" not in str(raised.value)


def test_a_module_of_points_and_features_is_told_from_one_of_timesteps():
    class Labelled(nn.Module):
        def forward(self, inputs, labels):
            return inputs + labels

    class Optional(nn.Module):
        def forward(self, x, t, y=None):
            return x + t + (0 if y is None else y)

    own = [takes_timesteps(each) for each in (nn.Linear(3, 2), Residual(), Optional(), sample)]
    assert own == [False, True, True, False]
    assert not takes_timesteps(Labelled(), labelled=True)
    assert takes_timesteps(Optional(), labelled=True)
    assert takes_timesteps(Conditional(3), labelled=True)
    assert not takes_timesteps(MLP(3, 2, [4]))
