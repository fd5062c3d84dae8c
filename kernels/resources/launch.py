"""Launches of kernels on CPU tensors, intercepted and described instead of made."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from .. import _perceptrons
from .._dispatch import imitated_capability
from ..mlp.kernel import forward_kernel


@dataclass(frozen=True)
class Launch:
    """A kernel and everything that its compilation depends on; can be sent to another process."""

    module: str
    kernel: str
    arch: int
    signature: dict[str, str]
    constants: dict
    attributes: dict
    options: dict


def launches(arch: int, cases: dict[str, Callable[[], None]]) -> dict[str, Launch]:
    """Returns the different launches of the cases on an architecture, by name."""
    found: dict[str, Launch] = {}
    with _intercepted_launches() as intercepted, _imitated(arch):
        for case, run in cases.items():
            run()
            for kernel, args, kwargs in intercepted:
                launch = _describe(kernel, args, kwargs, arch)
                if launch not in found.values():
                    name = f"{case}: {kernel.__name__}"
                    number = sum(other.startswith(name) for other in found) + 1
                    found[name if number == 1 else f"{name} {number}"] = launch
            intercepted.clear()
    return found


@contextmanager
def _intercepted_launches() -> Iterator[list]:
    """Makes launches append to a list, which it yields, instead of running."""
    intercepted = []

    def run(kernel, *args, grid, warmup, **kwargs):  # noqa: ARG001
        intercepted.append((kernel, args, kwargs))

    with mock.patch.object(JITFunction, "run", run):
        yield intercepted


@contextmanager
def without_launches() -> Iterator[None]:
    """Makes drop-ins on a CPU take the path to their kernels, whose launches do nothing.

    What is left of a call is the work of the host; its results are meaningless.
    """
    changes: tuple[tuple[object, str, Callable], ...] = (
        (_perceptrons, "_worth_fusing", lambda x: type(x) in _perceptrons.PLAIN_TENSORS),
        (_perceptrons, "problem_of", lambda _: None),
        (type(forward_kernel), "run", lambda *_, **__: None),  # compiled or interpreted kernels
    )
    with ExitStack() as stack:
        for owner, name, replacement in changes:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


@contextmanager
def _imitated(arch: int) -> Iterator[None]:
    """Makes launches on CPU tensors the ones for an architecture."""
    token = imitated_capability.set(divmod(arch, 10))
    yield
    imitated_capability.reset(token)


def _describe(kernel: JITFunction, args: tuple, kwargs: dict, arch: int) -> Launch:
    """Returns what triton would compile for a launch, found the way its own launcher finds it."""
    backend = make_backend(_target(arch))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*args, **kwargs)
    options, signature, constants, attributes = kernel._pack_args(
        backend, kwargs, bound, specialization, options
    )
    chosen = {name: getattr(options, name) for name in kwargs if name not in bound}  # num_warps
    return Launch(
        kernel.__module__, kernel.__name__, arch, signature, constants, attributes, chosen
    )


def _target(arch: int) -> GPUTarget:
    return GPUTarget("cuda", arch, 32)
