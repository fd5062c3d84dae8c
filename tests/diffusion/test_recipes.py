"""The classic recipe against a materialised table and torch's own optimisers and schedulers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flashpoint.diffusion import (
    RECIPES,
    ClassicRecipe,
    Recipe,
    Schedule,
    Task,
    Trainer,
    UserError,
    train_many,
)
from flashpoint.diffusion.data import Points
from flashpoint.diffusion.training import CosineDecay, PlainRecipe, PlateauDecay, StepDecay
from flashpoint.kernels.q_sample.reference import draw_epoch
from flashpoint.kernels.reduce_grad import mean_of

N, SCHEDULE = 23, Schedule(7)
GENERATOR = torch.Generator().manual_seed(0)
POINTS = Points(torch.randn(N, 2, generator=GENERATOR), torch.arange(N) % 3)
SMALL = {"hidden_layers": (16, 8), "batch_size": 50, "lr": 1e-2}


class MaterialisedTable:
    """What a classic script does: a table of all N * T noisy points, a permutation per epoch."""

    def __init__(self, trainer, recipe):
        self.trainer, self.recipe = trainer, recipe
        self.model = trainer.model()
        optimizer = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = optimizer(
            self.model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        scheduler = torch.optim.lr_scheduler
        match recipe.decay:
            case StepDecay(every, factor):
                self.scheduler = scheduler.StepLR(self.optimizer, every, factor)
            case CosineDecay(floor):
                self.scheduler = scheduler.CosineAnnealingLR(self.optimizer, recipe.epochs, floor)
            case PlateauDecay(factor, patience):
                self.scheduler = scheduler.ReduceLROnPlateau(
                    self.optimizer, factor=factor, patience=patience
                )

    def fill(self, refresh):
        """x_t, feature, eps and label of pair t * N + i, in that order."""
        seed = self.trainer.engine.seeds
        draw = draw_epoch(seed, 0, refresh, torch.arange(N * 7), [N], [7], 2)
        pair = (draw.t * N + draw.index)[0]
        eps = torch.empty(N * 7, 2)
        eps[pair] = draw.eps[0]
        a = SCHEDULE.alpha_bar.float().repeat_interleave(N)[:, None]
        self.eps, self.labels = eps, POINTS.labels.repeat(7)
        feature = SCHEDULE.time_features.float().repeat_interleave(N, dim=0)
        self.inputs = torch.cat(
            (a.sqrt() * POINTS.data.repeat(7, 1) + (1 - a).sqrt() * eps, feature), dim=1
        )

    def run(self):
        losses, rates = [], []
        for epoch in range(self.recipe.epochs):
            if epoch % self.recipe.refresh == 0:
                self.fill(epoch // self.recipe.refresh)
            seed = self.trainer.engine.seeds
            draw = draw_epoch(seed, epoch, 0, torch.arange(N * 7), [N], [7], 2)
            rates.append(self.optimizer.param_groups[0]["lr"])
            mean = []
            for rows in (draw.t * N + draw.index)[0].split(self.recipe.batch_size):
                y = self.model(self.inputs[rows])
                if not self.trainer.task.classify:
                    loss = F.mse_loss(y, self.eps[rows])
                else:
                    loss = F.cross_entropy(y, self.labels[rows])
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                mean.append(loss.item())
            losses += mean
            metric = (
                () if not isinstance(self.recipe.decay, PlateauDecay) else (sum(mean) / len(mean),)
            )
            self.scheduler.step(*metric)
        return torch.tensor(losses), rates


CASES = [
    (ClassicRecipe(6, **SMALL, decay=StepDecay(2, 0.5), weight_decay=1e-2, refresh=2), False),
    (ClassicRecipe(6, **SMALL, decay=CosineDecay(1e-4), optimizer="adam"), False),
    (ClassicRecipe(6, **SMALL, decay=PlateauDecay(0.5, 0), optimizer="adam", weight_decay=1e-2,
                   refresh=4), True),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "classify"), CASES)
def test_a_classic_run_is_that_of_a_materialised_table(recipe, classify):
    trainer = Trainer(POINTS, SCHEDULE, recipe, classify=classify, device="cpu")
    table = MaterialisedTable(trainer, recipe)
    per_epoch = recipe.steps_per_rate(N * 7)
    assert per_epoch == 4  # the last batch of 161 pairs has 11 rows
    trainer.run(trainer.total_steps)
    losses, their_rates = table.run()
    assert trainer.engine.course.rates[0].tolist() == pytest.approx(their_rates, rel=1e-6)
    early = 12
    torch.testing.assert_close(trainer.losses[:early], losses[:early], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trainer.losses, losses, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_decay_is_that_of_torch(patience):
    losses = (torch.rand(60, generator=GENERATOR) + 5 * 0.9 ** torch.arange(60)).tolist()
    decay = PlateauDecay(0.5, patience)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience,
                                                        min_lr=0.0, eps=0.0)  # fmt: skip
    for epoch, loss in enumerate(losses):
        assert decay.scale(epoch, 60, 1.0, losses) == optimizer.param_groups[0]["lr"]
        theirs.step(loss)
    assert optimizer.param_groups[0]["lr"] < 0.1


@pytest.mark.parametrize("name", ["classic-a", "classic-b"])
def test_a_published_setting_cut_short_learns(name):
    denoiser, classifier = RECIPES[name]
    for recipe, classify in ((denoiser, False), (classifier, True)):
        short = replace(recipe, epochs=2, batch_size=100)
        points = Points(POINTS.data.repeat(20, 1), POINTS.labels.repeat(20))
        trainer = Trainer(points, SCHEDULE, short, classify=classify, device="cpu")
        trainer.run(10**6)
        assert trainer.epoch_losses[1] < trainer.epoch_losses[0]


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_a_classic_run_resumes_bit_for_bit(stop):
    recipe = ClassicRecipe(4, **SMALL, decay=PlateauDecay(0.5, 0))
    whole, first, second = (Trainer(POINTS, SCHEDULE, recipe, device="cpu") for _ in range(3))
    whole.run(100)
    first.run(stop)
    second.load_state_dict(first.state_dict())
    second.run(100)
    assert torch.equal(second.parameters, whole.parameters)
    assert torch.equal(second.epoch_losses, whole.epoch_losses)


class LargestTensor(TorchDispatchMode):
    """Watches the memory behind every tensor that an operation returns."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return out


def test_nothing_grows_with_the_number_of_pairs():
    # 50 million points in a view of one: N * T is 50 billion, memory stays that of a batch.
    points = Points(torch.randn(1, 2))
    object.__setattr__(points, "data", points.data.expand(50_000_000, 2))
    recipe = ClassicRecipe(1, hidden_layers=(8,), batch_size=100)
    with LargestTensor() as largest:
        trainer = Trainer(points, Schedule(1000), recipe, device="cpu")
        assert trainer.total_steps == 500_000_000
        memory_kept = largest.nbytes  # the large block that is freed at once among it
        largest.nbytes = 0
        trainer.run(3)
    assert trainer.losses[0] > 0
    assert 0 < largest.nbytes < 1e6
    assert memory_kept < 50_000_000


def test_presets_are_the_published_settings():
    denoiser, classifier = RECIPES["classic-a"]
    assert (denoiser.epochs, denoiser.batch_size, denoiser.weight_decay) == (300, 10_000, 1e-7)
    assert (classifier.epochs, classifier.optimizer, classifier.refresh) == (50, "adam", 100)
    denoiser, classifier = RECIPES["classic-b"]
    assert (denoiser.epochs, denoiser.decay.floor) == (500, 5e-6)
    assert (classifier.epochs, classifier.batch_size, classifier.decay.floor) == (10, 20_000, 1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassicRecipe(0), "epochs must be at least 1"),
        (lambda: ClassicRecipe(1, refresh=0), "refresh must be at least 1"),
        (lambda: ClassicRecipe(1, optimizer="sgd"), "optimizer must be one of adamw, adam"),
        (lambda: ClassicRecipe(1, batch_size=0), "batch_size must be at least 1"),
        (lambda: Recipe(steps=2.5), "steps must be an integer, got 2.5"),
        (lambda: Recipe(batch_size="8"), "batch_size must be an integer, got '8'"),
        (lambda: Recipe(hidden_layers=8), "hidden_layers must be widths, got 8"),
        (lambda: Recipe(weight_decay="x"), "weight_decay must be at least 0 and finite, got 'x'"),
        (lambda: Recipe(hidden_layers=(4, 0)), "hidden_layers must be at least 1, got 0"),
    ],
)
def test_a_wrong_recipe_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_integers_of_numpy_train_the_same_network():
    numbers = np.array([2, 16, 32, 5])
    found, expected = (
        train_many([Task(POINTS, SCHEDULE, Recipe(steps, (width,), batch_size), seed=seed)])[0]
        for steps, width, batch_size, seed in (numbers, numbers.tolist())
    )
    for name, weights in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], weights)


def test_a_recipe_says_which_network_it_trains():
    recipe = PlainRecipe(2, (16, 16, 8), 32, activation="relu", linear_input=True)
    trainer = Trainer(POINTS, SCHEDULE, recipe, seed=3, device="cpu")
    trainer.run(2)
    model = trainer.model()
    assert [type(layer).__name__ for layer in model.model] == [
        "Linear", "Linear", "ReLU", "Linear", "ReLU", "Linear",
    ]  # fmt: skip


def test_the_plain_recipe_is_adam_at_a_constant_rate():
    recipe = PlainRecipe(5, (8,), 32)
    trainer = Trainer(POINTS, SCHEDULE, recipe, seed=3, device="cpu")
    model, weights = trainer.model(), trainer.parameters.clone()
    oracle = torch.nn.Parameter(weights.clone())
    optimizer = torch.optim.Adam([oracle], lr=1e-3)
    for _ in range(5):
        trainer.run(1)
        oracle.grad = mean_of(trainer.engine.workspace.sums)[0][0]
        optimizer.step()
    torch.testing.assert_close(trainer.parameters, oracle.data, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trainer.model().network().parameters[0], trainer.parameters)
    assert not torch.equal(model.network().parameters[0], trainer.parameters)


def test_unknown_activation_is_refused():
    with pytest.raises(UserError, match=r"activation must be one of .*, got 'rleu'"):
        Recipe(activation="rleu")
