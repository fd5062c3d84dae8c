"""The reverse process of any networks, which are given as a function of a step's input."""

from collections.abc import Callable

from torch import Tensor

from .._dispatch import use_triton
from . import stepwise
from .reference import Evaluation, filled_up, rows_in_last_chunk, run_in_chunks


def sample_chain(
    evaluation_of: Callable[[slice], Evaluation],
    x: Tensor,
    table: Tensor,
    time_features: Tensor,
    seed: Tensor,
    first_row: int,
    keep_every: int,
) -> tuple[Tensor, Tensor]:
    """Returns samples [M, B, d] and the trajectory [K, M, B, d] of chains from x_T [M, B, d].

    The noise is that of :func:`flashpoint.kernels.sample_chain`. On CUDA a step is captured as a
    graph if the networks allow it.

    Args:
        evaluation_of: returns what evaluates the networks for a range of the rows, to which a few
            that nobody asked for may be added at the end.
        x: float32 [M, B, d].
        table: float32 [M, R, 4 or 7].
        time_features: float32 [M, R, F].
        seed: int64 [M].
        first_row: global number of the first row.
        keep_every: number of rows of the table between two points of the trajectory; 0 keeps none.
    """
    count = x.shape[1]
    if use_triton(None, "x_T", x):
        evaluate = evaluation_of(slice(0, count))
        return stepwise.run_chain(evaluate, x, table, time_features, seed, first_row, keep_every)
    if not x.is_cuda:
        x, _, _ = filled_up(x, None, None, rows_in_last_chunk(count))
    x, trajectory = run_in_chunks(
        evaluation_of, x, table, time_features, seed, first_row, keep_every
    )
    return x[:, :count], trajectory[:, :, :count]
