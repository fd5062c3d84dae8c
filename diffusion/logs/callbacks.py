"""What a training tells those who listen to it."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from ..errors import UserError, shown


@runtime_checkable
class Callback(Protocol):
    """Is told how a training goes: its settings, then rows of numbers, then its end.

    A class that inherits from this one writes only the methods that it needs. In training on
    several devices, callbacks are called in the first process alone.
    """

    def on_begin(self, settings: dict[str, Any]) -> None:
        """Is called before the first step.

        Args:
            settings: plain values by name. ``network`` is ``denoiser`` or ``classifier``,
                ``first_step`` the number of steps done before, ``total_steps`` that of the recipe;
                ``data``, ``points``, ``dim``, ``seed`` and ``device`` say what is trained, and
                ``recipe/...`` and ``schedule/...`` are the fields of those two. For a network of
                your own ``model`` is the name of its class.
        """

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """Is called every fifty steps, after the last one, and where something is measured.

        Args:
            step: number of steps done, which only grows.
            values: numbers by name: ``loss``, the mean of these steps; ``lr``, the learning
                rate of the step; ``seconds`` since the beginning; and what else was measured at
                this step, such as a validation's ``nll``.
        """

    def on_end(self) -> None:
        """Is called after the last step, and where a training ends early."""


class CallbackError(UserError):
    """A callback has failed; what was trained is intact."""


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raises :class:`UserError` unless these are callbacks."""
    if not isinstance(callbacks, list | tuple):
        raise UserError(f"callbacks must be a list of Callbacks, got {shown(callbacks)}")
    for callback in callbacks:
        if not isinstance(callback, Callback) or isinstance(callback, type):
            raise UserError(
                "callbacks must be objects with methods on_begin, on_log and on_end, which "
                f"Callback has, got {shown(callback)}"
            )


def call(callback: Callback, method: str, *arguments: Any) -> None:
    """Calls a method of a callback, which may take gradients: training itself records none.

    Raises:
        CallbackError: it has failed; the message names the callback.
    """
    try:
        with torch.enable_grad():
            getattr(callback, method)(*arguments)
    except Exception as error:  # of any kind, from code of any user
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        where = f" at step {arguments[0]}" if method == "on_log" else ""
        raise CallbackError(
            f"callback {type(callback).__name__} has failed in {method}{where}: {what}"
        ) from error
