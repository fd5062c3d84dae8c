"""The record of a run of ``bench/gpu.sh``: one JSON file, written anew as each stage ends.

python -m flashpoint.bench.record name                              of this machine's GPU
python -m flashpoint.bench.record start FOLDER
python -m flashpoint.bench.record stage FOLDER NAME STATUS SECONDS LIMIT OUTPUT RESULTS
python -m flashpoint.bench.record unavailable FOLDER NAME REASON
"""

import json
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

import click
import torch

_TIMED_OUT = (124, 137)  # what ``timeout`` exits with, by TERM or by KILL


def machine() -> dict:
    """What the numbers depend on."""
    on_gpu = torch.cuda.is_available()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _output("git", "rev-parse", "HEAD"),
        "uncommitted changes": bool(_output("git", "status", "--porcelain")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "capability": torch.cuda.get_device_capability() if on_gpu else None,
        "driver, clocks (now, maximum), power limit": _output(
            "nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        ),
    }  # fmt: skip


def _triton_version() -> str | None:
    if find_spec("triton") is None:
        return None
    import triton

    return triton.__version__


def _output(*command: str) -> str | None:
    """What a command prints, or None if it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _add(folder: Path, name: str, entry: dict) -> None:
    file = folder / "record.json"
    record = json.loads(file.read_text())
    record["stages"][name] = entry
    file.write_text(json.dumps(record, indent=1) + "\n")
    click.echo(f"{name}: {entry['outcome']}  {entry.get('last line', entry.get('reason', ''))}")


@click.group()
def main() -> None:
    """Keep the record of a benchmark run."""


@main.command()
def name() -> None:
    """Print the GPU's name as part of a folder's name."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    click.echo(re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-"))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def start(folder: Path) -> None:
    """Begin a record."""
    record = {"machine": machine(), "stages": {}}
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name")
@click.argument("status", type=int)
@click.argument("seconds", type=float)
@click.argument("limit", type=float)
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("results", type=click.Path(path_type=Path))
def stage(
    folder: Path,
    name: str,
    status: int,
    seconds: float,
    limit: float,
    output: Path,
    results: Path,
) -> None:
    """Add a stage: how it ended, the last line of its output, and its results if it wrote any."""
    printed = output.read_text(errors="replace").strip().splitlines()
    outcomes = {0: "passed", **dict.fromkeys(_TIMED_OUT, "out of time")}
    entry = {
        "outcome": outcomes.get(status, "failed"),
        "exit status": status,
        "seconds": seconds,
        "limit": limit,
        "last line": printed[-1] if printed else "",
    }
    if results.exists():
        entry["results"] = json.loads(results.read_text())
    _add(folder, name, entry)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name")
@click.argument("reason")
def unavailable(folder: Path, name: str, reason: str) -> None:
    """Add a stage that this machine cannot run."""
    _add(folder, name, {"outcome": "unavailable", "reason": reason})


if __name__ == "__main__":
    main()
