"""The record of resources: {version of triton: {"sm_90": {name of the kernel: its resources}}}."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

import triton

from .cases import HOPPER_CASE
from .compilation import PATIENCE, Resources

RECORD = Path(__file__).parents[1] / "resources.json"
# Shared memory that one block can have, in bytes (CUDA C++ programming guide, table of technical
# specifications per compute capability).
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

# The time that a compilation may take, as a multiple of the recorded one and of what the machine
# is slower; what goes wrong in a compiler costs more than that.
SLOWER = 3
# Compilations in which a machine shows how slow it is; shorter ones are mostly rounding.
_LEAST_SECONDS, _LEAST_KERNELS = 0.5, 5


class Limits(NamedTuple):
    """What a kernel may take at most, unless the record gives a reason."""

    seconds: float  # of processor time to compile it, when it is recorded
    spilled: float  # bytes


# Spills of the portable kernels are limited by the record alone.
PORTABLE = Limits(PATIENCE, math.inf)
# All products of a network stand in the code of one step.
HOPPER_FORM = Limits(8.0, 64)

# The resources of kernels by architecture and name.
Found = dict[int, dict[str, Resources]]


def problems_of(
    found: Resources,
    arch: int,
    recorded: dict | None,
    limits: Limits = PORTABLE,
    slowness: float = 1.0,
) -> list[str]:
    """Returns a sentence for each problem of a kernel.

    Args:
        found: its resources now.
        arch: the architecture.
        recorded: its resources in the record, or None if it is not there.
        limits: what it may take at most without a reason.
        slowness: how many times as long this machine takes for all kernels as the recorded one.
    """
    accepted = (recorded or {}).get("accepted", {})
    spilled = max(found.spill_stores, found.spill_loads)
    problems = [
        f"{kind}: {fault}" for kind, fault in found.faults.items() if not accepted.get(kind)
    ]
    if found.shared > SHARED_MEMORY[arch]:
        problems.append(
            f"needs {found.shared} bytes of shared memory, the chip has {SHARED_MEMORY[arch]}"
        )
    if spilled > limits.spilled and not accepted.get("spills"):
        problems.append(f"spills {spilled} bytes, {limits.spilled:g} are allowed")
    if recorded is None:
        return problems
    if recorded["seconds"] > limits.seconds and not accepted.get("compilation"):
        problems.append(f"took {recorded['seconds']} s to compile, {limits.seconds} s are allowed")
    if found.seconds > slowness * max(limits.seconds, SLOWER * recorded["seconds"]):
        problems.append(f"took {found.seconds} s to compile, {recorded['seconds']} s when recorded")
    for spill in ("spill_stores", "spill_loads"):
        before, now = recorded[spill], getattr(found, spill)
        if now > before:
            problems.append(f"{spill} went from {before} to {now} bytes")
    lost = recorded["tensor_core"].keys() - found.tensor_core.keys()
    return [*problems, *(f"no longer uses {kind}" for kind in sorted(lost))]


def compare(record: dict | None, found: Found) -> list[str]:
    """Returns the problems of all kernels, compared with the record of this version of triton."""
    if record is None:
        print(f"no record of triton {triton.__version__}: spills and tensor cores are not checked")
    problems, slowness = [], slowness_of(record or {}, found)
    for arch, kernels in found.items():
        recorded = (record or {}).get(f"sm_{arch}", {})
        for name, resources in kernels.items():
            found_here = problems_of(resources, arch, recorded.get(name), limits_of(name), slowness)
            if record is not None and name not in recorded:
                found_here.append("is not in the record; write it with --update")
            problems += [f"sm_{arch} {name}: {problem}" for problem in found_here]
    return problems


def slowness_of(record: dict, found: Found) -> float:
    """Returns how many times as long compilations take as when they were recorded, at least 1.

    It is the median over kernels, so that a few that have become slow do not count; 1 if the
    kernels are too few to tell.
    """
    pairs = [
        (resources.seconds, record.get(f"sm_{arch}", {}).get(name, {}).get("seconds", 0))
        for arch, kernels in found.items()
        for name, resources in kernels.items()
    ]
    ratios = [now / before for now, before in pairs if before >= _LEAST_SECONDS]
    return max(1.0, median(ratios)) if len(ratios) >= _LEAST_KERNELS else 1.0


def limits_of(name: str) -> Limits:
    """Returns the limits of a kernel."""
    return HOPPER_FORM if name.startswith(f"{HOPPER_CASE} ") else PORTABLE


def _beyond(resources: dict, limits: Limits) -> Iterator[str]:
    """Yields the limits that need a reason to be exceeded."""
    if resources["seconds"] > limits.seconds:
        yield "compilation"
    if max(resources["spill_stores"], resources["spill_loads"]) > limits.spilled:
        yield "spills"


def read() -> dict:
    """Returns the record, empty if there is none."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def update(record: dict, found: Found, keep_others: bool) -> None:
    """Puts the found resources into the record and writes it; keeps reasons of remaining faults.

    Args:
        record: the record, which is changed.
        found: resources of the compiled kernels.
        keep_others: True keeps the kernels that were not compiled, False drops them.
    """
    ours = record.setdefault(triton.__version__, {})
    for arch, kernels in found.items():
        before = ours.get(f"sm_{arch}", {})
        now = {name: asdict(resources) for name, resources in kernels.items()}
        for name, resources in now.items():
            reasons = before.get(name, {}).get("accepted", {})
            still = {*resources["faults"], *_beyond(resources, limits_of(name))}
            kept = {kind: why for kind, why in reasons.items() if kind in still}
            if kept:
                resources["accepted"] = kept
        ours[f"sm_{arch}"] = (before if keep_others else {}) | now
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
