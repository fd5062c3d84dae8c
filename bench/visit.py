"""A visit to a GPU: tests, sanitizers and benchmarks, each within a time limit, then a summary.

    bench/gpu.sh [check | tune | race | quality] [--smoke]

Each verb fits a short visit; without a verb all but ``tune`` are done. Results go to ``$OUT`` if
that is set, else to ``bench/records/<date>-<gpu>/``:

* ``record.json`` and ``log.txt``, to which each stage is added when it ends;
* figures;
* ``tiles-<GPU>-triton-<version>.json``, if ``tune`` found faster tile sizes;
* the gate's baseline, which belongs into ``bench/records/baselines/``;
* ``compiled.tar.gz``, the kernels that Triton compiled. The next visit uses the file if it is in
  the same folder or in ``bench/``, and does not compile these kernels again.
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

from ..diffusion.errors import UserError
from ..diffusion.files import make_folder
from . import kernel_cache, machine, summary
from .record import FILE, Record
from .stages import Ended, Stage, not_started, run_together

ROOT = Path(__file__).resolve().parents[1]
# Seconds that each verb may take, and those of them that no stage has: the start, for imports and
# unpacking, and the end, for packing the compiled kernels. A longer start takes time from the first
# stages.
LIMITS = {"check": 150, "tune": 150, "race": 200, "quality": 200}
START, END = 8, 4
_RACED = 11  # lines of the race's summary table
LOG = "log.txt"
_LOGGED = 200_000  # characters at the end of a stage's output that the log keeps

# Files of tests, the most important first, and the number of processes that share the compilation
# of their kernels. Then come all other files with a test that needs a GPU. Last come tests of some
# files that need no GPU: they run in the interpreter too, and must pass on a GPU as well.
PARTS = {
    "kernels/test_every_network.py": 10,
    "kernels/test_mlp_kernel.py": 5,
    "kernels/test_hopper_on_a_gpu.py": 4,
    "kernels/test_train_step_hopper.py": 4,
    "kernels/test_mlp_hopper.py": 4,
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
        stages: stages, the most important first.
        limit: the most seconds after the planned end of the group before. If that group ended
            early, stages with longer limits of their own may use the time that it left.
    """

    stages: tuple[Stage, ...]
    limit: float


def alone(stage: Stage) -> Group:
    """Returns a group of one stage, which is timed, so that nothing may run beside it."""
    return Group((stage,), stage.limit)


@dataclass
class Commands:
    """The commands of stages.

    Attributes:
        folder: folder of the record.
        device: device to measure on.
        scratch: folder of temporary files.
    """

    folder: Path
    device: str
    scratch: Path

    def bench(self, name: str, *options: str, record: bool = True) -> tuple[str, ...]:
        """Returns the command of a benchmark; only one that runs alone may write to the record."""
        # --busy: another process on the GPU is noted in the record and is no error.
        common = ("--device", self.device, "--busy")
        common += ("--record", str(self.folder)) if record else ()
        return (sys.executable, "-m", "flashpoint.bench", name, *common, *options)

    def tests(self, files: Iterable[str], marks: str, part: int, parts: int) -> tuple[str, ...]:
        """Returns the command for a part of the tests of some files."""
        return (
            sys.executable, "-m", "pytest", "-q", "--tb", "short", "-p", "no:cacheprovider",
            "-p", "flashpoint.bench.pytest_part", "--part", f"{part}/{parts}", "-m", marks,
            *(str(ROOT / "tests" / file) for file in files),
        )  # fmt: skip


# The verbs at full size.


def other_files() -> list[str]:
    """Returns the other files of ``tests`` with a test that needs a GPU."""
    tests = ROOT / "tests"
    found = (
        path.relative_to(tests).as_posix()
        for path in sorted(tests.rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    )  # fmt: skip
    return [file for file in found if file not in PARTS]


def tests_of(commands: Commands, limit: float) -> list[Stage]:
    """Returns the stages of all tests that matter on a GPU, the most important first."""
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
    """Returns the stages of memcheck and racecheck, of works and operations at small size."""
    # Without the caching allocator each tensor is an allocation of its own, with guarded ends.
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
    """Returns the groups that test everything and time the works that users wait for."""
    from . import works  # only here, because it imports all that is compared

    ready = [
        # Compiles the kernels of the sanitizers and of the timed works.
        Stage(f"right {kind}", commands.bench("works", "--until", "run", "--only", kind,
                                              record=False), 88)
        for kind in works.KINDS
    ]  # fmt: skip
    return [
        Group((*ready, *tests_of(commands, 88), *sanitizers(commands, 88)), 88),
        alone(Stage("works", commands.bench("works"), 50, slack=6, numbers=9)),
    ]


def tune(commands: Commands) -> list[Group]:
    """Returns the groups that time other tile sizes, and how the time grows with the models."""
    return [
        alone(Stage("tune", commands.bench("tune"), 100, slack=12, numbers=45)),
        alone(Stage("sweep", commands.bench("sweep", "--rounds", "10"), 38, slack=14, numbers=27)),
    ]


def race(commands: Commands) -> list[Group]:
    """Returns the groups that compare ours with all peers and with the limits of the GPU."""
    # The peers that are ready soon come first, at as many works as there is time for.
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
    """Returns the groups of the time to quality, the gate and the study."""
    # A GPU that has no baseline yet gets one, which takes three times the rounds.
    first = () if baseline_of_gpu().exists() else ("--update", "--rounds", "20")
    return [
        *(
            alone(Stage(f"speedrun-{track}", commands.bench("speedrun", "--track", track), 47,
                        slack=15, numbers=3))
            for track in ("mixture", "states")
        ),
        alone(Stage("gate", commands.bench("gate", *first), 47, numbers=10)),
        alone(Stage("study", commands.bench("study"), 47, numbers=1)),
    ]  # fmt: skip


VERBS: dict[str, Callable[[Commands], list[Group]]] = {
    "check": check, "tune": tune, "race": race, "quality": quality,
}  # fmt: skip
NIGHTLY = ("check", "race", "quality")

# The same at toy size.


def smoke(verb: str, commands: Commands) -> list[Group]:
    """Returns the stages of a verb at toy size on a CPU, to test them."""
    limit, bench = 900, commands.bench  # for a CPU that others use too
    baseline = str(commands.scratch / "baseline.json")
    tests = ("kernels/test_philox_reference.py",)
    stages = {
        "check": [
            Stage("works", bench("works", "--small", "--rounds", "2"), limit, 0, 9),
        ],
        "tune": [
            Stage("tune", bench("tune", "--small", "--rounds", "3"), limit, 0, 45),
            Stage("sweep", bench("sweep", "--small", "--models", "1,4", "--rounds", "2"), limit,
                  numbers=2),
        ],
        "race": [
            Stage("race", bench("race", "--rounds", "3", "--seconds", "0.01", "--peers", "eager",
                                "--budget", "10"), limit, numbers=_RACED),
            Stage("roofline", bench("roofline", "--small"), limit, numbers=10),
            Stage("operations", bench("operations", "--small", "--rounds", "0"), limit),
        ],
        "quality": [
            Stage("speedrun", bench("speedrun", "--small", "--seeds", "2"), limit, numbers=3),
            Stage("gate", bench("gate", "--rounds", "3", "--small", "--baseline", baseline,
                                "--update"), limit, numbers=10),
            Stage("study", bench("study", "--small"), limit, numbers=1),
        ],
    }[verb]  # fmt: skip
    together = [
        # Tests are interpreted, so only this stage compiles kernels.
        Stage("compile", (sys.executable, "-m", "flashpoint.bench", "compile"), limit, numbers=1),
        *(Stage(f"gpu-tests {part}/2", commands.tests(tests, "not gpu", part, 2), limit)
          for part in (1, 2)),
    ]  # fmt: skip
    first = [Group((*together, *sanitizers(commands, limit)), limit)] if verb == "check" else []
    return [*first, *map(alone, stages)]


# Running the stages.


@dataclass
class Visit:
    """Runs groups of stages; log and record are complete up to the last stage that ended.

    Attributes:
        folder: folder of the results.
        scratch: folder of temporary files.
        environment: variables of all stages.
        ended: the stages that have ended.
    """

    folder: Path
    scratch: Path
    environment: dict[str, str]
    ended: list[Ended] = field(default_factory=list)

    def run(self, groups: list[Group], start: float) -> None:
        """Runs groups one after another; their limits count from ``start``, a time.monotonic()."""
        end, processors = start, len(os.sched_getaffinity(0))
        for group in groups:
            end += group.limit
            # With more threads, processes that run together would wait for each other.
            threads = {"OMP_NUM_THREADS": "2"} if len(group.stages) > 1 else {}
            for one in run_together(
                self._possible(group), processors, end, self.environment | threads, self.scratch
            ):
                self.add(one)

    def _possible(self, group: Group) -> list[Stage]:
        """Returns the stages of a group whose program exists, and reports the others."""
        found = []
        for stage in group.stages:
            if shutil.which(stage.command[0], path=self.environment["PATH"]) is None:
                self.add(not_started(stage, f"there is no {stage.command[0]}"))
            else:
                found.append(stage)
        return found

    def add(self, one: Ended) -> None:
        """Adds the end of a stage to record and log, and prints it."""
        self.ended.append(one)
        ending = {
            "outcome": one.outcome,
            "exit status": one.status,
            "seconds": round(one.seconds, 1),
            "limit": round(one.limit, 1),
            "last line": one.last_line,
        }
        self.record().put(one.stage.name, **ending)
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            command = " ".join(one.stage.command)
            log.write(f"=== {one.stage.name}: {command}\n{one.output[-_LOGGED:].strip()}\n")
        click.echo(f"{one.stage.name}: {one.outcome}, {one.seconds:.0f} s  {one.last_line[:100]}")

    def record(self) -> Record:
        """Reads the record, because stages write to it too."""
        return Record(self.folder)

    def summary(self, title: str, notes: list[str]) -> str:
        """Returns the last lines of the output."""
        content = self.record().content["machine"]
        where = f"{content['gpu'] or 'CPU'}, commit {(content['commit'] or 'unknown')[:10]}"
        return summary.of_visit(f"{title} on {where}", self.ended, notes)


def seconds_running() -> float:
    """Returns the age of this process: a machine that has just started is slow to import."""
    began = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(began) / os.sysconf("SC_CLK_TCK")


def environment_of_stages(cache: Path, scratch: Path) -> dict[str, str]:
    """Returns the environment of all stages."""
    home = Path.home()
    # Tests ask for the interpreter themselves; all other stages must compile.
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return inherited | {
        # Only binaries, because the other files of Triton's cache are ten times as large.
        "TRITON_CACHE_DIR": str(cache),
        "TRITON_STORE_BINARY_ONLY": "1",
        # Matplotlib and others write into the home folder.
        "HOME": str(home if os.access(home, os.W_OK) else scratch),
        "PATH": f"{os.environ['PATH']}{os.pathsep}/usr/local/cuda/bin",  # for compute-sanitizer
        "COLUMNS": "200",  # pytest cuts the reasons of failures to this width
        "PYTHONUNBUFFERED": "1",
    }


def use_compiled(folder: Path, cache: Path) -> list[str]:
    """Unpacks the kernels of an earlier visit, if any; returns notes for the summary."""
    for archive in (folder / kernel_cache.FILE, ROOT / "bench" / kernel_cache.FILE):
        if archive.exists():
            problem = kernel_cache.unpack(archive, cache)
            return [problem] if problem else []
    return []


def keep_compiled(folder: Path, cache: Path) -> list[str]:
    """Packs the compiled kernels; returns notes for the summary."""
    try:
        left_out = kernel_cache.pack(cache, folder / kernel_cache.FILE)
    except OSError as error:  # a full disk must not cost the summary
        return [f"{kernel_cache.FILE} cannot be written: {error.strerror}"]
    return [f"{kernel_cache.FILE} had no room for {left_out} kernels"] if left_out else []


def baseline_of_gpu() -> Path:
    """Returns the file of the gate's baseline of this GPU, which may not exist."""
    from .baseline import BASELINES

    return BASELINES / f"{machine.short_name()}.json"


def keep_baseline(folder: Path) -> None:
    """Copies the gate's baseline of this GPU, which may be new."""
    if baseline_of_gpu().exists():
        shutil.copy(baseline_of_gpu(), folder)


def record_folder() -> Path:
    """Returns ``$OUT``, or the folder of today's record; adds to the record of an earlier visit.

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
@click.option("--smoke", "toy", is_flag=True, help="Run the same stages at toy size on a CPU.")
def main(verb: str | None, toy: bool) -> None:
    """Run everything that needs a GPU, or the part that VERB names."""
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
        click.echo(f"interrupted; {folder} holds the results until then", err=True)
        raise SystemExit(130)
    raise SystemExit(not all(one.good for one in visit.ended))
