"""Turns the records into pages.

    python -m flashpoint.bench report

This writes ``docs/benchmarks.md`` with its plots, and two sections of ``README.md`` between their
markers: the quality of samples and the performance. Each device is shown by its newest record.
Numbers that no record holds are marked as not measured; nothing is typed by hand.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from ..diffusion.errors import UserError
from ..diffusion.files import load_json, make_target, write_atomically
from . import figures
from .costs import Rates
from .record import FILE, SUITE, read
from .roofline import Point
from .roofline import table as roofline_table
from .speedrun import CALIBRATION, TRACKS
from .tables import (
    NOT_MEASURED,
    quality_table,
    race_table,
    selftest_table,
    speedrun_table,
    study_table,
    summary_table,
    title,
    works_table,
)
from .timing import clopper_pearson

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "bench" / "records"


@dataclass(frozen=True)
class Measured:
    """A record: the name of its folder, its machine and its stages."""

    name: str
    machine: dict
    stages: dict

    @property
    def device(self) -> str:
        machine = self.machine
        return machine["gpu"] or f"CPU, {machine['processor']}, {machine['threads']} threads"

    @property
    def date(self) -> str:
        return self.machine["date"]

    def results(self, stage: str) -> list[dict]:
        """Returns the results of a stage, none if it was not measured.

        Raises:
            ValueError: they are no list of objects.
        """
        results = self.stages.get(stage, {}).get("results", [])
        if not (isinstance(results, list) and all(isinstance(one, dict) for one in results)):
            raise UserError(f"record {self.name}: results of {stage} must be a list of objects")
        return results


def read_records(folder: Path) -> list[Measured]:
    """Returns all records of this version of the suite, oldest first, and prints the others.

    Raises:
        ValueError: the folder does not exist, or a record cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"records {folder} is not a folder")
    found = []
    for path in sorted(folder.glob(f"*/{FILE}")):
        content = read(path)
        if content["suite"] == SUITE:
            found.append(Measured(path.parent.name, content["machine"], content["stages"]))
        else:
            click.echo(f"left out {path.parent.name}, of suite {content['suite']}; this is {SUITE}")
    return sorted(found, key=lambda record: record.date)


def latest(records: Iterable[Measured], stage: str) -> dict[str, Measured]:
    """Returns the newest record with results of a stage by device, GPUs first."""
    newest = {record.device: record for record in records if record.results(stage)}
    return dict(sorted(newest.items(), key=lambda item: item[1].machine["gpu"] is None))


def provenance(record: Measured) -> str:
    """Returns a sentence with a record's name, commit and versions."""
    machine = record.machine
    commit = (machine["commit"] or "unknown")[:10]
    changed = ", with uncommitted changes" if machine["uncommitted changes"] else ""
    return (
        f"Record [`{record.name}`](../bench/records/{record.name}), commit {commit}{changed}, "
        f"torch {machine['torch']}, triton {machine['triton']}, python {machine['python']}."
    )


class Page:
    """``docs/benchmarks.md`` and its plots."""

    def __init__(self, records: list[Measured], path: Path):
        self.records, self.path = records, path
        self.parts = [
            "# Benchmarks",
            "Written by `python -m flashpoint.bench report` from `bench/records/`. Each library is "
            "checked against float64 before it is timed. Then ours and the peer work in turn on "
            "the same warm machine. A speedup is the peer's time divided by ours: the median over "
            "the paired rounds, with its bootstrap 95% interval. Of three to five rounds, as the "
            "longest works in older records have, it is at most the range of the ratios, which "
            "holds the true median in 75% to 94% of all cases. The time of ours is the "
            "median over its comparisons, in older records that of the last one. The floor is the "
            "shortest time in which the device could do the work.",
        ]

    def write(self) -> None:
        if not any(record.machine["gpu"] for record in latest(self.records, "race").values()):
            self.parts.append(f"## Race: on a GPU\n\n{NOT_MEASURED}: `bench/gpu.sh` measures it.")
        for stage, write in (
            ("works", self.works), ("race", self.race), ("roofline", self.roofline),
            ("speedrun", self.speedrun), ("study", self.study), ("gate-selftest", self.selftest),
        ):  # fmt: skip
            for device, record in latest(self.records, stage).items():
                write(device, record)
        self.calibration(CALIBRATION)
        self.trends()
        write_atomically(self.path, ("\n\n".join(self.parts) + "\n").encode())

    def plot(self, kind: str, record: Measured | None = None) -> Path:
        """Adds a plot to the page and returns the path of its file."""
        name = f"benchmarks-{kind}{'' if record is None else '-' + record.name}.png"
        self.parts.append(f"![{kind}]({name})")
        return self.path.with_name(name)

    def works(self, device: str, record: Measured) -> None:
        table = works_table(record.results("works"))
        self.parts += [f"## Beside eager PyTorch: {device}", provenance(record), table]

    def race(self, device: str, record: Measured) -> None:
        entries = record.results("race")
        left_out = record.stages["race"].get("left_out", [])
        self.parts += [f"## Race: {device}", provenance(record), summary_table(entries)]
        if left_out:
            self.parts.append("Left out:\n\n" + "\n".join(f"* {line}" for line in left_out))
        speedups = defaultdict(dict)
        for entry in entries:
            if timing := entry["timing"]:
                known = speedups[f"{entry['peer']}, {entry['precision']}"]
                ends = (timing[name] for name in ("speedup", "low", "high"))
                known[title(entry)] = figures.Speedup(*ends)
        figures.speedup_figure(speedups, self.plot("speedups", record))
        self.parts.append(race_table(entries))

    def roofline(self, device: str, record: Measured) -> None:
        points = [Point(**point) for point in record.results("roofline")]
        rates = Rates(**record.stages["roofline"]["rates"])
        self.parts += [f"## Roofline: {device}", provenance(record), roofline_table(points)]
        figures.roofline_figure(rates, points, self.plot("roofline", record))

    def speedrun(self, device: str, record: Measured) -> None:
        results = record.results("speedrun")
        self.parts += [f"## Time to quality: {device}", provenance(record), speedrun_table(results)]
        figures.speedrun_figure(results, self.plot("speedrun", record))

    def study(self, device: str, record: Measured) -> None:
        self.parts += [f"## The study of timesteps: {device}", provenance(record),
                       study_table(record.results("study"))]  # fmt: skip

    def calibration(self, path: Path) -> None:
        """Adds the share of real draws that pass the batteries of the speedrun."""
        content = load_json(path, "calibration") if path.exists() else {}
        self.parts.append("## Real draws in the tests of time to quality")
        for name in TRACKS:
            if name not in content:
                self.parts.append(f"{name}: {NOT_MEASURED}")
                continue
            battery = content[name]["battery"]
            low, high = clopper_pearson(battery["passed"], battery["repeats"])
            self.parts.append(
                f"{name}: {battery['passed']} of {battery['repeats']} repeats with real draws in "
                f"place of samples pass all {battery['tests']} tests jointly "
                f"(95% {low:.1%} to {high:.1%}); {battery['definition']}."
            )
            if (tau := content[name]["tau"]) is not None:
                self.parts[-1] += f" The excess loss must be at most tau = {tau:.2g}."

    def selftest(self, device: str, record: Measured) -> None:
        self.parts += [f"## Self-test of the gate: {device}", provenance(record),
                       selftest_table(record.results("gate-selftest"))]  # fmt: skip

    def trends(self) -> None:
        series = defaultdict(list)
        for record in self.records:
            for entry in record.results("race"):
                if entry["peer"] == "ours" and entry["us"]:
                    series[f"{title(entry)}; {record.device}"].append(
                        (record.date[:10], entry["us"])
                    )
        series = {name: line for name, line in series.items() if len(line) > 1}
        if series:
            self.parts.append("## Trends")
            figures.trend_figure(series, self.plot("trends"))


def performance_section(records: list[Measured]) -> str:
    """Returns the performance tables of the README, with the rows of a GPU even if empty."""
    newest, parts = latest(records, "race"), []
    for device, record in latest(records, "works").items():
        parts += [
            f"{device}, beside eager PyTorch ([record](bench/records/{record.name})):",
            works_table(record.results("works")),
        ]
    if not any(record.machine["gpu"] for record in newest.values()):
        parts += ["On a GPU, against all other libraries:", summary_table([])]
    for device, record in newest.items():
        table = summary_table(record.results("race"))
        parts += [f"{device} ([record](bench/records/{record.name})):", table]
    return "\n\n".join(parts)


def quality_section(folder: Path) -> str:
    """Returns the README's tables of the quality of samples, from the newest runs of STATES.

    Args:
        folder: the records. A record of runs holds the ``metrics.json`` of each as
            ``seed-<number>.json``, and may hold those of the deterministic update as
            ``ddim-<number>.json``.
    """
    runs = sorted(folder.glob("*/seed-*.json"))
    if not runs:
        return f"Quality of samples: {NOT_MEASURED}."
    newest = runs[-1].parent
    seeds, table = _quality_of(newest, "seed-")
    parts = [
        f"`flashpoint states`, {seeds} ([record](bench/records/{newest.name})):", table,
        "✗: outside the band in at least one seed.",
    ]  # fmt: skip
    if any(newest.glob("ddim-*.json")):
        seeds, table = _quality_of(newest, "ddim-")
        parts += [
            "The deterministic update (Song et al. 2021, equation 12 with sigma = 0), guided with "
            "scale 1, without the noise that corrects errors: `flashpoint states --recipe fast "
            f"--method ddim`, {seeds}:",
            table,
        ]
    return "\n\n".join(parts)


def _quality_of(folder: Path, prefix: str) -> tuple[str, str]:
    """Returns the seeds of the runs whose files begin so, in words, and the table of them."""
    files = {_seed_of(path, prefix): path for path in folder.glob(f"{prefix}*.json")}
    *first, last = map(str, sorted(files))
    seeds = f"seeds {', '.join(first)} and {last}" if first else f"seed {last}"
    runs = {path: load_json(path, "run") for _, path in sorted(files.items())}
    if lacking := [path for path, run in runs.items() if "metrics" not in run]:
        raise UserError(f"run {lacking[0]} lacks metrics")
    return seeds, quality_table([run["metrics"] for run in runs.values()])


def _seed_of(path: Path, prefix: str) -> int:
    """Returns the seed in the name of a file."""
    try:
        return int(path.stem.removeprefix(prefix))
    except ValueError as error:
        raise UserError(f"run {path} must be named {prefix}NUMBER.json") from error


def put_between_markers(text: str, name: str, section: str) -> str:
    """Returns the text with a section between the two markers of its name.

    Raises:
        ValueError: one of the markers is missing, or they are in the wrong order.
    """
    begin = f"<!-- {name}: written by python -m flashpoint.bench report -->"
    end = f"<!-- end of {name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise UserError(f"README must hold the lines {begin} and {end}")
    return f"{before}{begin}\n\n{section}\n\n{end}{after}"


def readme_of(text: str, folder: Path, records: list[Measured]) -> str:
    """Returns the text of the README with its two sections brought up to date."""
    text = put_between_markers(text, "quality", quality_section(folder))
    return put_between_markers(text, "performance", performance_section(records))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"--readme {path} cannot be read: {reason}") from error


_path = click.Path(path_type=Path)


@click.command()
@click.option("--records", type=_path, default=RECORDS, help="Folder of records. Default: all.")
@click.option("--page", type=_path, default=ROOT / "docs/benchmarks.md", help="Page to write.")
@click.option("--readme", type=_path, default=ROOT / "README.md", help="README to update.")
def main(records: Path, page: Path, readme: Path) -> None:
    """Write the page of benchmarks and the README's tables from the records."""
    if page.resolve() == readme.resolve():
        raise UserError(f"--page and --readme must be two files, got {page} for both")
    make_target(page, ".md")
    found = read_records(records)
    try:
        text = readme_of(_read_text(readme), records, found)
        Page(found, page).write()
    except (KeyError, TypeError) as error:
        raise UserError(f"a record in {records} lacks or misnames a number: {error}") from error
    write_atomically(readme, text.encode())
    click.echo(f"{len(found)} records; wrote {page.name} and {readme.name}")
