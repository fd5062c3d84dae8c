"""The whole reverse process on the Triton kernels: the same algorithm as :mod:`.reference`."""

import torch
from torch import Tensor

from ..mlp import kernel as mlp
from ..reverse_step.kernel import reverse_step_
from .reference import Guide, Network


def sample_chain(
    denoiser: Network,
    x: Tensor,
    table: Tensor,
    time_features: Tensor,
    seed: Tensor,
    guide: Guide | None,
    first_row: int,
    keep_every: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Samples [M, B, d] and the trajectory [K, M, B, d], from x_T [M, B, d]."""
    models, rows, dim = x.shape
    steps = table.shape[1]
    table, time_features = table.contiguous(), time_features.contiguous()
    packed = mlp.pack(denoiser.parameters, denoiser.shape, precision)
    guidance = None if guide is None else _Guidance(guide, precision)
    inputs = x.new_empty((models, rows, dim + time_features.shape[2]))  # x_t and the feature of t
    inputs[..., :dim] = x
    inputs[..., dim:] = time_features[:, :1]
    kept = [x] if keep_every else []
    for step in range(steps):
        eps, _ = mlp.forward_flat(
            inputs, denoiser.parameters, denoiser.shape, precision, packed=packed, save=False
        )
        reverse_step_(
            inputs,
            eps,
            table[:, step],
            time_features[:, min(step + 1, steps - 1)],
            seed=seed,
            step=step,
            first_row=first_row,
            grad=None if guidance is None else guidance.grad_log_p(inputs),
        )
        if keep_every and ((step + 1) % keep_every == 0 or step + 1 == steps):
            kept.append(inputs[..., :dim].clone())
    samples = inputs[..., :dim].contiguous()
    return samples, torch.stack(kept) if kept else x.new_empty((0, *x.shape))


class _Guidance:
    """A classifier whose weights are packed once."""

    def __init__(self, guide: Guide, precision: str):
        (self._flat, self._shape), self._labels = guide
        self._precision = precision
        self._packed = mlp.pack(self._flat, self._shape, precision)

    def grad_log_p(self, inputs: Tensor) -> Tensor:
        """Gradient of log p(label | inputs) with respect to the inputs, [M, B, d + F]."""
        logits, saved = mlp.forward_flat(
            inputs, self._flat, self._shape, self._precision, packed=self._packed
        )
        grad_logits = -logits.softmax(dim=-1)
        grad_logits.scatter_add_(-1, self._labels[..., None], torch.ones_like(logits[..., :1]))
        return mlp.input_gradient(grad_logits, saved, self._shape, self._precision)
