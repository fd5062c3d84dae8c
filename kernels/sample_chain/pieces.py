"""The whole reverse process on a CPU, in pieces of few rows that stay in the cache.

The chains of :mod:`.reference` in float32, with the passes of :mod:`..mlp.pieces`. Rows do not
depend on each other, so each thread takes its own all the way from noise to samples.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from ..mlp.pieces import (
    Form,
    Layers,
    Memory,
    Rooms,
    form_of,
    forward,
    input_gradient,
    layers_of,
    pieces_of,
    split,
    steps_of_call,
)
from ..reverse_step.reference import NOISE
from ..scripts import scripted
from ..workers import Halted, side_by_side, workers_for
from .reference import LEAST_ROWS, NOISE_STEPS, Condition, Guide, Network, filled_up, noise_of_steps


class Denoiser(NamedTuple):
    """The network of one model, and the classes of the rows of a piece if it sees them."""

    layers: Layers
    form: Form
    rooms: Rooms
    class_features: Tensor | None  # [B, E]
    no_class: Tensor | None  # [B, E], with classifier-free guidance


class Classifier(NamedTuple):
    """The classifier of one model, and the labels that the rows of a piece are guided to."""

    layers: Layers
    form: Form
    rooms: Rooms
    labels: Tensor  # [B]


class State(NamedTuple):
    """Where a chain is after some steps."""

    x: Tensor  # [B, d]
    memory: Tensor  # [B, d], of a linear multistep method
    kept: list[Tensor]  # points of the trajectory, each [B, d]


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
    x, guide, condition = filled_up(x, guide, condition, count)
    steps = table.shape[1]
    widest = denoiser.shape if guide is None else max(
        denoiser.shape, guide.classifier.shape, key=lambda shape: max(shape.widths)
    )  # fmt: skip
    walk = scripted(_walk)  # before there are threads
    samples = torch.empty_like(x)
    trajectory = x.new_empty((1 + -(-steps // keep_every) if keep_every else 0, *x.shape))

    def work(models: slice, rows: slice, stops: Callable[[], bool]) -> None:
        memory = Memory(denoiser.shape, keep=False)
        memory_of_guide = None if guide is None else Memory(guide.classifier.shape, keep=True)
        pieces = pieces_of(widest, rows.stop - rows.start)
        for piece, model in product(pieces, range(models.start, models.stop)):
            own = slice(rows.start + piece.start, rows.start + piece.stop)
            run = partial(
                walk,
                denoiser=_denoiser(denoiser, condition, memory, model, own),
                classifier=_classifier(guide, memory_of_guide, model, own),
                total=steps, keep_every=keep_every,
            )  # fmt: skip
            calls = steps_of_call(widest, own.stop - own.start)
            samples[model, own], kept = _run_chain(
                run, x[model, own], table[model], time_features[model], seed[model],
                first_row + own.start, calls, stops,
            )  # fmt: skip
            if keep_every:
                trajectory[:, model, own] = torch.stack([x[model, own], *kept])

    side_by_side([partial(work, *share) for share in _shares(*x.shape[:2])])
    return samples[:, :count], trajectory[:, :, :count]


def _shares(models: int, rows: int) -> list[tuple[slice, slice]]:
    """Returns models and rows of the share of each thread.

    None has fewer rows of a model than a product needs to round as it does with more of them.
    """
    workers = workers_for(models * rows)
    if models % workers == 0 or rows < workers * LEAST_ROWS:
        return [(some, slice(0, rows)) for some in split(models, -(-models // workers))]
    return [(slice(0, models), some) for some in split(rows, -(-rows // workers))]


def _run_chain(
    walk: Callable[..., State],
    x: Tensor,
    table: Tensor,
    time_features: Tensor,
    seed: Tensor,
    first_row: int,
    calls: int,
    stops: Callable[[], bool],
) -> tuple[Tensor, list[Tensor]]:
    """Returns samples and kept points of a piece of one model.

    Args:
        walk: :func:`_walk` with the networks.
        x, table, time_features, seed, first_row: those of this model and this piece.
        calls: steps in one call of it.
        stops: returns True if the chain is to end early.
    """
    rows = torch.arange(first_row, first_row + len(x))
    noisy = bool((table[:, NOISE] != 0).any())
    state, noise = State(x, torch.zeros_like(x), []), None
    for start in range(0, len(table), NOISE_STEPS):
        end = min(start + NOISE_STEPS, len(table))
        if noisy:
            steps = torch.arange(start, end)
            noise = noise_of_steps(seed[None], steps, rows, x.shape[1])[:, 0]  # [S, B, d]
        for first in range(start, end, calls):
            if stops():
                raise Halted
            some = slice(first, min(first + calls, end))
            state = State(*walk(
                state, table[some], time_features[some],
                None if noise is None else noise[first - start : some.stop - start], first=first,
            ))  # fmt: skip
    return state.x, state.kept


def _denoiser(
    network: Network, condition: Condition | None, memory: Memory, model: int, rows: slice
) -> Denoiser:
    """Returns the denoiser of some rows of a model."""
    form = form_of(network.shape)
    feature, no_class = None, None
    if condition is not None:
        features = condition.class_features[model]
        feature = features[condition.labels[model, rows]]
        no_class = features[-1].expand_as(feature) if condition.free else None
    rooms = memory.rooms(rows.stop - rows.start)
    return Denoiser(layers_of(network.parameters[model], form), form, rooms, feature, no_class)


def _classifier(
    guide: Guide | None, memory: Memory | None, model: int, rows: slice
) -> Classifier | None:
    """Returns the classifier of some rows of a model, or None without a guide."""
    if guide is None or memory is None:
        return None
    parameters, shape = guide.classifier
    form = form_of(shape)
    rooms = memory.rooms(rows.stop - rows.start)
    return Classifier(layers_of(parameters[model], form), form, rooms, guide.labels[model, rows])


def _walk(
    state: State,
    table: Tensor,
    time_features: Tensor,
    noise: Tensor | None,
    denoiser: Denoiser,
    classifier: Classifier | None,
    first: int,
    total: int,
    keep_every: int,
) -> State:
    """Runs some steps of a chain, with the arithmetic of the reference's reverse step.

    Args:
        state: where the chain is.
        table: coefficients of these steps, [S, 4 or 7].
        time_features: [S, F].
        noise: [S, B, d].
        denoiser, classifier: the networks.
        first, total: number of the first of these steps, and of all steps of the chain.
        keep_every: keeps every so many steps and the last; 0 for none.
    """
    x, memory, kept = state.x, state.memory, state.kept
    for step in range(len(table)):
        numbers: list[float] = table[step].tolist()
        features = time_features[step].expand(len(x), -1)
        inputs = torch.cat((x, features), dim=1)  # [B, d + F]
        eps = _output(denoiser, inputs, numbers[3])
        if classifier is not None:
            eps = eps - numbers[3] * _grad_log_p(classifier, inputs)[:, : x.shape[1]]
        before = x
        x = numbers[0] * x + numbers[1] * eps
        if noise is not None:
            x = x + numbers[2] * noise[step]
        if len(numbers) > 4:
            x = x + numbers[4] * memory
            memory = numbers[5] * before + numbers[6] * eps
        if keep_every > 0 and ((first + step + 1) % keep_every == 0 or first + step + 1 == total):
            kept.append(x)
    return State(x, memory, kept)


def _output(denoiser: Denoiser, inputs: Tensor, scale: float) -> Tensor:
    """Returns the denoiser's output, with classifier-free guidance if there is ``no_class``."""
    layers, form, rooms, feature, no_class = denoiser
    given = inputs if feature is None else torch.cat((inputs, feature), dim=1)
    eps = forward(given, layers, form, rooms).y
    if no_class is not None:
        eps = eps.clone()
        free = forward(torch.cat((inputs, no_class), dim=1), layers, form, rooms).y
        eps = eps + scale * (eps - free)
    return eps


def _grad_log_p(classifier: Classifier, inputs: Tensor) -> Tensor:
    """Returns the gradient of log p(labels) with respect to the inputs, [B, d + F]."""
    layers, form, rooms, labels = classifier
    passed = forward(inputs, layers, form, rooms)
    grad = -passed.y.softmax(dim=1)
    label = labels[:, None]
    grad.scatter_add_(1, label, torch.ones_like(grad[:, :1]))
    return input_gradient(grad, passed, layers, form, rooms)
