"""Compilation of a launch for its architecture, and the resources that the kernel takes there."""

import importlib
import io
import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest import mock

import triton
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from . import sass
from .faults import faults_of
from .launch import Launch, _target

# Seconds of processor time that a cold compilation may take on the machine that writes the record.
PATIENCE = 5.0


@dataclass(frozen=True)
class Resources:
    """The resources of a compiled kernel; sizes in bytes."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    tensor_core: dict[str, int]  # instructions of each kind and shape
    faults: dict[str, str]  # a description for each kind of fault
    seconds: float  # processor time of a cold compilation; other processes do not count


def compile_offline(launch: Launch, *, keep: bool = False) -> Resources:
    """Compiles a kernel and returns its resources.

    Args:
        launch: launch of the kernel.
        keep: True leaves the compiled kernel in Triton's cache, where launches on a GPU find it.
    """
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    source = _source(kernel)(kernel, launch.signature, launch.constants, launch.attributes)
    compiled, log, seconds = _compile_cold(source, launch, keep)
    code = sass.parse(sass.disassembled(compiled.asm["cubin"]))
    return Resources(
        registers=_number(r"Used (\d+) registers", log),
        spill_stores=_number(r"(\d+) bytes spill stores", log),
        spill_loads=_number(r"(\d+) bytes spill loads", log),
        stack=_number(r"(\d+) bytes stack frame", log),
        shared=compiled.metadata.shared,
        tensor_core=sass.tensor_core(code),
        faults=faults_of(launch, _products(compiled.asm), code, log),
        seconds=round(seconds, 1),
    )


def _source(kernel: JITFunction) -> type[ASTSource]:
    """Returns the class of a kernel's source, in Triton or in Gluon."""
    if not kernel.is_gluon():
        return ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    return GluonASTSource


def _products(asm: dict[str, str]) -> str:
    """Returns the code of a kernel that shows its products as they are written."""
    return asm["ttir"] if "ttir" in asm else asm["ttgir"]  # Gluon has no ttir


def _compile_cold(source: ASTSource, launch: Launch, keep: bool) -> tuple[Any, str, float]:
    """Returns the compiled kernel, the messages of ptxas, and the processor time in seconds.

    Other processes on the machine can only make it longer, so a slow compilation is repeated up to
    twice and the shortest time counts, unless the kernel is only to be kept.
    """
    shortest = math.inf
    for _ in range(3):
        with _cold_and_verbose(keep), redirect_stdout(io.StringIO()) as log:
            start = _processor_time()
            compiled = triton.compile(source, target=_target(launch.arch), options=launch.options)
            shortest = min(shortest, _processor_time() - start)
        if keep or shortest <= PATIENCE:
            break
    return compiled, log.getvalue(), shortest


@contextmanager
def _cold_and_verbose(keep: bool) -> Iterator[None]:
    """Makes Triton compile anew, to an empty cache unless ``keep``, and print what ptxas says."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {"TRITON_ALWAYS_COMPILE": "1"} if keep else {"TRITON_CACHE_DIR": folder}
        with mock.patch.dict(os.environ, changes | {"TRITON_DUMP_PTXAS_LOG": "1"}):
            yield


def _processor_time() -> float:
    """Returns seconds of this process and of those that it has waited for, such as ptxas."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern} in {text}"
    return int(found[1])
