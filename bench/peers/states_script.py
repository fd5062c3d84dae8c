"""A script with the structure of the classic scripts for the STATES experiment, newly written.

It makes a table of all N * T noised points beforehand. Training is a Python loop over shuffled
batches of the table, which reads the loss of each batch. Sampling is a Python loop over the
timesteps, which computes its coefficients in each step. Such scripts have no averaged weights, so
this peer does less work than the others.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..problem import LEARNING_RATE, WEIGHT_DECAY, Batch
from ..timing import Runner
from .eager import Eager


class StatesScript(Eager):
    """Python loops over a table in memory."""

    def __init__(self, problem, device, precision):
        super().__init__(problem, device, precision)
        self.optimizers = {
            classify: torch.optim.AdamW(
                network.parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
            )
            for classify, network in self.networks.items()
        }

    def make_table(self) -> tuple[Tensor, ...]:
        """Returns x_t, feature, eps and label of every pair, [N * T, ...]."""
        n, total = len(self.points), len(self.alpha_bar)
        t = torch.arange(total, device=self.device).repeat_interleave(n)
        eps = torch.randn(n * total, 2, device=self.device)
        a = self.alpha_bar[t, None]
        x_t = a.sqrt() * self.points.repeat(total, 1) + (1 - a).sqrt() * eps
        return x_t, self.features[t], eps, self.labels.repeat(total)

    def step_on(self, x_t: Tensor, feature: Tensor, eps: Tensor, label: Tensor, classify: bool):
        optimizer = self.optimizers[classify]
        optimizer.zero_grad()
        with self.arithmetic():
            y = self.networks[classify].net(torch.cat((x_t, feature), dim=1)).float()
        loss = F.cross_entropy(y, label) if classify else F.mse_loss(y, eps)
        loss.backward()
        optimizer.step()
        return loss.item()

    def losses(self, batches, classify):
        found = []
        for batch in map(self.here, batches):
            a = self.alpha_bar[batch.t, None]
            x_t = a.sqrt() * batch.x_0 + (1 - a).sqrt() * batch.eps
            feature = self.features[batch.t]
            found.append(self.step_on(x_t, feature, batch.eps, batch.label, classify))
        return found

    def here(self, batch: Batch) -> Batch:
        return Batch(*(part.to(self.device) for part in batch))

    def training(self, rows, classify=False):
        table, order, position = self.make_table(), None, 0
        pairs = len(table[0])

        def work() -> None:
            nonlocal order, position
            if order is None or position >= pairs:
                order, position = torch.randperm(pairs, device=self.device), 0
            index = order[position : position + rows]
            position += rows
            self.step_on(*(part[index] for part in table), classify)

        return Runner(work)

    def epoch(self, rows, steps):
        table = self.make_table()

        def work() -> None:
            order = torch.randperm(len(table[0]), device=self.device)[: rows * steps]
            for index in order.split(rows):
                self.step_on(*(part[index] for part in table), classify=False)

        return Runner(work)

    @torch.no_grad()
    def run_chain(self, chain, x, labels, noisy):
        table, features = (part.to(self.device) for part in chain)
        with self.arithmetic():
            for number in range(len(table)):
                step = torch.full((len(x), 1), features[number].item(), device=self.device)
                eps = self.networks[False].net(torch.cat((x, step), dim=1)).float()
                c_x, c_eps, c_z, strength = table[number].tolist()
                if labels is not None:
                    eps = eps - strength * self.guidance(x, step, labels)
                x = c_x * x + c_eps * eps
                if noisy:
                    x = x + c_z * torch.randn_like(x)
        return x
