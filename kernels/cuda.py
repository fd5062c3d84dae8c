"""CUDA: the device that launches go to, and graphs of launches that are replayed without Python."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from ._dispatch import log_once

_NOTHING = nullcontext()


def device_of(tensor: Tensor) -> AbstractContextManager:
    """Returns a context in which the current device is that of a CUDA tensor.

    Launches, streams and events are those of the current device. For a tensor that is elsewhere, or
    on the current device, the context does nothing.
    """
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return _NOTHING
    return torch.cuda.device(tensor.device)


@contextmanager
def side_stream() -> Iterator[torch.cuda.Stream]:
    """Runs its block on a new stream, between earlier and later work of the current stream.

    The run before a capture belongs there: it compiles and loads kernels and lets libraries
    allocate, none of which can be captured.

    Yields:
        The stream, of the current device.
    """
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield stream
    current.wait_stream(stream)


def capture(
    function: Callable[[], object], stream: torch.cuda.Stream | None = None
) -> torch.cuda.CUDAGraph:
    """Returns the launches of a function as a CUDA graph, which has not been run.

    The stream is always given to PyTorch, whose own stream for captures belongs to the device that
    was the first to have one. The capture forbids certain calls to this thread only, because the
    threads of other libraries, such as JAX, may make them at any time.

    Args:
        function: the work to capture. It has run before, so that all its kernels are loaded.
        stream: the stream to capture on, such as the one of :func:`side_stream` on which libraries
            have allocated; None makes one on the current device.

    Raises:
        RuntimeError: the function does something that cannot be captured, such as waiting for the
            device.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream() if stream is None else stream
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        function()
    return graph


def capture_if_possible(
    function: Callable[[], object], stream: torch.cuda.Stream | None = None
) -> torch.cuda.CUDAGraph | None:
    """Returns the :func:`capture` of a function, or None for one that no graph can hold.

    What is not of this package, such as a user's own network, may wait for the device. The log then
    says so once, and whoever calls runs the function itself.

    Args:
        function, stream: see :func:`capture`.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    random_state = generator.get_state()
    # A capture that fails may leave its own stream as the current one.
    with torch.cuda.stream(torch.cuda.current_stream()):
        try:
            return capture(function, stream)
        except RuntimeError as error:
            _end_capture_of(generator, random_state)
            cause = error.__context__ or error  # the end of a failed capture fails, too
            reason = " ".join(str(cause).split("\n", 1)[0].split())
            log_once(f"each step is launched by Python, as no CUDA graph holds it: {reason}")
    return None


def _end_capture_of(generator: torch.Generator, state: Tensor) -> None:
    """Gives a generator a state of its own again, that of before a capture.

    After a capture that has failed it still takes part in it, and draws nothing outside of it.
    """
    fresh = torch.Generator(generator.device)
    fresh.set_state(state)
    generator.graphsafe_set_state(fresh)
