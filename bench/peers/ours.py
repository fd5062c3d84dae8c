"""flashpoint itself, called as its users call it."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...diffusion import ClassicRecipe, ManyTrainer, Recipe, Task, Trainer, sample
from ...kernels import Guide, Network, sample_chain
from ...kernels.philox import seed_tensor
from ...kernels.q_sample.reference import draw_fresh, gather_points
from ..problem import EMA_DECAY, LEARNING_RATE, WEIGHT_DECAY, Batch, Chain
from ..timing import Runner, Work
from .base import Peer

TRAINING_STEPS = {"cuda": 50, "cpu": 4}  # steps in one call of Trainer.run; on CUDA one graph
_LONG = 200_000  # steps of a recipe, so many that its learning rate stays constant
_PRECISIONS = {"half": "fp16", "tf32": "tf32", "fp32": "fp32"}


def _endless(start: Callable[[], Trainer | ManyTrainer], steps: int) -> Work:
    """Returns a work that trains ``steps`` steps each time and starts anew at the end."""
    trainer = start()

    def run() -> None:
        nonlocal trainer
        if trainer.step + steps > trainer.total_steps:  # else it would do nothing
            trainer = start()
        trainer.run(steps)

    return run


class Ours(Peer):
    """``Trainer`` and ``sample``."""

    def recipe(self, rows: int, classify: bool) -> Recipe:
        """Returns a recipe of fresh rows and a constant learning rate, as the peers use."""
        return Recipe(
            steps=_LONG, hidden_layers=self.problem.network(classify).shape.widths[1:-1],
            batch_size=rows, lr=LEARNING_RATE, warmup=0.0, weight_decay=WEIGHT_DECAY,
            ema_decay=EMA_DECAY, low_noise=0.0,
        )  # fmt: skip

    def trainer(self, rows: int, classify: bool, seed: int = 0) -> Trainer:
        return Trainer(
            self.problem.points, self.problem.schedule, self.recipe(rows, classify), seed=seed,
            classify=classify, device=self.device, precision=_PRECISIONS[self.precision],
        )  # fmt: skip

    def first_batches(self, rows: int, count: int, classify: bool, seed: int = 0) -> list[Batch]:
        """Returns the batches of the first steps of :meth:`trainer`, for the peers to train on."""
        trainer = self.trainer(rows, classify, seed)
        seed, numbers = trainer.engine.seeds.cpu(), torch.arange(rows)
        points, labels = self.problem.points.data, self.problem.points.labels
        batches = []
        for step in range(count):
            draw = draw_fresh(seed, step, numbers, trainer.engine.data.n_points.cpu(),
                              trainer.engine.data.t_table.cpu(), 2)  # fmt: skip
            x_0 = gather_points(points[None], draw.index)[0]
            batches.append(Batch(x_0, labels[draw.index[0]], draw.t[0], draw.eps[0]))
        return batches

    def losses(self, batches, classify):
        """Returns the losses of its own first batches, which must equal the given ones."""
        trainer = self.trainer(len(batches[0].t), classify)
        found = []
        for _ in batches:
            trainer.run(1)
            found.append(trainer.losses[-1].item())
        return found

    def end_of(self, chain, x_T, labels):
        labels = None if labels is None else labels.to(self.device)
        x, _ = sample_chain(
            self.network(classify=False), x_T[None].to(self.device),
            chain.table[None].to(self.device), chain.features[None].to(self.device), seed=0,
            guide=None if labels is None else self.guide(labels),
        )  # fmt: skip
        return x[0].cpu()

    def chain_work(self, chain: Chain, rows: int, labels: Tensor | None) -> Work:
        """Returns ``sample_chain`` alone as a work, from given noise, all of it on the device."""
        x_T = torch.randn(1, rows, 2, device=self.device)
        table, features = (part[None].to(self.device) for part in chain)
        guide = None if labels is None else self.guide(labels.to(self.device))
        denoiser, seed = self.network(classify=False), seed_tensor(0, self.device)
        return lambda: sample_chain(denoiser, x_T, table, features, seed=seed, guide=guide)[0]

    def network(self, classify: bool) -> Network:
        parameters, shape = self.problem.network(classify).network()
        return Network(parameters.to(self.device), shape)

    def guide(self, labels: Tensor) -> Guide:
        return Guide(self.network(classify=True), labels[None])

    def training(self, rows, classify=False):
        steps = TRAINING_STEPS[self.device.type]
        return Runner(_endless(lambda: self.trainer(rows, classify), steps), steps)

    def many(self, models: int, rows: int) -> Runner:
        """Returns training steps of many models in the same launches, each on ``rows`` rows."""
        steps = TRAINING_STEPS[self.device.type]
        return Runner(_endless(lambda: self.many_trainer(models, rows), steps), steps)

    def many_trainer(self, models: int, rows: int) -> ManyTrainer:
        """Returns a trainer of many denoisers, whose seeds count from 0."""
        tasks = [
            Task(self.problem.points, self.problem.schedule, self.recipe(rows, False), seed=seed)
            for seed in range(models)
        ]
        return ManyTrainer(tasks, device=self.device, precision=_PRECISIONS[self.precision])

    def epoch(self, rows, steps):
        recipe = ClassicRecipe(_LONG // steps, batch_size=rows, lr=LEARNING_RATE)
        problem, device = self.problem, self.device
        return Runner(_endless(
            lambda: Trainer(problem.points, problem.schedule, recipe, device=device), steps
        ))  # fmt: skip

    def sampling(self, chain, rows, labels=None):
        def work() -> Tensor:
            return sample(
                self.problem.denoiser, self.problem.schedule, rows, num_steps=len(chain.table),
                classifier=None if labels is None else self.problem.classifier, label=labels,
                device=self.device,
            ).x  # fmt: skip

        return Runner(work)
