"""What every shipped kernel takes on every architecture, compiled offline.

    python -m flashpoint.kernels.resources            compile, print, compare with the record
    python -m flashpoint.kernels.resources --update   write the record

No GPU and no driver is needed: the operations run on CPU tensors, their launches are intercepted
instead of made, and each is compiled for each architecture just as its launch there would be. The
record, ``resources.json``, is kept for each version of triton. Exit status 1 means that a kernel
spills more than it did, no longer uses the tensor cores, needs more shared memory than a chip has,
or takes more than five seconds of processor time to compile.

With another triton, in an environment of its own::

    python3.12 -m venv .venv
    .venv/bin/pip install torch==2.11.0 triton==3.6.0 "numpy<2.4" "setuptools>=64"
    .venv/bin/pip install --no-deps --no-build-isolation -e .
    .venv/bin/python -m flashpoint.kernels.resources
"""

import argparse
import importlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from ._dispatch import imitated_capability
from .adamw import Course, adamw_state, shadow_of
from .adamw.kernel import adamw_
from .mlp import MLPShape
from .mlp import kernel as mlp
from .q_sample import kernel as q_sample
from .q_sample.reference import TrainingData
from .reduce_grad import kernel as reduce_grad
from .reduce_grad.reference import ReducedGradient
from .reverse_step import kernel as reverse_step
from .sample_chain.kernel import draw_prior, sample_chain
from .sample_chain.reference import Condition, Guide, Network
from .train_step.kernel import buffers_of, training_sums

RECORD = Path(__file__).with_name("resources.json")
# Shared memory that one block can have, in bytes (CUDA C++ programming guide, table of technical
# specifications per compute capability).
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Seconds of processor time that a cold compilation may take.
PATIENCE = 5.0
_TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|UTC\w*MMA)\b")
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"

_DENOISER = MLPShape((3, 256, 256, 256, 256, 2))
_CLASSIFIER = MLPShape((3, 100, 200, 500, 5))
_CLASS_WIDTH = 16  # of what a conditional denoiser is told of a class


# What is compiled: the operations, called as their users call them.


def _network(shape: MLPShape) -> Network:
    return Network(torch.zeros(1, shape.num_parameters), shape)


def _train(precision: str, refresh: int | None = None, told: int = 0) -> None:
    shape = replace(_DENOISER, widths=(3 + told, *_DENOISER.widths[1:]))
    parameters = _network(shape).parameters
    data = TrainingData(
        points=torch.zeros(1, 5000, 2),
        alpha_bar=torch.ones(1, 500),
        time_features=torch.zeros(1, 500, 1),
        labels=torch.zeros(1, 5000, dtype=torch.int64) if told else None,
        n_points=torch.tensor([5000]),
        t_table=torch.arange(500)[None],
        class_features=torch.zeros(1, told, told) if told else None,
        p_uncond=torch.zeros(1) if told else None,
    )
    buffers, splits = buffers_of(data, shape, 1, 2048, precision)
    training_sums(
        parameters, shape, data, torch.empty(1, splits, shape.num_parameters + 2),
        shadow_of(parameters, shape, precision), buffers, batch_size=2048,
        seed=torch.tensor([0]), step=torch.tensor(0), refresh=refresh, first_row=0, rows=2048,
        add=False,
    )  # fmt: skip


def _update_weights() -> None:
    parameters, shape = _network(_DENOISER)
    state, size = adamw_state(parameters), shape.num_parameters + 2
    one = torch.ones(1, dtype=torch.int64)
    course = Course(torch.ones(1, 9), one, one, torch.ones(1, 9))
    sums, squares = torch.ones(1, 8, size), torch.ones(1, triton.cdiv(size, reduce_grad.BLOCK))
    shadow = shadow_of(parameters, shape, "fp16")
    rest = (0.998, None, None, None)
    common = (state, 1e-3, 1, (0.9, 0.999), 1e-8, 0.01)
    adamw_(parameters, parameters, *common, True, *rest)
    # The end of a training step, and the same with a norm to clip to.
    ending = (state, course, one, (0.9, 0.999), 1e-8, 0.01)
    adamw_(parameters, sums, *ending, True, 0.998, None, None, shadow)
    reduced = ReducedGradient(sums[:, :1].contiguous(), squares)
    reduce_grad.reduce_grad(sums, reduced)
    adamw_(parameters, reduced.sums, *ending, False, 0.998, 1.0, squares, shadow)


def _draw() -> None:
    x = torch.zeros(1, 5000, 2)
    table = torch.arange(500)[None]
    data = TrainingData(x, torch.ones(1, 500), x[:, :500, :0], None, torch.tensor([5000]), table)
    q_sample.draw(data, torch.tensor([0]), 0, 2048)
    draw_prior(x, torch.tensor([0]), 0)


def _sample(precision: str, guided: bool = False, free: bool = False) -> None:
    labels = torch.zeros(1, 5000, dtype=torch.int64)
    shape, condition = _DENOISER, None
    if free:
        shape = replace(shape, widths=(3 + _CLASS_WIDTH, *shape.widths[1:]))
        condition = Condition(torch.zeros(1, 6, _CLASS_WIDTH), labels, free)
    sample_chain(
        _network(shape), torch.zeros(1, 5000, 2), torch.zeros(1, 1, 4), torch.zeros(1, 1, 1),
        torch.tensor([0]), Guide(_network(_CLASSIFIER), labels) if guided else None, condition,
        0, 0, precision,
    )  # fmt: skip


def _perceptron(shape: MLPShape, precision: str, dtype: torch.dtype = torch.float32) -> None:
    x = torch.zeros(1, 2048, shape.widths[0], dtype=dtype)
    y, saved = mlp.forward_flat(x, _network(shape).parameters, shape, precision)
    mlp.backward(y, saved, shape, precision)


def _elementwise() -> None:
    x = torch.zeros(1, 2048, 2)
    q_sample.q_sample(x, torch.ones(1, 500), torch.zeros(1, 2048, dtype=torch.int64), x)
    reverse_step.reverse_step(x, x, torch.zeros(1, 4), x, x)


MAIN: dict[str, Callable[[], None]] = {
    "train fp16": partial(_train, "fp16"),
    "adamw": _update_weights,
    "sample fp16": partial(_sample, "fp16"),
}
CASES: dict[str, Callable[[], None]] = {
    **MAIN,
    "guided fp16": partial(_sample, "fp16", guided=True),
    "classifier-free fp16": partial(_sample, "fp16", free=True),
    "epoch fp16": partial(_train, "fp16", refresh=25),
    "conditional fp16": partial(_train, "fp16", told=6),
    "draw": _draw,
    "drop-in fp16": partial(_perceptron, _DENOISER, "fp16"),
    "train bf16": partial(_train, "bf16"),
    "train tf32": partial(_train, "tf32"),
    "train fp32": partial(_train, "fp32"),
    "784 wide": partial(_perceptron, MLPShape((784, 512, 512, 10), "relu"), "fp16"),
    "uneven": partial(_perceptron, MLPShape((2, 100, 200, 500, 2), "gelu"), "fp16"),
    "no hidden layer": partial(_perceptron, MLPShape((64, 10), "none"), "fp16"),
    "half data": partial(_perceptron, _DENOISER, "fp16", torch.float16),
    "elementwise": _elementwise,
}


# From launches to compiled kernels.


@dataclass(frozen=True)
class Launch:
    """A kernel with all that its compilation depends on; can be sent to another process."""

    module: str
    kernel: str
    arch: int
    signature: dict[str, str]
    constants: dict
    attributes: dict
    options: dict


@dataclass(frozen=True)
class Resources:
    """What ptxas and the disassembler say of a kernel; sizes in bytes."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    tensor_core: dict[str, int]  # instructions of each kind
    seconds: float  # of processor time, of a cold compilation; others' work does not count


def launches(arch: int, cases: dict[str, Callable[[], None]]) -> dict[str, Launch]:
    """The different kernels that the cases launch on an architecture, by name."""
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
    """Launches are appended to a list instead of made."""
    intercepted = []

    def run(kernel, *args, grid, warmup, **kwargs):  # noqa: ARG001
        intercepted.append((kernel, args, kwargs))

    with mock.patch.object(JITFunction, "run", run):
        yield intercepted


@contextmanager
def _imitated(arch: int) -> Iterator[None]:
    token = imitated_capability.set(divmod(arch, 10))
    yield
    imitated_capability.reset(token)


def _describe(kernel: JITFunction, args: tuple, kwargs: dict, arch: int) -> Launch:
    """What triton would compile for a launch, found the way its own launcher finds it."""
    backend = make_backend(_target(arch))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*args, **kwargs)
    options, signature, constants, attributes = kernel._pack_args(
        backend, kwargs, bound, specialization, options
    )
    chosen = {name: getattr(options, name) for name in kwargs}  # such as the number of warps
    return Launch(
        kernel.__module__, kernel.__name__, arch, signature, constants, attributes, chosen
    )


def _target(arch: int) -> GPUTarget:
    return GPUTarget("cuda", arch, 32)


def compile_offline(launch: Launch) -> Resources:
    """Compiles a kernel and reads what it takes."""
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    source = ASTSource(kernel, launch.signature, launch.constants, launch.attributes)
    with tempfile.TemporaryDirectory() as folder:
        compiled, seconds = _compile_cold(source, launch)
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(compiled.asm["ptx"])
        cubin.write_bytes(compiled.asm["cubin"])
        target = _word(r"\.target (\w+)", compiled.asm["ptx"])
        said = _run(
            get_ptxas(launch.arch).path, "-v", f"--gpu-name={target}", str(ptx), "-o", os.devnull
        )
        assembly = _run(str(_TOOLS / "cuobjdump"), "-sass", str(cubin))
    tensor_core = Counter(_TENSOR_CORE.findall(assembly))
    return Resources(
        registers=_number(r"Used (\d+) registers", said),
        spill_stores=_number(r"(\d+) bytes spill stores", said),
        spill_loads=_number(r"(\d+) bytes spill loads", said),
        stack=_number(r"(\d+) bytes stack frame", said),
        shared=compiled.metadata.shared,
        tensor_core=dict(sorted(tensor_core.items())),
        seconds=round(seconds, 1),
    )


def _compile_cold(source: ASTSource, launch: Launch) -> tuple[Any, float]:
    """The compiled kernel and how long that took, in seconds of processor time.

    Neighbours on the machine only ever add to it, so what takes too long gets two more chances.
    """
    shortest = math.inf
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder, _empty_cache(folder):
            start = _processor_time()
            compiled = triton.compile(source, target=_target(launch.arch), options=launch.options)
            shortest = min(shortest, _processor_time() - start)
        if shortest <= PATIENCE:
            break
    return compiled, shortest


def _processor_time() -> float:
    """Of this process and of those that it has waited for, such as ptxas, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextmanager
def _empty_cache(folder: str) -> Iterator[None]:
    with mock.patch.dict(os.environ, TRITON_CACHE_DIR=folder):
        yield


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _word(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern} in {text}"
    return found[1]


def _number(pattern: str, text: str) -> int:
    return int(_word(pattern, text))


# The record: {version of triton: {"sm_90": {name of the kernel: its resources}}}.


def problems_of(found: Resources, arch: int, recorded: dict | None) -> list[str]:
    """What is wrong with a kernel, if anything.

    Args:
        found: what it takes now.
        arch: the architecture.
        recorded: what it took, or None if that is not known.
    """
    problems = []
    if found.shared > SHARED_MEMORY[arch]:
        problems.append(
            f"needs {found.shared} bytes of shared memory, the chip has {SHARED_MEMORY[arch]}"
        )
    if found.seconds > PATIENCE:
        problems.append(f"took {found.seconds} s to compile, {PATIENCE} s are allowed")
    if recorded is None:
        return problems
    for spill in ("spill_stores", "spill_loads"):
        before, now = recorded[spill], getattr(found, spill)
        if now > before:
            problems.append(f"{spill} went from {before} to {now} bytes")
    lost = recorded["tensor_core"].keys() - found.tensor_core.keys()
    return [*problems, *(f"no longer uses {kind}" for kind in sorted(lost))]


def _print_row(arch: int, name: str, found: Resources) -> None:
    tensor_core = " ".join(f"{count} {kind}" for kind, count in found.tensor_core.items())
    print(
        f"sm_{arch:<4}{name:42}{found.registers:>9}{found.spill_stores:>13}"
        f"{found.spill_loads:>12}{found.stack:>7}{found.shared:>8}  {tensor_core or '-':24}"
        f"{found.seconds:>7}",
        flush=True,
    )


Found = dict[int, dict[str, Resources]]


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flashpoint.kernels.resources", description="Compiles all kernels offline."
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_MEMORY, default=SHARED_MEMORY)
    parser.add_argument("--main", action="store_true", help="only training and sampling in fp16")
    parser.add_argument("--only", default="", metavar="TEXT", help="only kernels named like this")
    parser.add_argument("--update", action="store_true", help="write the record")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET must not be set: interpreted kernels are not compiled")

    cases = MAIN if options.main else CASES
    found, problems = _compile_all(options.arch, cases, options.only, options.jobs)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if options.update:
        _update(record, found, keep_others=options.main or bool(options.only))
    problems += _compare(record.get(triton.__version__), found)
    for problem in problems:
        print(problem)
    print(f"{sum(map(len, found.values()))} kernels compiled, {len(problems)} problems")
    return 1 if problems else 0


def _compile_all(
    archs: Iterable[int], cases: dict[str, Callable[[], None]], only: str, jobs: int
) -> tuple[Found, list[str]]:
    """What the kernels take, printed as a table, and which do not compile."""
    print(
        f"triton {triton.__version__}\n{'chip':7}{'kernel':42}{'registers':>9}{'spill stores':>13}"
        f"{'spill loads':>12}{'stack':>7}{'shared':>8}  {'tensor core':24}{'seconds':>7}"
    )
    found: Found = {arch: {} for arch in archs}
    problems = []
    # Not forked: torch has threads.
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        pending = [
            (arch, name, pool.submit(compile_offline, launch))
            for arch in archs
            for name, launch in launches(arch, cases).items()
            if only in name
        ]
        for arch, name, future in pending:
            error = future.exception()
            if error is not None:
                cause = str(error).strip().splitlines()[-1]
                problems.append(f"sm_{arch} {name}: {type(error).__name__}: {cause}")
                continue
            found[arch][name] = future.result()
            _print_row(arch, name, future.result())
    return found, problems


def _compare(record: dict | None, found: Found) -> list[str]:
    """Problems of all kernels against the record of this version of triton."""
    if record is None:
        print(f"no record of triton {triton.__version__}: spills and tensor cores are not checked")
    problems = []
    for arch, kernels in found.items():
        recorded = (record or {}).get(f"sm_{arch}", {})
        for name, resources in kernels.items():
            found_here = problems_of(resources, arch, recorded.get(name))
            if record is not None and name not in recorded:
                found_here.append("is not in the record; write it with --update")
            problems += [f"sm_{arch} {name}: {problem}" for problem in found_here]
    return problems


def _update(record: dict, found: Found, keep_others: bool) -> None:
    ours = record.setdefault(triton.__version__, {})
    for arch, kernels in found.items():
        before = ours.get(f"sm_{arch}", {}) if keep_others else {}
        ours[f"sm_{arch}"] = before | {name: asdict(each) for name, each in kernels.items()}
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
