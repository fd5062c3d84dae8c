"""The noisy rows of training steps, for networks that are no perceptrons of the kernels."""

from torch import Tensor

from .._dispatch import elementwise_gap, use_triton
from .ahead import DrawsAhead
from .reference import Draw, TrainingData, gather_points, q_sample


class Batches:
    """The rows of a run's steps, those that a fused training step draws.

    Args:
        data: the source of the rows.
        seed: int64 [M].
        batch_size, refresh, first_row, rows: as in :func:`flashpoint.kernels.train_step`.
        backend: ``"torch"`` forces plain PyTorch, ``"triton"`` the kernel; None chooses.

    Attributes:
        rows: number of rows of a step.
        fused: True if a kernel draws the rows, which a CUDA graph can hold.
    """

    def __init__(
        self,
        data: TrainingData,
        seed: Tensor,
        batch_size: int,
        refresh: int | None = None,
        first_row: int = 0,
        rows: int | None = None,
        backend: str | None = None,
    ):
        self.rows = batch_size - first_row if rows is None else rows
        self.fused = use_triton(backend, "points", data.points, elementwise_gap(data.points))
        no_features = data.points.new_empty((1, data.forward_table.shape[1], 0))
        self._data = data._replace(time_features=no_features)
        self._seed, self._of_all, self._refresh = seed, batch_size, refresh
        self._first_row = first_row
        self._ahead = None
        if not self.fused:
            self._ahead = DrawsAhead(self._data, seed, batch_size, refresh, first_row, self.rows)

    def draw(self, step: int | Tensor) -> tuple[Tensor, Draw]:
        """Returns x_t, float32 [M, B, d], and the draw behind it, which is not to be changed.

        Args:
            step: number of the step, an int or an int64 scalar on the device.
        """
        points = self._data.points
        if self._ahead is None:
            from . import kernel

            inputs, draw = kernel.draw(
                self._data, self._seed, step, self._of_all, self._refresh, self._first_row,
                self.rows,
            )  # fmt: skip
            return inputs[..., : points.shape[-1]].contiguous(), draw
        draw = self._ahead.draw(int(step))
        x_0 = gather_points(points, draw.index)
        return q_sample(x_0, self._data.forward_table, draw.t, draw.eps), draw

    def clean(self, draw: Draw) -> Tensor:
        """Returns the points x_0 [M, B, d] of a draw."""
        return gather_points(self._data.points, draw.index)

    def labels(self, draw: Draw) -> Tensor:
        """Returns the classes of the points of a draw, int64 [M, B]."""
        labels = self._data.labels
        assert labels is not None  # of a classifier's data
        return labels.expand(len(draw.index), -1).gather(1, draw.index)
