"""What steps of schedulers return: read by name, by key or by place, as in diffusers."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor


class _Keyed:
    """A named tuple that can also be read as a dict."""

    def __getitem__(self: Any, key: Any) -> Any:
        return getattr(self, key) if key in self._fields else tuple.__getitem__(self, key)

    def to_tuple(self: Any) -> tuple[Tensor, ...]:
        """Returns a plain tuple."""
        return tuple(self)

    def keys(self: Any) -> tuple[str, ...]:
        """Returns the names of the tensors."""
        return self._fields

    def values(self) -> tuple[Tensor, ...]:
        """Returns the tensors."""
        return self.to_tuple()

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yields each name with its tensor."""
        return zip(self.keys(), self.values(), strict=True)


class _PrevSample(NamedTuple):
    prev_sample: Tensor  # x of the next timestep, the shape of the sample


class _PrevAndOriginalSample(NamedTuple):
    prev_sample: Tensor  # x of the next timestep, the shape of the sample
    pred_original_sample: Tensor  # the x_0 that the model's output amounts to, same shape


class PrevOutput(_Keyed, _PrevSample):
    """The result of a step that tells no x_0: ``prev_sample``.

    ``output.prev_sample``, ``output["prev_sample"]`` and ``output[0]`` are the same.
    """


class StepOutput(_Keyed, _PrevAndOriginalSample):
    """The result of a step: ``prev_sample`` and ``pred_original_sample``.

    ``output.prev_sample``, ``output["prev_sample"]`` and ``output[0]`` are the same.
    """
