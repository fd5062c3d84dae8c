"""Ordinary PyTorch: every operation is a launch of its own."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..problem import EMA_DECAY, LEARNING_RATE, WEIGHT_DECAY, Batch, Chain, Problem
from ..timing import Runner
from .base import Peer


def plain_network(state: dict[str, Tensor], widths: Sequence[int]) -> nn.Sequential:
    """Makes linear layers with one shared PReLU from the weights of ``MLP.state_dict()``."""
    act, layers = nn.PReLU(), []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), act]
    net = nn.Sequential(*layers[:-1])
    net.load_state_dict({
        name.removeprefix("model."): value
        for name, value in state.items() if name.startswith("model.")
    })  # fmt: skip
    return net


class Network:
    """A network in training: parameters, fused AdamW, averaged weights."""

    def __init__(self, state, widths: Sequence[int], device: torch.device, dtype: torch.dtype):
        self.net = plain_network(state, widths).to(device, dtype)
        self.parameters = list(self.net.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True,
            capturable=device.type == "cuda",
        )  # fmt: skip

    def update(self, grads: Sequence[Tensor]) -> None:
        """Takes one step of AdamW and of the averaged weights."""
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - EMA_DECAY)


class Eager(Peer):
    """Eager PyTorch, fused AdamW, autocast to bf16 for ``half``.

    bf16 is as fast as fp16 and needs no scaling of the loss.
    """

    dtype = torch.float32

    def __init__(self, problem: Problem, device: torch.device, precision: str):
        super().__init__(problem, device, precision)

        def resident(tensor: Tensor) -> Tensor:
            return tensor.to(device, self.dtype)

        self.points, self.labels = resident(problem.points.data), problem.points.labels.to(device)
        self.alpha_bar = resident(problem.schedule.alpha_bar)
        self.features = resident(problem.schedule.time_features)
        self.networks = {
            classify: Network(model.state_dict(), model.shape.widths, device, self.dtype)
            for classify, model in ((False, problem.denoiser), (True, problem.classifier))
        }

    def arithmetic(self):
        """Returns a context in which matrices are multiplied in this peer's precision."""
        # The setting is global, so each peer sets it before it works.
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        if self.precision == "half":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    # Training.

    def draw(self, rows: int) -> Batch:
        index = torch.randint(len(self.points), (rows,), device=self.device)
        t = torch.randint(len(self.alpha_bar), (rows,), device=self.device)
        eps = torch.randn(rows, 2, device=self.device)
        return Batch(self.points[index], self.labels[index], t, eps)

    def loss(self, batch: Batch, classify: bool) -> Tensor:
        a = self.alpha_bar[batch.t, None]
        x_t = a.sqrt() * batch.x_0 + (1 - a).sqrt() * batch.eps
        y = self.networks[classify].net(torch.cat((x_t, self.features[batch.t]), dim=1))
        y = y.to(self.dtype)
        return F.cross_entropy(y, batch.label) if classify else F.mse_loss(y, batch.eps)

    def step(self, batch: Batch, classify: bool) -> Tensor:
        """Takes one training step on a batch and returns its loss before the update."""
        network = self.networks[classify]
        with self.arithmetic():
            loss = self.loss(batch, classify)
        network.update(torch.autograd.grad(loss, network.parameters))
        return loss

    def losses(self, batches, classify):
        return [self.step(self.here(batch), classify).item() for batch in batches]

    def here(self, batch: Batch) -> Batch:
        """Returns the batch on this device, in this precision."""
        return Batch(
            batch.x_0.to(self.device, self.dtype), batch.label.to(self.device),
            batch.t.to(self.device), batch.eps.to(self.device, self.dtype),
        )  # fmt: skip

    def training(self, rows, classify=False):
        return Runner(lambda: self.step(self.draw(rows), classify))

    def epoch(self, rows, steps):
        pairs = len(self.points) * len(self.alpha_bar)

        def work() -> None:
            order = torch.randperm(pairs, device=self.device)[: rows * steps]
            for pair in order.split(rows):
                index, t = pair % len(self.points), pair // len(self.points)
                eps = torch.randn(len(pair), 2, device=self.device)
                self.step(Batch(self.points[index], self.labels[index], t, eps), classify=False)

        return Runner(work)

    # Sampling.

    def reverse(self, x: Tensor, c: Tensor, feature: Tensor, z: Tensor, labels) -> Tensor:
        """Takes one reverse step with the coefficients [4] of x, eps, z and the guidance."""
        feature = feature.expand(len(x), 1)
        eps = self.networks[False].net(torch.cat((x, feature), dim=1)).to(self.dtype)
        if labels is not None:
            eps = eps - c[3] * self.guidance(x, feature, labels)
        return c[0] * x + c[1] * eps + c[2] * z

    def guidance(self, x: Tensor, feature: Tensor, labels: Tensor) -> Tensor:
        """Returns the gradient of log p(label | x) with respect to x, [n, 2]."""

        def log_p(x: Tensor) -> Tensor:
            logits = self.networks[True].net(torch.cat((x, feature), dim=1))
            return -F.cross_entropy(logits.to(self.dtype), labels, reduction="sum")

        return torch.func.grad(log_p)(x)

    @torch.no_grad()
    def run_chain(self, chain: Chain, x: Tensor, labels: Tensor | None, noisy: bool) -> Tensor:
        table, features = (part.to(self.device, self.dtype) for part in chain)
        with self.arithmetic():
            for c, feature in zip(table, features, strict=True):
                z = torch.randn_like(x) if noisy else torch.zeros_like(x)
                x = self.reverse(x, c, feature, z, labels)
        return x

    def end_of(self, chain, x_T, labels):
        labels = None if labels is None else labels.to(self.device)
        x = self.run_chain(chain, x_T.to(self.device, self.dtype), labels, noisy=False)
        return x.float().cpu()

    def sampling(self, chain, rows, labels=None):
        labels = None if labels is None else labels.to(self.device)
        chain = Chain(*(part.to(self.device) for part in chain))

        def work() -> Tensor:
            x = torch.randn(rows, 2, device=self.device)
            return self.run_chain(chain, x, labels, noisy=True)

        return Runner(work)


class Exact(Eager):
    """The same in float64, against which all others are checked."""

    dtype = torch.float64
