"""The whole reverse process on a CPU, in pieces of few rows that stay in the cache.

The chains of :mod:`.reference` in float32, with the passes of :mod:`..mlp.pieces`. Rows do not
depend on each other, so each thread takes its own all the way from noise to samples.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..mlp import MLPShape
from ..mlp.pieces import Piece, layers_of, pieces_of, some, split
from ..workers import Halted, side_by_side, workers_for
from .reference import (
    Condition,
    Evaluation,
    Guide,
    Network,
    conditional_inputs,
    filled_up,
    grad_of_logits,
    run_chain,
)


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
    models, rows = x.shape[:2]
    shape = max((each.shape for each in _networks(denoiser, guide)), key=_widest)
    workers = workers_for(models * rows)
    done: list[tuple[slice, slice, Tensor, Tensor]] = []

    def work(share: slice, stops: Callable[[], bool]) -> None:
        for of, rows_of_share in pieces_of(shape, models, share.stop - share.start):
            own = slice(share.start + rows_of_share.start, share.start + rows_of_share.stop)
            evaluate = _evaluation(denoiser, guide, condition, of, own, stops)
            samples, kept = run_chain(
                evaluate, x[of, own], table[of], time_features[of], seed[of],
                first_row + own.start, keep_every,
            )  # fmt: skip
            done.append((of, own, samples, kept))

    shares = split(rows, -(-rows // workers))
    side_by_side([partial(work, share) for share in shares])
    samples = torch.empty_like(x)
    trajectory = x.new_empty((len(done[0][3]), *x.shape))
    for of, own, some_samples, kept in done:
        samples[of, own], trajectory[:, of, own] = some_samples, kept
    return samples[:, :count], trajectory[:, :, :count]


def _networks(denoiser: Network, guide: Guide | None) -> list[Network]:
    return [denoiser] if guide is None else [denoiser, guide.classifier]


def _widest(shape: MLPShape) -> int:
    return max(shape.widths)


def _evaluation(
    denoiser: Network,
    guide: Guide | None,
    condition: Condition | None,
    models: slice,
    rows: slice,
    stops: Callable[[], bool],
) -> Evaluation:
    """Returns the networks' part in a step of some models and rows, as long as nothing stops."""
    denoise = _function(denoiser, models)
    if condition is not None:
        features, labels, free = condition
        condition = Condition(features[models], labels[models, rows], free)
    if guide is not None:
        grad_log_p = _gradient(guide.classifier, models, guide.labels[models, rows])

    def evaluate(inputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if stops():
            raise Halted
        given = [inputs] if condition is None else conditional_inputs(inputs, condition)
        eps, *uncond = (denoise(each) for each in given)
        grad = None if guide is None else grad_log_p(inputs)
        return eps, uncond[0] if uncond else None, grad

    return evaluate


def _function(network: Network, models: slice) -> Callable[[Tensor], Tensor]:
    """Returns the networks of some models as a function from [M, B, in] to [M, B, out]."""
    shape = network.shape
    piece, layers = Piece(shape, keep=False), layers_of(network.parameters, shape, models)

    def function(x: Tensor) -> Tensor:
        y = piece.forward(some(x, slice(0, len(x))), layers)
        return y.clone().view(*x.shape[:2], -1)

    return function


def _gradient(classifier: Network, models: slice, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns the gradient of log p(labels [M, B]) as a function of the classifiers' input."""
    shape = classifier.shape
    piece, layers = Piece(shape, keep=True), layers_of(classifier.parameters, shape, models)
    own = some(labels, slice(0, len(labels)))

    def gradient(x: Tensor) -> Tensor:
        logits = piece.forward(some(x, slice(0, len(x))), layers)
        return piece.input_gradient(grad_of_logits(logits, own), layers).view(x.shape)

    return gradient
