"""Chains of samples in which a network is a user's own: its part in each step, and their run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.sample_chain import functions
from ..kernels.sample_chain.reference import Evaluation, grad_of_logits
from .models import Perceptron
from .own_networks import is_own, own_copy

# Returns the output [B, ...] for x_t [B, d], what is seen of t [B, 1 + F], and labels [B] if any.
Function = Callable[..., Tensor]


def function_of(name: str, model: nn.Module, device: torch.device, *, whole: bool) -> Function:
    """Returns a copy of a network on the device as a function that own and other networks share.

    Args:
        name: name of the argument, for messages.
        model: an own network, or a perceptron of this package.
        device: the device.
        whole: True if all timesteps are whole numbers, which own networks take as int64.
    """
    network = own_copy(name, model, device)
    if not is_own(model):
        network = network.float()

    def run(x: Tensor, seen: Tensor, *labels: Tensor) -> Tensor:
        if isinstance(network, Perceptron):
            return network(torch.cat((x, seen[:, 1:]), dim=1), *labels)
        t = seen[:, 0].long() if whole else seen[:, 0]
        return network(x, t, *labels).float()

    return run


@dataclass(frozen=True, eq=False)
class OwnNetworks:
    """The networks of a chain, checked and on the device.

    Attributes:
        dim: dimension of the points.
        denoiser: the denoiser.
        labels: class of each row that a conditional denoiser sees, int64 [n]; None for others.
        no_class: the label that stands for none.
        free: True for classifier-free guidance.
        classifier: the classifier that guides, or None.
        guide_labels: the classes to guide the rows to, int64 [n], with a classifier.
    """

    dim: int
    denoiser: Function
    labels: Tensor | None = None
    no_class: int = 0
    free: bool = False
    classifier: Function | None = None
    guide_labels: Tensor | None = None

    def run(
        self,
        x: Tensor,
        table: Tensor,
        seen: Tensor,
        rows: slice,
        *,
        seed: Tensor,
        first_row: int,
        keep_every: int,
    ) -> tuple[Tensor, Tensor]:
        """Returns samples [1, B, d] and the trajectory [K, 1, B, d] of some rows.

        Args:
            x: x_T [1, B, d].
            table: float32 [1, R, 4 or 7].
            seen: what networks see of the timesteps, float32 [1, R, 1 + F].
            rows: their places among the labels.
            seed, first_row, keep_every: see :func:`flashpoint.kernels.sample_chain`.
        """

        def evaluation_of(part: slice) -> Evaluation:
            of_all = slice(rows.start + part.start, min(rows.stop, rows.start + part.stop))
            return lambda inputs: self._evaluate(inputs[0], of_all)

        with torch.no_grad():
            return functions.sample_chain(
                evaluation_of, x, table, seen, seed, first_row, keep_every
            )

    def _evaluate(self, inputs: Tensor, rows: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns the networks' part in a step, with an axis M = 1, of inputs [B, d + 1 + F]."""
        x, seen = inputs[:, : self.dim].contiguous(), inputs[:, self.dim :]
        uncond = grad = None
        if self.labels is None:
            out = self.denoiser(x, seen)
        else:
            labels = _filled_up(self.labels[rows], len(x))
            out = self.denoiser(x, seen, labels)
            if self.free:
                uncond = self.denoiser(x, seen, torch.full_like(labels, self.no_class))[None]
        if self.classifier is not None and self.guide_labels is not None:
            labels = _filled_up(self.guide_labels[rows], len(x))
            grad = _grad_log_p(self.classifier, x, seen, labels)[None]
        return out[None], uncond, grad


def _filled_up(labels: Tensor, rows: int) -> Tensor:
    """Returns labels with as many at the end as rows were added there."""
    return F.pad(labels, (0, rows - len(labels)))


def _grad_log_p(classifier: Function, x: Tensor, seen: Tensor, labels: Tensor) -> Tensor:
    """Returns the gradient of log p(label | x) with respect to x, [B, d]."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = classifier(x, seen)
        return torch.autograd.grad(logits, x, grad_of_logits(logits.detach(), labels))[0]
