"""The reverse process step by step, for networks that do not run a whole chain in one launch.

Same contract as :mod:`.reference`; it calls the operations mlp and reverse_step. Everything that
changes from step to step lies on the device, even the number of the step. On CUDA one step is
therefore captured as a graph and replayed, and the GPU does not wait for Python between steps.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..cuda import capture_if_possible, device_of, side_stream
from ..mlp import MLPShape, operator
from ..mlp.layout import gap_of
from ..reverse_step import reverse_step
from ..reverse_step.reference import MEMORY, memory_coefficients
from .reference import Condition, Evaluation, Guide, Network, conditional_inputs


def sample_chain(
    denoiser: Network,
    x: Tensor,
    table: Tensor,
    time_features: Tensor,
    seed: Tensor,
    guide: Guide | None,
    condition: Condition | None,
    first_row: int,
    keep_every: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Returns samples [M, B, d] and the trajectory [K, M, B, d] of chains from x_T [M, B, d]."""

    def evaluate(inputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        eps, uncond = _predictions(denoiser, inputs, condition, precision)
        grad = None if guide is None else _grad_log_p(guide, inputs, precision)
        return eps, uncond, grad

    return run_chain(evaluate, x, table, time_features, seed, first_row, keep_every)


def run_chain(
    evaluate: Evaluation,
    x: Tensor,
    table: Tensor,
    time_features: Tensor,
    seed: Tensor,
    first_row: int,
    keep_every: int,
) -> tuple[Tensor, Tensor]:
    """Runs the chain of all rows; the arguments are those of :func:`.reference.run_chain`."""
    x = x.clone()
    number = torch.zeros(1, dtype=torch.int64, device=x.device)  # counts the steps
    memory = torch.zeros_like(x) if table.shape[2] > MEMORY else None
    changed = (x, number) if memory is None else (x, number, memory)

    def step() -> None:
        features = time_features.index_select(1, number).expand(*x.shape[:2], -1)
        inputs = torch.cat((x, features), dim=-1)  # [M, B, d + F]
        eps, uncond, grad = evaluate(inputs)
        grad = None if grad is None else grad[..., : x.shape[2]].contiguous()
        coefficients = table.index_select(1, number)[:, 0]
        combine = partial(
            reverse_step, x, eps, grad_log_p=grad, eps_uncond=uncond, backend="triton"
        )
        x_prev = combine(coefficients[:, :MEMORY], seed=seed, step=number, first_row=first_row)
        if memory is not None:
            x_prev += coefficients[:, MEMORY, None, None] * memory
            memory.copy_(combine(memory_coefficients(coefficients)))
        x.copy_(x_prev)
        number.add_(1)

    steps = table.shape[1]
    kept = [x.clone()] if keep_every else []
    with device_of(x):
        run = _captured(step, changed) if x.is_cuda and x.numel() and steps else step
        for done in range(1, steps + 1):
            run()
            if keep_every and (done % keep_every == 0 or done == steps):
                kept.append(x.clone())
    return x, torch.stack(kept) if kept else x.new_empty((0, *x.shape))


def _captured(step: Callable[[], None], changed: tuple[Tensor, ...]) -> Callable[[], None]:
    """Returns the step as a CUDA graph; restores the tensors that its run before changes.

    A step that no graph can hold, as one of a network that waits for the device, stays as it is.
    """
    before = [tensor.clone() for tensor in changed]
    with side_stream() as stream:
        step()
    for tensor, value in zip(changed, before, strict=True):
        tensor.copy_(value)
    graph = capture_if_possible(step, stream)
    return step if graph is None else graph.replay


def _predictions(
    denoiser: Network, inputs: Tensor, condition: Condition | None, precision: str
) -> tuple[Tensor, Tensor | None]:
    """Returns the denoiser's output and, with classifier-free guidance, that without a class."""
    parameters, shape = denoiser
    rows = [inputs] if condition is None else conditional_inputs(inputs, condition)
    covered = _covered(shape, precision)
    eps, *uncond = (operator.mlp(x, shape.unpack(parameters), shape, covered) for x in rows)
    return eps, uncond[0] if uncond else None


def _grad_log_p(guide: Guide, inputs: Tensor, precision: str) -> Tensor:
    """Returns the gradient of log p(label | inputs) with respect to the inputs, [M, B, d + F]."""
    (parameters, shape), labels = guide
    with torch.enable_grad():
        x = inputs.detach().requires_grad_()
        y = operator.mlp(x, shape.unpack(parameters), shape, _covered(shape, precision))
        chosen = y.log_softmax(dim=-1).gather(-1, labels[..., None])
        return torch.autograd.grad(chosen.sum(), x)[0]


def _covered(shape: MLPShape, precision: str) -> str | None:
    """Returns the precision for the kernels, or None if PyTorch must run the network."""
    return precision if gap_of(shape, torch.float32) is None else None
