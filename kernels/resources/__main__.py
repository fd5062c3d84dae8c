"""The command ``python -m flashpoint.kernels.resources``."""

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import triton

from . import record
from .cases import CASES, HOPPER, HOPPER_MAIN, MAIN, VARIETY
from .compilation import Resources, compile_offline
from .launch import launches


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flashpoint.kernels.resources", description="Compiles all kernels offline."
    )
    parser.add_argument(
        "--arch",
        type=int,
        nargs="+",
        choices=record.SHARED_MEMORY,
        default=record.SHARED_MEMORY,
        help="compute capabilities, times ten; default: all",
    )
    parser.add_argument("--main", action="store_true", help="only training and sampling in fp16")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="only kernels whose name contains one of these",
    )
    parser.add_argument("--update", action="store_true", help="write the record")
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="NUMBER",
        help="processes that compile; default: one for each processor that it may use",
    )
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET must not be set: interpreted kernels are not compiled")

    if options.jobs < 1:
        parser.error(f"argument --jobs: must be at least 1, got {options.jobs}")

    cases = {arch: _cases_for(arch, options.main) for arch in options.arch}
    found, problems = _compile_all(cases, options.only, options.jobs)
    if not (any(found.values()) or problems):
        parser.error(f"argument --only: no kernel has {' or '.join(options.only)} in its name")
    recorded = record.read()
    if options.update:
        record.update(recorded, found, keep_others=options.main or any(options.only))
    problems += record.compare(recorded.get(triton.__version__), found)
    for problem in problems:
        print(problem)
    print(f"{sum(map(len, found.values()))} kernels compiled, {len(problems)} problems")
    return 1 if problems else 0


def _cases_for(arch: int, main_only: bool) -> dict[str, Callable[[], None]]:
    if main_only:
        return MAIN | HOPPER_MAIN if arch == 90 else MAIN
    return CASES | VARIETY | HOPPER if arch == 90 else CASES


def _compile_all(
    cases: dict[int, dict[str, Callable[[], None]]], only: list[str], jobs: int
) -> tuple[record.Found, list[str]]:
    """Compiles kernels and prints their resources as a table.

    Args:
        cases: cases of each architecture.
        only: parts of names, one of which each kernel's name contains.
        jobs: number of processes.

    Returns:
        The resources, and a sentence for each kernel that does not compile.
    """
    print(
        f"triton {triton.__version__}\n{'chip':7}{'kernel':50}{'registers':>9}{'spill stores':>13}"
        f"{'spill loads':>12}{'stack':>7}{'shared':>8}{'seconds':>8}  tensor core"
    )
    found: record.Found = {arch: {} for arch in cases}
    problems = []
    # Spawned, because a fork of a process with threads, such as those of torch, may hang.
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


def _print_row(arch: int, name: str, found: Resources) -> None:
    tensor_core = ", ".join(f"{count} {kind}" for kind, count in found.tensor_core.items())
    print(
        f"sm_{arch:<4}{name:50}{found.registers:>9}{found.spill_stores:>13}"
        f"{found.spill_loads:>12}{found.stack:>7}{found.shared:>8}{found.seconds:>8}"
        f"  {tensor_core or '-'}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
