"""What every shipped kernel takes on every architecture, compiled offline.

    python -m flashpoint.kernels.resources            compile, print, compare with the record
    python -m flashpoint.kernels.resources --update   write the record

No GPU and no driver is needed: the operations run on CPU tensors, their launches are intercepted
instead of made, and each is compiled for each architecture just as its launch there would be. The
record, ``resources.json``, is kept for each version of triton. Exit status 1 means that a kernel

* spills more than it did, or has lost a kind of tensor-core instruction;
* needs more shared memory than a chip has, or takes more than five seconds of processor time to
  compile;
* has a fault: ``serialised``, ptxas lets no two of its wgmmas overlap; ``in flight``, a register of
  a wgmma is touched while that may still use it, so that results may be wrong; ``tensor cores``, a
  product in half precision or tf32 does without them, or with fewer columns at once than it could.

A fault that has to be lived with gets its reason into the record by hand, beside what the kernel
takes there: ``"accepted": {"serialised": "why"}``. ``--update`` keeps the reasons of faults that
are still there.

With another triton, in an environment of its own::

    python3.12 -m venv .venv
    .venv/bin/pip install torch==2.11.0 triton==3.6.0 "numpy<2.4" "setuptools>=64"
    .venv/bin/pip install --no-deps --no-build-isolation -e .
    .venv/bin/python -m flashpoint.kernels.resources
"""

import argparse
import importlib
import io
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from . import sass
from ._dispatch import imitated_capability
from .adamw import Course, adamw_state, shadow_of
from .adamw.kernel import adamw_
from .mlp import MLPShape
from .mlp import kernel as mlp
from .mlp.layout import Layout
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
# The instruction that each architecture's tensor cores are there for.
TENSOR_CORE = {80: r"HMMA", 90: r"HGMMA", 100: r"UTC\w*MMA"}

_DENOISER = MLPShape((3, 256, 256, 256, 256, 2))
_CLASSIFIER = MLPShape((3, 100, 200, 500, 5))
_CLASS_WIDTH = 16  # of what a conditional denoiser is told of a class


# What is compiled: the operations, called as their users call them.


def _deep(width: int, activation: str = "prelu") -> MLPShape:
    return MLPShape((3, *[width] * 4, 2), activation)


def _network(shape: MLPShape) -> Network:
    return Network(torch.zeros(1, shape.num_parameters), shape)


def _train(
    shape: MLPShape,
    precision: str,
    refresh: int | None = None,
    told: int = 0,
    classify: bool = False,
) -> None:
    shape = replace(shape, widths=(3 + told, *shape.widths[1:]))
    parameters = _network(shape).parameters
    data = TrainingData(
        points=torch.zeros(1, 5000, 2),
        alpha_bar=torch.ones(1, 500),
        time_features=torch.zeros(1, 500, 1),
        labels=torch.zeros(1, 5000, dtype=torch.int64) if told or classify else None,
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


def _sample(shape: MLPShape, precision: str, guided: bool = False, free: bool = False) -> None:
    labels = torch.zeros(1, 5000, dtype=torch.int64)
    condition = None
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


def _everything(shape: MLPShape, precision: str) -> None:
    _train(shape, precision)
    _sample(shape, precision)
    _perceptron(shape, precision)


def _elementwise() -> None:
    x = torch.zeros(1, 2048, 2)
    q_sample.q_sample(x, torch.ones(1, 500), torch.zeros(1, 2048, dtype=torch.int64), x)
    reverse_step.reverse_step(x, x, torch.zeros(1, 4), x, x)


MAIN: dict[str, Callable[[], None]] = {
    "train fp16": partial(_train, _DENOISER, "fp16"),
    "adamw": _update_weights,
    "sample fp16": partial(_sample, _DENOISER, "fp16"),
}
CASES: dict[str, Callable[[], None]] = {
    **MAIN,
    "guided fp16": partial(_sample, _DENOISER, "fp16", guided=True),
    "guided bf16": partial(_sample, _DENOISER, "bf16", guided=True),
    "classifier-free fp16": partial(_sample, _DENOISER, "fp16", free=True),
    "epoch fp16": partial(_train, _DENOISER, "fp16", refresh=25),
    "conditional fp16": partial(_train, _DENOISER, "fp16", told=6),
    "classifier fp16": partial(_train, _CLASSIFIER, "fp16", classify=True),
    "classifier bf16": partial(_train, _CLASSIFIER, "bf16", classify=True),
    "draw": _draw,
    "drop-in fp16": partial(_perceptron, _DENOISER, "fp16"),
    "train bf16": partial(_train, _DENOISER, "bf16"),
    "train tf32": partial(_train, _DENOISER, "tf32"),
    "train fp32": partial(_train, _DENOISER, "fp32"),
    "train tf32x3": partial(_train, _DENOISER, "tf32x3"),
    "sample tf32x3": partial(_sample, _DENOISER, "tf32x3"),
    "drop-in tf32x3": partial(_perceptron, _DENOISER, "tf32x3"),
    "784 wide": partial(_perceptron, MLPShape((784, 512, 512, 10), "relu"), "fp16"),
    "uneven": partial(_perceptron, MLPShape((2, 100, 200, 500, 2), "gelu"), "fp16"),
    "no hidden layer": partial(_perceptron, MLPShape((64, 10), "none"), "fp16"),
    "half data": partial(_perceptron, _DENOISER, "fp16", torch.float16),
    "elementwise": _elementwise,
}
# Networks of other widths and activations, on sm_90 alone: how its wgmmas are ordered, and whether
# their registers suffice, changes with both.
VARIETY: dict[str, Callable[[], None]] = {
    "guided tf32": partial(_sample, _DENOISER, "tf32", guided=True),
    **{
        f"width {width} {precision}": partial(_everything, _deep(width), precision)
        for width in (64, 128, 256, 512)
        for precision in ("fp16", "bf16", "tf32")
    },
    **{
        f"width {width} {activation}": partial(_perceptron, _deep(width, activation), "fp16")
        for width in (128, 256, 512)
        for activation in ("relu", "gelu", "silu", "tanh")
    },
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
    """What the compiler and the disassembler say of a kernel; sizes in bytes."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    tensor_core: dict[str, int]  # instructions of each kind and shape
    faults: dict[str, str]  # of each kind, what is wrong
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
    chosen = {name: getattr(options, name) for name in kwargs if name not in bound}  # num_warps
    return Launch(
        kernel.__module__, kernel.__name__, arch, signature, constants, attributes, chosen
    )


def _target(arch: int) -> GPUTarget:
    return GPUTarget("cuda", arch, 32)


def compile_offline(launch: Launch) -> Resources:
    """Compiles a kernel and reads what it takes."""
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    source = ASTSource(kernel, launch.signature, launch.constants, launch.attributes)
    compiled, said, seconds = _compile_cold(source, launch)
    code = sass.parse(sass.disassembled(compiled.asm["cubin"]))
    tensor_core = sass.tensor_core(code)
    faults = {
        "serialised": why_serialised(said),
        "in flight": touched_in_flight(code),
        "tensor cores": without_tensor_cores(launch, compiled.asm["ttir"], tensor_core),
    }
    return Resources(
        registers=_number(r"Used (\d+) registers", said),
        spill_stores=_number(r"(\d+) bytes spill stores", said),
        spill_loads=_number(r"(\d+) bytes spill loads", said),
        stack=_number(r"(\d+) bytes stack frame", said),
        shared=compiled.metadata.shared,
        tensor_core=tensor_core,
        faults={kind: fault for kind, fault in faults.items() if fault is not None},
        seconds=round(seconds, 1),
    )


def _compile_cold(source: ASTSource, launch: Launch) -> tuple[Any, str, float]:
    """The compiled kernel, what ptxas said of it, and the seconds of processor time that it took.

    Neighbours on the machine only ever add to it, so what takes too long gets two more chances.
    """
    shortest = math.inf
    for _ in range(3):
        with _cold_and_talkative(), redirect_stdout(io.StringIO()) as said:
            start = _processor_time()
            compiled = triton.compile(source, target=_target(launch.arch), options=launch.options)
            shortest = min(shortest, _processor_time() - start)
        if shortest <= PATIENCE:
            break
    return compiled, said.getvalue(), shortest


@contextmanager
def _cold_and_talkative() -> Iterator[None]:
    """Triton has nothing in its cache, and prints what its own run of ptxas says."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {"TRITON_CACHE_DIR": folder, "TRITON_DUMP_PTXAS_LOG": "1"}
        with mock.patch.dict(os.environ, changes):
            yield


def _processor_time() -> float:
    """Of this process and of those that it has waited for, such as ptxas, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _word(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern} in {text}"
    return found[1]


def _number(pattern: str, text: str) -> int:
    return int(_word(pattern, text))


# What is wrong with a kernel in itself.


def why_serialised(said: str) -> str | None:
    """Why ptxas lets no two wgmmas overlap, if it says so: its notes C7510 to C7515."""
    notes = re.findall(r"\((C75\d\d)\) .*?(serialized due to .*?) in (?:the )?function", said)
    return "; ".join(f"wgmmas {why} ({note})" for note, why in sorted(set(notes))) or None


def touched_in_flight(code: list[sass.Instruction]) -> str | None:
    """The first of what touches registers of an HGMMA in flight, and how much does."""
    found = sass.clashes(code)
    return f"{found[0]} in flight; {len(found)} such pairs" if found else None


def without_tensor_cores(launch: Launch, ttir: str, used: dict[str, int]) -> str | None:
    """What tensor cores should do and do not, or do in narrower pieces than the layers allow.

    Args:
        launch: of the kernel.
        ttir: of the kernel, which has the products as they are written.
        used: its tensor-core instructions, by kind and shape.
    """
    products = re.findall(r"tt\.dot .*? : tensor<(?:\d+x)+(\w+)>", ttir)
    if not any(dtype != "f32" for dtype in products) and "inputPrecision = tf32" not in ttir:
        return None
    kind = TENSOR_CORE[launch.arch]
    if not any(re.match(kind, instruction) for instruction in used):
        return f"multiplies in half precision or tf32 without {kind}"
    if launch.arch != 90:
        return None
    layouts = [value for value in launch.constants.values() if isinstance(value, Layout)]
    warpgroups = launch.options.get("num_warps", 4) // 4
    # A first or last layer may be as narrow as it is; a hidden one is shared by the warpgroups.
    ends = {layout.padded[end] // warpgroups for layout in layouts for end in (0, -1)}
    hidden = [width // warpgroups for layout in layouts for width in layout.padded[1:-1]]
    possible = min([64, *hidden])
    columns = {int(shape.split("x")[1]) for shape in used if shape.startswith("HGMMA")}
    narrow = {each for each in columns - ends if each < possible}
    return f"HGMMA of {min(narrow)} columns, {possible} are possible" if narrow else None


# The record: {version of triton: {"sm_90": {name of the kernel: its resources}}}.


def problems_of(found: Resources, arch: int, recorded: dict | None) -> list[str]:
    """What is wrong with a kernel, if anything.

    Args:
        found: what it takes now.
        arch: the architecture.
        recorded: what it took, or None if that is not known.
    """
    accepted = (recorded or {}).get("accepted", {})
    problems = [
        f"{kind}: {fault}" for kind, fault in found.faults.items() if not accepted.get(kind)
    ]
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
    tensor_core = ", ".join(f"{count} {kind}" for kind, count in found.tensor_core.items())
    print(
        f"sm_{arch:<4}{name:50}{found.registers:>9}{found.spill_stores:>13}"
        f"{found.spill_loads:>12}{found.stack:>7}{found.shared:>8}{found.seconds:>8}"
        f"  {tensor_core or '-'}",
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
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="only kernels named like these",
    )
    parser.add_argument("--update", action="store_true", help="write the record")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET must not be set: interpreted kernels are not compiled")

    cases = {arch: _cases_for(arch, options.main) for arch in options.arch}
    found, problems = _compile_all(cases, options.only, options.jobs)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if options.update:
        _update(record, found, keep_others=options.main or any(options.only))
    problems += _compare(record.get(triton.__version__), found)
    for problem in problems:
        print(problem)
    print(f"{sum(map(len, found.values()))} kernels compiled, {len(problems)} problems")
    return 1 if problems else 0


def _cases_for(arch: int, main_ones: bool) -> dict[str, Callable[[], None]]:
    if main_ones:
        return MAIN
    return CASES | VARIETY if arch == 90 else CASES


def _compile_all(
    cases: dict[int, dict[str, Callable[[], None]]], only: list[str], jobs: int
) -> tuple[Found, list[str]]:
    """What the kernels take, printed as a table, and which do not compile."""
    print(
        f"triton {triton.__version__}\n{'chip':7}{'kernel':50}{'registers':>9}{'spill stores':>13}"
        f"{'spill loads':>12}{'stack':>7}{'shared':>8}{'seconds':>8}  tensor core"
    )
    found: Found = {arch: {} for arch in cases}
    problems = []
    # Not forked: torch has threads.
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        pending = [
            (arch, name, pool.submit(compile_offline, launch))
            for arch, chosen in cases.items()
            for name, launch in launches(arch, chosen).items()
            if any(text in name for text in only)
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
    """Writes what was found into the record; reasons stay as long as there is something to them."""
    ours = record.setdefault(triton.__version__, {})
    for arch, kernels in found.items():
        before = ours.get(f"sm_{arch}", {})
        now = {name: asdict(resources) for name, resources in kernels.items()}
        for name, resources in now.items():
            reasons = before.get(name, {}).get("accepted", {})
            kept = {kind: why for kind, why in reasons.items() if kind in resources["faults"]}
            if kept:
                resources["accepted"] = kept
        ours[f"sm_{arch}"] = (before if keep_others else {}) | now
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
