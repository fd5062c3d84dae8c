"""A visit to a GPU: tests, sanitizers and benchmarks, each within its time, and a summary last.

    bench/gpu.sh [check | tune | race | quality] [--smoke]

Each verb fits a short visit; without one all but ``tune`` are done. Results go to ``$OUT`` if that
is set, else to ``bench/records/<date>-<gpu>/``: ``record.json`` and ``log.txt``, to which each
stage is added as it ends, figures, the gate's baseline, which belongs into
``bench/records/baselines/``, and ``compiled.tar.gz``. The last holds what Triton compiled; left
where it is or put into ``bench/``, it is used by the next visit, which compiles nothing again.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import click
import torch

from ..diffusion import UserError
from ..diffusion.files import make_folder
from . import gate, kernel_cache, machine, summary, works
from .record import FILE, Record
from .stages import Ended, Stage, not_started, run_together

ROOT = Path(__file__).resolve().parents[1]
# Seconds that each verb may take, and those of them that no stage has: the start, when all is
# imported and unpacked, and the end, when what was compiled is packed. A longer start is the first
# stages' loss.
LIMITS = {"check": 150, "tune": 150, "race": 200, "quality": 200}
START, END = 8, 4
_RACED = 11  # lines of the table of all works
LOG = "log.txt"
_LOGGED = 200_000  # characters of a stage's output that the log keeps: the last ones

# Files of tests, the most telling first, and how many processes share the compilation of their
# kernels. Then come all others with a test that needs a GPU, and the tests without that mark of
# some files: the interpreter runs these too, and they must hold on a GPU as well.
PARTS = {
    "kernels/test_every_network.py": 10,
    "kernels/test_mlp_kernel.py": 5,
    "kernels/test_on_a_gpu.py": 2,
    "kernels/test_same_run.py": 3,
    "diffusion/test_same_on_both_devices.py": 2,
}
OTHER_PARTS, UNMARKED_PARTS = 3, 5
UNMARKED = tuple(
    f"kernels/test_{name}.py"
    for name in ("train_step", "same_run", "adamw_kernel", "philox_kernel", "reverse_step_kernel",
                 "reduce_grad")
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Stages that run at the same time.

    Attributes:
        stages: most telling first.
        limit: seconds by which the end of the group before may be exceeded at most. If that was
            early, stages with longer limits of their own have the time that it left.
    """

    stages: tuple[Stage, ...]
    limit: float


def alone(stage: Stage) -> Group:
    """A stage that is measured, so that nothing may run beside it."""
    return Group((stage,), stage.limit)


@dataclass
class Commands:
    """The commands of stages.

    Attributes:
        folder: of the record.
        device: what to measure on.
        scratch: of files that nobody needs afterwards.
    """

    folder: Path
    device: str
    scratch: Path

    def bench(self, name: str, *options: str, record: bool = True) -> tuple[str, ...]:
        """A benchmark; only one that runs alone may write to the record."""
        # Another process on the GPU is counted in the record rather than refused.
        common = ("--device", self.device, "--busy")
        common += ("--record", str(self.folder)) if record else ()
        return (sys.executable, "-m", "flashpoint.bench", name, *common, *options)

    def tests(self, files: Iterable[str], marks: str, part: int, parts: int) -> tuple[str, ...]:
        """A part of the tests of some files."""
        return (
            sys.executable, "-m", "pytest", "-q", "--tb", "short", "-p", "no:cacheprovider",
            "-p", "flashpoint.bench.pytest_part", "--part", f"{part}/{parts}", "-m", marks,
            *(str(ROOT / "tests" / file) for file in files),
        )  # fmt: skip


# The verbs at full size.


def other_files() -> list[str]:
    """Files with a test that needs a GPU that have no processes of their own, below ``tests``."""
    tests = ROOT / "tests"
    found = (
        path.relative_to(tests).as_posix()
        for path in sorted(tests.rglob("test_*.py")) if "mark.gpu" in path.read_text()
    )  # fmt: skip
    return [file for file in found if file not in PARTS]


def tests_of(commands: Commands, limit: float) -> list[Stage]:
    """All tests that matter on a GPU, the most telling first."""
    marked, unmarked = "gpu and not slow", "not gpu and not slow"
    wanted = [
        *((Path(file).stem.removeprefix("test_"), [file], marked, parts)
          for file, parts in PARTS.items()),
        ("others", other_files(), marked, OTHER_PARTS),
        ("unmarked", UNMARKED, unmarked, UNMARKED_PARTS),
    ]  # fmt: skip
    return [
        Stage(f"tests {name} {part}/{parts}", commands.tests(files, marks, part, parts), limit)
        for name, files, marks, parts in wanted
        for part in range(1, parts + 1)
    ]


def sanitizers(commands: Commands, limit: float) -> list[Stage]:
    """Memcheck and racecheck of the works and of the operations, at small size."""
    # Without the caching allocator each tensor is an allocation of its own, whose end is guarded.
    environment = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    checked = {
        "works": commands.bench("works", "--until", "checked", "--small", record=False),
        "operations": commands.bench("operations", "--rounds", "0", "--small", record=False),
    }
    stages = []
    for name, command in checked.items():
        for tool in ("memcheck", "racecheck"):
            sanitizer = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
            stages.append(
                Stage(f"{tool} {name}", (*sanitizer, *command), limit, slack=12,
                      environment=environment, spare=True)
            )  # fmt: skip
    return stages


def check(commands: Commands) -> list[Group]:
    """Is everything right, and how fast is what users wait for?"""
    ready = [
        # So that the sanitizers, and the works when they are timed, have nothing to compile.
        Stage(f"right {kind}", commands.bench("works", "--until", "run", "--only", kind,
                                              record=False), 88)
        for kind in works.KINDS
    ]  # fmt: skip
    return [
        Group((*ready, *tests_of(commands, 88), *sanitizers(commands, 88)), 88),
        alone(Stage("works", commands.bench("works"), 50, slack=6, numbers=9)),
    ]


def tune(commands: Commands) -> list[Group]:
    """What should the tile sizes be?"""
    return [alone(Stage("tune", commands.bench("tune"), 138, slack=12, numbers=45))]


def race(commands: Commands) -> list[Group]:
    """How fast is ours, against all others and against what the GPU allows?"""
    # First the peers that are soon ready, at as many works as there is time for.
    late = "compile graph,jax,compile,compile reduce-overhead,states script"

    def against(peers: str, seconds: str) -> tuple[str, ...]:
        return commands.bench("race", "--seconds", "10", "--per-comparison", seconds,
                              "--peers", peers)  # fmt: skip

    return [
        alone(Stage("race", against("eager,graph", "0.5"), 52, slack=15, numbers=_RACED)),
        alone(Stage("race-compiled", against(late, "1"), 60, slack=15, numbers=_RACED)),
        alone(Stage("roofline", commands.bench("roofline"), 38, numbers=10)),
        alone(Stage("operations", commands.bench("operations"), 38, slack=10)),
    ]


def quality(commands: Commands) -> list[Group]:
    """How soon is it as good as data, and has it become slower?"""
    return [
        *(
            alone(Stage(f"speedrun-{track}", commands.bench("speedrun", "--track", track), 47,
                        slack=15, numbers=3))
            for track in ("mixture", "states")
        ),
        alone(Stage("gate", commands.bench("gate"), 47, numbers=5)),
        alone(Stage("study", commands.bench("study"), 47, numbers=1)),
    ]  # fmt: skip


VERBS: dict[str, Callable[[Commands], list[Group]]] = {
    "check": check, "tune": tune, "race": race, "quality": quality,
}  # fmt: skip
NIGHTLY = ("check", "race", "quality")

# The same at toy size.


def smoke(verb: str, commands: Commands) -> list[Group]:
    """The stages of a verb at toy size on a CPU, to see that they work."""
    limit, bench = 300, commands.bench
    baseline = str(commands.scratch / "baseline.json")
    tests = ("kernels/test_philox_reference.py",)
    stages = {
        "check": [
            Stage("works", bench("works", "--small", "--rounds", "2"), limit, 0, 9),
        ],
        "tune": [Stage("tune", bench("tune", "--small", "--rounds", "3"), limit, 0, 45)],
        "race": [
            Stage("race", bench("race", "--rounds", "3", "--seconds", "0.01", "--peers", "eager",
                                "--budget", "10"), limit, numbers=_RACED),
            Stage("roofline", bench("roofline", "--small"), limit, numbers=10),
            Stage("operations", bench("operations", "--small", "--rounds", "0"), limit),
        ],
        "quality": [
            Stage("speedrun", bench("speedrun", "--small", "--seeds", "2"), limit, numbers=3),
            Stage("gate", bench("gate", "--rounds", "3", "--small", "--baseline", baseline), limit,
                  numbers=5),
            Stage("study", bench("study", "--small"), limit, numbers=1),
        ],
    }[verb]  # fmt: skip
    together = [
        # Tests are interpreted, so this alone compiles something.
        Stage("compile", (sys.executable, "-m", "flashpoint.bench", "compile"), limit, numbers=1),
        *(Stage(f"gpu-tests {part}/2", commands.tests(tests, "not gpu", part, 2), limit)
          for part in (1, 2)),
    ]  # fmt: skip
    first = [Group((*together, *sanitizers(commands, limit)), limit)] if verb == "check" else []
    return [*first, *map(alone, stages)]


# How they are run.


@dataclass
class Visit:
    """Runs groups of stages; log and record are complete up to the last one that ended.

    Attributes:
        folder: where everything goes.
        scratch: of files that nobody needs afterwards.
        environment: variables of all stages.
        ended: the stages so far.
    """

    folder: Path
    scratch: Path
    environment: dict[str, str]
    ended: list[Ended] = field(default_factory=list)

    def run(self, groups: list[Group], start: float) -> None:
        """Runs groups one after another; their time counts from ``start``, a time.monotonic()."""
        end, processors = start, len(os.sched_getaffinity(0))
        for group in groups:
            end += group.limit
            # Threads of processes that run together would only wait for each other.
            threads = {"OMP_NUM_THREADS": "2"} if len(group.stages) > 1 else {}
            for one in run_together(
                self._possible(group), processors, end, self.environment | threads, self.scratch
            ):
                self.add(one)

    def _possible(self, group: Group) -> list[Stage]:
        """The stages of a group whose program is there; the others are reported."""
        found = []
        for stage in group.stages:
            if shutil.which(stage.command[0], path=self.environment["PATH"]) is None:
                self.add(not_started(stage, f"there is no {stage.command[0]}"))
            else:
                found.append(stage)
        return found

    def add(self, one: Ended) -> None:
        """Puts the end of a stage into record and log, and prints it."""
        self.ended.append(one)
        ending = {
            "outcome": one.outcome,
            "exit status": one.status,
            "seconds": round(one.seconds, 1),
            "limit": round(one.limit, 1),
            "last line": one.last_line,
        }
        self.record().put(one.stage.name, **ending)
        with (self.folder / LOG).open("a") as log:
            command = " ".join(one.stage.command)
            log.write(f"=== {one.stage.name}: {command}\n{one.output[-_LOGGED:].strip()}\n")
        click.echo(f"{one.stage.name}: {one.outcome}, {one.seconds:.0f} s  {one.last_line[:100]}")

    def record(self) -> Record:
        """The record as it is now: measuring stages write to it too."""
        return Record(self.folder)

    def summary(self, title: str, notes: list[str]) -> str:
        """What the last lines say."""
        content = self.record().content["machine"]
        where = f"{content['gpu'] or 'CPU'}, commit {(content['commit'] or 'unknown')[:10]}"
        return summary.of_visit(f"{title} on {where}", self.ended, notes)


def seconds_running() -> float:
    """Since this process began: a machine that has just started takes long to import it all."""
    began = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(began) / os.sysconf("SC_CLK_TCK")


def environment_of_stages(cache: Path, scratch: Path) -> dict[str, str]:
    """The environment of all stages."""
    home = Path.home()
    # Tests ask for the interpreter where they need it; what else is visited must be compiled.
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return inherited | {
        # Only binaries: the rest of what Triton keeps is ten times as large.
        "TRITON_CACHE_DIR": str(cache),
        "TRITON_STORE_BINARY_ONLY": "1",
        # Matplotlib and others keep things in the home folder.
        "HOME": str(home if os.access(home, os.W_OK) else scratch),
        "PATH": f"{os.environ['PATH']}{os.pathsep}/usr/local/cuda/bin",  # of compute-sanitizer
        "COLUMNS": "200",  # pytest cuts the reasons of failures to this width
        "PYTHONUNBUFFERED": "1",
    }


def use_compiled(folder: Path, cache: Path) -> list[str]:
    """Unpacks what an earlier visit compiled, if it is there; what there is to say of it."""
    for archive in (folder / kernel_cache.FILE, ROOT / "bench" / kernel_cache.FILE):
        if archive.exists():
            problem = kernel_cache.unpack(archive, cache)
            return [problem] if problem else []
    return []


def keep_compiled(folder: Path, cache: Path) -> list[str]:
    """Packs what was compiled until now; what there is to say of it."""
    try:
        left_out = kernel_cache.pack(cache, folder / kernel_cache.FILE)
    except OSError as error:  # a full disk must not cost the summary
        return [f"{kernel_cache.FILE} cannot be written: {error.strerror}"]
    return [f"{kernel_cache.FILE} had no room for {left_out} kernels"] if left_out else []


def keep_baseline(folder: Path) -> None:
    """Copies the gate's baseline of this GPU, which may be new."""
    path = gate.BASELINES / f"{machine.short_name()}.json"
    if path.exists():
        shutil.copy(path, folder)


def record_folder() -> Path:
    """``$OUT``, or the folder of today's record; an earlier visit's record and log go on.

    Raises:
        UserError: the record there is of another commit, or of another GPU.
    """
    default = ROOT / "bench/records" / f"{date.today()}-{machine.short_name()}"
    folder = make_folder(Path(os.environ.get("OUT") or default))
    record = Record(folder)
    made, here = record.content["machine"]["commit"], machine.commit()
    if made != here:
        raise UserError(
            f"record {folder.name}/{FILE} was made with commit {made}, here it is {here}; "
            "name another folder with OUT"
        )
    record.write()
    return folder


@click.command()
@click.argument("verb", required=False, type=click.Choice(tuple(VERBS)))
@click.option("--smoke", "toy", is_flag=True, help="The same stages at toy size on a CPU.")
def main(verb: str | None, toy: bool) -> None:
    """Everything that needs a GPU, or the part of it that VERB names."""
    if not toy and not torch.cuda.is_available():
        raise UserError("there is no CUDA device; --smoke runs the stages at toy size on a CPU")
    start, folder = time.monotonic() - seconds_running() + START, record_folder()
    cache = make_folder(Path(os.environ.get("TRITON_CACHE_DIR") or ROOT / "build/compiled"))
    notes = use_compiled(folder, cache)
    interrupted = False
    with tempfile.TemporaryDirectory() as scratch:
        commands = Commands(folder, "cpu" if toy else "cuda", Path(scratch))
        visit = Visit(folder, Path(scratch), environment_of_stages(cache, Path(scratch)))
        try:
            for one in (verb,) if verb else NIGHTLY:
                visit.run(smoke(one, commands) if toy else VERBS[one](commands), start)
                start = time.monotonic()
        except KeyboardInterrupt:
            interrupted = True
    notes += keep_compiled(folder, cache)
    if not toy:
        keep_baseline(folder)
    click.echo(visit.summary(verb or "all", [*notes, f"results in {folder}"]))
    if interrupted:
        click.echo(f"interrupted; {folder} holds what was measured until then", err=True)
        raise SystemExit(130)
    raise SystemExit(not all(one.good for one in visit.ended))
