"""The least cost of work: floating-point operations, bytes, and the time that they take."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

PARAMETER_BUFFERS = 8  # one read and one write of parameters, two moments and average


@dataclass(frozen=True)
class Cost:
    """The least cost of a work.

    Attributes:
        flops: floating-point operations of its matrix products.
        bytes: memory traffic in bytes if all intermediate results stay on the chip.
    """

    flops: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)


@dataclass(frozen=True)
class Rates:
    """Measured rates of a device: operations and bytes per second."""

    matmul: dict[str, float]  # by precision
    memory: float
    cache: float  # a buffer that stays in the last-level cache

    def floor(self, cost: Cost, precision: str) -> float:
        """Returns the least number of seconds that work of this cost takes."""
        return max(cost.flops / self.matmul[precision], cost.bytes / self.memory)


def weights(widths: Sequence[int]) -> int:
    """Returns the number of weights of an MLP, without biases."""
    return sum(width_in * width_out for width_in, width_out in pairwise(widths))


def training_step(widths: Sequence[int], rows: int, dim: int = 2) -> Cost:
    """Returns the cost of a training step: forward pass, gradients and one AdamW update.

    Gradients are those of the inputs of all layers but the first, and of the weights. The batch is
    drawn on the chip; a row reads its point. The five numbers of each timestep, 10 KB for 500, stay
    on the chip, too.
    """
    total, first = weights(widths), widths[0] * widths[1]
    flops = rows * (2 * total + 2 * (total - first) + 2 * total)
    return Cost(flops, 4 * dim * rows + 4 * PARAMETER_BUFFERS * total)


def chain(denoiser: Sequence[int], classifier: Sequence[int] | None, rows: int, steps: int) -> Cost:
    """Returns the cost of reverse steps, guided if a classifier is given.

    A step is the denoiser's forward pass; a guided step also the classifier's forward pass and
    input gradient. Rows and weights stay on the chip; x_T is drawn there and the samples are
    written once.
    """
    flops = 2 * weights(denoiser)
    total = weights(denoiser)
    if classifier is not None:
        flops += 4 * weights(classifier)
        total += weights(classifier)
    return Cost(flops * rows * steps, 2 * total + 4 * denoiser[-1] * rows)
