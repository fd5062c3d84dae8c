"""Finds the operation that left the range of half precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class _Observation(NamedTuple):
    """One call of an operation; both flags stay on the device until they are asked for."""

    operation: str
    precision: str
    finite_inputs: Tensor  # bool []
    finite_outputs: Tensor  # bool []


# Global, not per thread: the backward pass of CUDA tensors runs in threads of autograd's.
_watches: list[list[_Observation]] = []


@contextmanager
def detect_overflow() -> Iterator[None]:
    """Raises at the end of the block if an operation in it made infinity or NaN of finite numbers.

    The kernels never clip: a number beyond the range of fp16 becomes infinity or NaN and reaches
    the output and the loss, as in PyTorch. This context names the operation that did it. Inside the
    block each call checks its inputs and outputs on the device, without waiting for it; the end of
    the block waits once. It works with ``torch.compile``, and around replays of a CUDA graph that
    was captured inside the block.

    Raises:
        FloatingPointError: an operation overflowed; one line names the first one and remedies.
    """
    watch: list[_Observation] = []
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)
    for number, seen in enumerate(watch, start=1):
        if seen.finite_inputs.item() and not seen.finite_outputs.item():
            raise FloatingPointError(
                f"{seen.operation} (call {number} of {len(watch)}) overflowed in {seen.precision}: "
                "scale its inputs down, or use precision 'bf16', 'tf32' or 'fp32'"
            )


def observe(
    operation: str, precision: str | None, inputs: list[Tensor], outputs: list[Tensor]
) -> None:
    """Records whether inputs and outputs are finite, inside :func:`detect_overflow` only."""
    if not _watches:
        return
    seen = _Observation(
        operation, precision or "the precision of PyTorch", _finite(inputs), _finite(outputs)
    )
    for watch in _watches:
        watch.append(seen)


def _finite(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
