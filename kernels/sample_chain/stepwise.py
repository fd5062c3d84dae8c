"""The reverse process step by step, for networks too large to keep a whole chain in one launch.

The same algorithm as :mod:`.reference`, out of the operations mlp and reverse_step. All that
changes from step to step lies on the device, the number of the step too, so on CUDA one step is
captured as a graph and replayed: between steps the GPU does not wait for Python.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .._dispatch import device_of
from ..mlp import MLPShape, operator
from ..mlp.layout import gap_of
from ..reverse_step import reverse_step
from .reference import Condition, Guide, Network, conditional_inputs


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
    """Samples [M, B, d] and the trajectory [K, M, B, d], from x_T [M, B, d]."""
    x = x.clone()
    number = torch.zeros(1, dtype=torch.int64, device=x.device)  # of the step

    def step() -> None:
        features = time_features.index_select(1, number).expand(*x.shape[:2], -1)
        inputs = torch.cat((x, features), dim=-1)  # [M, B, d + F]
        eps, uncond = _predictions(denoiser, inputs, condition, precision)
        grad = None
        if guide is not None:
            grad = _grad_log_p(guide, inputs, precision)[..., : x.shape[2]].contiguous()
        coefficients = table.index_select(1, number)[:, 0]
        x.copy_(
            reverse_step(
                x, eps, coefficients, grad_log_p=grad, eps_uncond=uncond,
                seed=seed, step=number, first_row=first_row, backend="triton",
            )
        )  # fmt: skip
        number.add_(1)

    steps = table.shape[1]
    kept = [x.clone()] if keep_every else []
    with device_of(x):
        run = _captured(step, (x, number)) if x.is_cuda and x.numel() and steps else step
        for done in range(1, steps + 1):
            run()
            if keep_every and (done % keep_every == 0 or done == steps):
                kept.append(x.clone())
    return x, torch.stack(kept) if kept else x.new_empty((0, *x.shape))


def _captured(step: Callable[[], None], changed: tuple[Tensor, ...]) -> Callable[[], None]:
    """The step as a CUDA graph, not yet run; what it changes is restored after the warm-up."""
    before = [tensor.clone() for tensor in changed]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles kernels and lets libraries allocate, neither of which can be captured
    torch.cuda.current_stream().wait_stream(stream)
    for tensor, value in zip(changed, before, strict=True):
        tensor.copy_(value)
    graph = torch.cuda.CUDAGraph()
    # Only this thread must do nothing that a capture forbids, not those of other libraries.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        step()
    return graph.replay


def _predictions(
    denoiser: Network, inputs: Tensor, condition: Condition | None, precision: str
) -> tuple[Tensor, Tensor | None]:
    """The noise that the denoiser sees, and with classifier-free guidance that without a class."""
    parameters, shape = denoiser
    rows = [inputs] if condition is None else conditional_inputs(inputs, condition)
    covered = _covered(shape, precision)
    eps, *uncond = (operator.mlp(x, shape.unpack(parameters), shape, covered) for x in rows)
    return eps, uncond[0] if uncond else None


def _grad_log_p(guide: Guide, inputs: Tensor, precision: str) -> Tensor:
    """Gradient of log p(label | inputs) with respect to the inputs, [M, B, d + F]."""
    (parameters, shape), labels = guide
    with torch.enable_grad():
        x = inputs.detach().requires_grad_()
        y = operator.mlp(x, shape.unpack(parameters), shape, _covered(shape, precision))
        chosen = y.log_softmax(dim=-1).gather(-1, labels[..., None])
        return torch.autograd.grad(chosen.sum(), x)[0]


def _covered(shape: MLPShape, precision: str) -> str | None:
    """The precision of the kernels, or None for PyTorch where they do not cover a network."""
    return precision if gap_of(shape, torch.float32) is None else None
