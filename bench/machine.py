"""The machine that is measured: its name, its versions, and the processes on its GPU."""

import hashlib
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import torch

from ..diffusion.device import choose_device
from ..diffusion.errors import UserError

REFERENCE_WORK = Path(__file__).with_name("reference_work.py")
_GIT = ("git", "-C", str(Path(__file__).resolve().parent))  # in the folder of this code


def commit() -> str | None:
    """Returns the commit of this code; None outside a repository."""
    return _output(*_GIT, "rev-parse", "HEAD")


def describe() -> dict:
    """Returns everything about machine and versions that the numbers depend on."""
    others = other_processes()  # counted before this one may use the GPU
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "uncommitted changes": bool(_output(*_GIT, "status", "--porcelain")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "gpu": gpu_name(),
        "capability": torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        "driver, clocks (now, maximum), power limit": _output(
            "nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        ),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "other processes on the GPU": len(others),
    }  # fmt: skip


def gpu_name() -> str | None:
    """Returns the name of the GPU; None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def short_name(device: torch.device | None = None) -> str:
    """Returns the name of the GPU, or ``cpu`` and the processor, in a form for file names."""
    on_gpu = torch.cuda.is_available() and (device is None or device.type == "cuda")
    name = torch.cuda.get_device_name(device) if on_gpu else f"cpu {_processor()}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def reference_hash() -> str:
    """Returns the SHA-256 of the frozen reference work."""
    return hashlib.sha256(REFERENCE_WORK.read_bytes()).hexdigest()


def other_processes() -> list[str]:
    """Returns the ids of the processes that use the GPU.

    In a container this process has another id in the list, so call this function before the process
    uses the GPU.
    """
    listed = _output("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader")
    found = [line.strip() for line in (listed or "").splitlines()]
    return [process for process in found if process.isdigit() and process != str(os.getpid())]


def free_device(name: str | None, busy: bool = False) -> torch.device:
    """Returns the device to measure on.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:N``; None for the GPU if there is one.
        busy: accepts a GPU that other processes use; the record counts them.

    Raises:
        ValueError: the device does not exist, or another process uses the GPU.
    """
    device = choose_device(name)
    if device.type == "cuda" and not busy and (others := other_processes()):
        raise UserError(
            f"device {device} is in use by process {', '.join(others)}, which would disturb "
            "the measurement; end it, or measure nevertheless with --busy"
        )
    return device


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _triton_version() -> str | None:
    if find_spec("triton") is None:
        return None
    import triton

    return triton.__version__


def _output(*command: str) -> str | None:
    """Returns the output of a command; None if the command cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
