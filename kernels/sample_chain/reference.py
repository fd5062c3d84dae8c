"""The whole reverse process in plain PyTorch, guided or not.

Algorithm 2 of Ho et al. 2020::

    x_T ~ N(0, I)
    for each step of the table:
        output = MLP(x, feature)  or  MLP(x, feature, class)
        grad   = d/dx log softmax(classifier(x, feature))[label]      guided by a classifier
        uncond = MLP(x, feature, no class)                            or classifier-free
        x      = reverse_step(x, output, coefficients, z, grad, uncond)

A table of seven columns is that of a linear multistep method; its steps also remember a combination
of x and output for the next one, see :func:`~..reverse_step.reference.memory_coefficients`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..mlp import MLPShape
from ..mlp import reference as mlp
from ..philox import Stream, normal_rows
from ..q_sample.reference import gather_points
from ..reverse_step.reference import MEMORY, NOISE, memory_coefficients, reverse_step

# Rows at once: on a CPU so few that a layer's activations stay in a core's cache, on a GPU so many
# that launches are cheap. Noise is drawn for many steps at once, to spread the cost of the call.
_CACHE_ROWS, _GPU_ROWS = 1000, 100_000
# Rows that fewer are filled up to on a CPU: its matrix products take other paths for a few rows,
# which round differently, and a sample must not depend on how many are drawn with it.
LEAST_ROWS = 32
NOISE_STEPS = 50


class Network(NamedTuple):
    """M networks of one shape."""

    parameters: Tensor  # float32 [M, P]
    shape: MLPShape


class Guide(NamedTuple):
    """A classifier of noisy points, and the classes to guide the samples to."""

    classifier: Network
    labels: Tensor  # int64 [M, B]


class Condition(NamedTuple):
    """The class of each row, whose feature follows those of point and timestep in the input.

    ``free`` turns classifier-free guidance on: each step also runs the denoiser without a class.
    """

    class_features: Tensor  # float32 [M, C + 1, E]; the last entry stands for no class
    labels: Tensor  # int64 [M, B], C for no class
    free: bool = False


_Part = TypeVar("_Part", Guide, Condition, Guide | None, Condition | None)

# Returns, for the input [M, B, d + F] of a step, the denoiser's output; its output without a class,
# with classifier-free guidance; and the gradient of log p(label), [M, B, d + F], with a guide.
Evaluation = Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor | None]]


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
) -> tuple[Tensor, Tensor]:
    """Returns samples [M, B, d] and the trajectory [K, M, B, d] of chains from x_T [M, B, d]."""
    count = x.shape[1]
    if not x.is_cuda:
        x, guide, condition = filled_up(x, guide, condition, rows_in_last_chunk(count))

    def evaluation_of(rows: slice) -> Evaluation:
        return partial(_evaluate, denoiser, rows_of(guide, rows), rows_of(condition, rows))

    x, trajectory = run_in_chunks(
        evaluation_of, x, table, time_features, seed, first_row, keep_every
    )
    return x[:, :count], trajectory[:, :, :count]


def run_in_chunks(
    evaluation_of: Callable[[slice], Evaluation],
    x: Tensor,
    table: Tensor,
    time_features: Tensor,
    seed: Tensor,
    first_row: int,
    keep_every: int,
) -> tuple[Tensor, Tensor]:
    """Runs the chain of any number of rows, some of them at a time.

    Args:
        evaluation_of: returns what evaluates the networks for some of the rows.

    Returns:
        samples and trajectory, as :func:`sample_chain`, which has the other arguments.
    """
    count, size = x.shape[1], _GPU_ROWS if x.is_cuda else _CACHE_ROWS
    chunks = []
    for start in range(0, max(1, count), size):
        rows = slice(start, start + size)
        chunks.append(
            run_chain(
                evaluation_of(rows), x[:, rows], table, time_features, seed, first_row + start,
                keep_every,
            )
        )  # fmt: skip
    samples, trajectories = zip(*chunks, strict=True)
    return torch.cat(samples, dim=1), torch.cat(trajectories, dim=2)


def filled_up(
    x: Tensor, guide: Guide | None, condition: Condition | None, rows: int
) -> tuple[Tensor, Guide | None, Condition | None]:
    """Returns the arguments with more rows at the end, so that these last rows are not too few."""
    missing = max(0, LEAST_ROWS - rows)
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
        guide = guide and guide._replace(labels=F.pad(guide.labels, (0, missing)))
        condition = condition and condition._replace(labels=F.pad(condition.labels, (0, missing)))
    return x, guide, condition


def rows_in_last_chunk(count: int) -> int:
    """Returns the number of rows in the last of the chunks that a CPU runs."""
    return 1 + (count - 1) % _CACHE_ROWS


def rows_of(part: _Part, rows: slice) -> _Part:
    """Returns the guide or the condition of some of the rows."""
    return None if part is None else part._replace(labels=part.labels[:, rows])


def run_chain(
    evaluate: Evaluation,
    x: Tensor,
    table: Tensor,
    time_features: Tensor,
    seed: Tensor,
    first_row: int,
    keep_every: int,
) -> tuple[Tensor, Tensor]:
    """Runs the chain of so few rows that they go through each step at once.

    Args:
        evaluate: evaluates the networks at the input [M, B, d + F] of a step.

    Returns:
        samples and trajectory, as :func:`sample_chain`, which has the other arguments.
    """
    rows = torch.arange(first_row, first_row + x.shape[1], device=x.device)
    noisy = bool((table[..., NOISE] != 0).any())
    kept = [x] if keep_every else []
    memory = torch.zeros_like(x)
    for step in range(table.shape[1]):
        if noisy and step % NOISE_STEPS == 0:
            steps = torch.arange(step, min(step + NOISE_STEPS, table.shape[1]), device=x.device)
            noise = noise_of_steps(seed, steps, rows, x.shape[2])  # [S, M, B, d]
        features = time_features[:, step, None].expand(*x.shape[:2], -1)
        inputs = torch.cat((x, features), dim=-1)  # [M, B, d + F]
        eps, uncond, grad = evaluate(inputs)
        grad = None if grad is None else grad[..., : x.shape[2]]
        z = noise[step % NOISE_STEPS] if noisy else None
        now, x = x, reverse_step(x, eps, table[:, step], z, grad, uncond)
        if table.shape[2] > MEMORY:
            x = x + table[:, step, MEMORY, None, None] * memory
            to_remember = memory_coefficients(table[:, step])
            memory = reverse_step(now, eps, to_remember, None, grad, uncond)
        if keep_every and ((step + 1) % keep_every == 0 or step + 1 == table.shape[1]):
            kept.append(x)
    return x, torch.stack(kept) if kept else x.new_empty((0, *x.shape))


def noise_of_steps(seed: Tensor, steps: Tensor, rows: Tensor, dim: int) -> Tensor:
    """Draws the noise of steps [S] for rows [B], float32 [S, M, B, d]."""
    step = steps.repeat_interleave(len(rows))[None]  # [1, S * B]
    noise = normal_rows(seed, Stream.NOISE, step, rows.repeat(len(steps)), dim)  # [M, S * B, d]
    return noise.unflatten(1, (len(steps), len(rows))).transpose(0, 1)


def _evaluate(
    denoiser: Network, guide: Guide | None, condition: Condition | None, inputs: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns the networks' part in a step, as an :data:`Evaluation`."""
    networks = denoiser.shape.unpack(denoiser.parameters)
    rows = [inputs] if condition is None else conditional_inputs(inputs, condition)
    eps, *uncond = (mlp.mlp(each, networks, denoiser.shape) for each in rows)
    grad = None if guide is None else grad_log_p(guide, inputs)
    return eps, uncond[0] if uncond else None, grad


def conditional_inputs(inputs: Tensor, condition: Condition) -> list[Tensor]:
    """Returns the denoiser's input [M, B, d + F + E] for each evaluation of a step.

    With classifier-free guidance there are two: with the labels, and without a class.
    """
    class_features, labels, classifier_free = condition
    no_class = torch.full_like(labels, class_features.shape[1] - 1)
    return [
        torch.cat((inputs, gather_points(class_features, each)), dim=-1)
        for each in ((labels, no_class) if classifier_free else (labels,))
    ]


def grad_log_p(guide: Guide, inputs: Tensor) -> Tensor:
    """Returns the gradient of log p(label | inputs) with respect to the inputs, [M, B, d + F]."""
    (parameters, shape), labels = guide
    networks = shape.unpack(parameters)
    logits, _, preactivations = mlp.forward(inputs, networks, shape)
    return mlp.input_gradient(grad_of_logits(logits, labels), preactivations, networks, shape)


def grad_of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the gradient of log softmax(logits)[label] with respect to the logits."""
    grad = -logits.softmax(dim=-1)
    return grad.scatter_add_(-1, labels[..., None], torch.ones_like(grad[..., :1]))
