"""From records to a page: the latest table of each device, trends, speedups, roofline.

    python -m flashpoint.bench report

writes ``docs/benchmarks.md`` with its plots, and the performance table of ``README.md`` between its
two markers. What no record holds is marked as not measured; nothing is typed by hand.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from ..diffusion import UserError
from ..diffusion.files import make_folder, write_atomically
from . import figures
from .costs import Rates
from .record import FILE, SUITE, read
from .roofline import Point
from .roofline import table as roofline_table
from .speedrun import CALIBRATION, TRACKS
from .timing import clopper_pearson
from .workloads import EVERY_WORK

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- performance: written by python -m flashpoint.bench report -->"
END = "<!-- end of performance -->"
NOT_MEASURED = "**not measured**"


@dataclass(frozen=True)
class Measured:
    """One record: where it lies, what machine it is of, and its stages."""

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
        return self.stages.get(stage, {}).get("results", [])


def read_records(folder: Path) -> list[Measured]:
    """All records of this version of the suite, oldest first; says which are left out.

    Raises:
        ValueError: there is no such folder, or a record cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"records {folder} is no folder")
    found = []
    for path in sorted(folder.glob(f"*/{FILE}")):
        content = read(path)
        if content["suite"] == SUITE:
            found.append(Measured(path.parent.name, content["machine"], content["stages"]))
        else:
            click.echo(f"left out {path.parent.name}, of suite {content['suite']}; this is {SUITE}")
    return sorted(found, key=lambda record: record.date)


def latest(records: Iterable[Measured], stage: str) -> dict[str, Measured]:
    """The newest record with results of this stage, by device; GPUs first."""
    newest = {record.device: record for record in records if record.results(stage)}
    return dict(sorted(newest.items(), key=lambda item: item[1].machine["gpu"] is None))


def duration(us: float) -> str:
    """Microseconds for a reader."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}"
    return f"{us:.3g} us"


def title(entry: dict) -> str:
    """A workload's name, and how far it was cut."""
    cut = f" ({entry['steps']} of {entry['full_steps']} steps)"
    return f"{entry['work']}, {entry['rows']:,} rows" + cut * (entry["steps"] < entry["full_steps"])


def of_work(entries: list[dict], work: str, rows: int) -> tuple[dict | None, list[dict]]:
    """Ours at this work, and the peers that were timed against it."""
    here = [entry for entry in entries if (entry["work"], entry["rows"]) == (work, rows)]
    ours = next((entry for entry in here if entry["peer"] == "ours" and entry["us"]), None)
    return ours, [entry for entry in here if entry["timing"]]


def times_as_fast(entry: dict) -> str:
    """A speedup with its interval."""
    timing = entry["timing"]
    return f"{timing['speedup']:.2f} ({timing['low']:.2f} to {timing['high']:.2f})"


def race_table(entries: list[dict]) -> str:
    """Ours beside every peer at every work."""
    lines = [
        "| work | who | precision | time | ours is times as fast (95%) | floor | memory, MiB |",
        "| --- " * 7 + "|",
    ]
    for entry in entries:
        time = NOT_MEASURED if entry["us"] is None else duration(entry["us"])
        ratio = times_as_fast(entry) if entry["timing"] else entry["unavailable"] or ""
        memory = "" if entry["memory_mib"] is None else f"{entry['memory_mib']:.0f}"
        lines.append(
            f"| {title(entry)} | {entry['peer']} | {entry['precision']} | {time} | {ratio} "
            f"| {duration(entry['floor_us'])} | {memory} |"
        )
    return "\n".join(lines)


def summary_table(entries: list[dict]) -> str:
    """Every work in one line: ours, against the fastest peer and against eager PyTorch."""
    lines = [
        "| work | ours | fastest peer | times as fast as it (95%) | as eager PyTorch (95%) |",
        "| --- " * 5 + "|",
    ]
    for work, rows in EVERY_WORK:
        ours, peers = of_work(entries, work, rows)
        if ours is None:
            lines.append(f"| {work}, {rows:,} rows | {NOT_MEASURED} | | | |")
            continue
        best = min(peers, key=lambda entry: entry["timing"]["speedup"], default=None)
        eager = [entry for entry in peers if entry["peer"] == "eager"]
        eager = min(eager, key=lambda entry: entry["timing"]["speedup"], default=None)
        lines.append(
            f"| {title(ours)} | {duration(ours['us'])} "
            f"| {best['peer'] + ', ' + best['precision'] if best else NOT_MEASURED} "
            f"| {times_as_fast(best) if best else ''} | {times_as_fast(eager) if eager else ''} |"
        )
    return "\n".join(lines)


def works_table(results: list[dict]) -> str:
    """What users wait for, ours beside eager PyTorch."""
    lines = ["| work | ours | eager PyTorch | times as fast (95%) |", "| --- " * 4 + "|"]
    for one in results:
        if one["timing"] is None:
            lines.append(f"| {one['work']} | {one['unavailable'] or NOT_MEASURED} | | |")
            continue
        timing = one["timing"]
        lines.append(
            f"| {one['work']} | {duration(timing['ours_us'])} "
            f"| {duration(timing['peer_us'])}, {one['eager']} | {times_as_fast(one)} |"
        )
    return "\n".join(lines)


def speedrun_table(results: list[dict]) -> str:
    """Time to quality of each track."""
    lines = [
        "| track | seeds | as good as data (95%) | median s (95%) | p95 s (95%) | cold start s |",
        "| --- " * 6 + "|",
    ]
    for one in results:
        rate, seeds = one["pass_rate"], len(one["seeds"])
        median, p95 = (
            # One seed has no interval.
            f"{x:.3g} ({low:.3g} to {high:.3g})" if seeds > 1 else f"{x:.3g}"
            for x, low, high in (one["median_seconds"], one["p95_seconds"])
        )
        lines.append(
            f"| {one['track']} | {seeds} | {rate[0]:.0%} ({rate[1]:.0%} to {rate[2]:.0%}) "
            f"| {median} | {p95} | {one['cold_start_seconds']:.3g} |"
        )
    failures = [
        f"* {one['track']}, seed {seed['seed']} fails: {', '.join(seed['failed'])}"
        for one in results for seed in one["seeds"] if seed["failed"]
    ]  # fmt: skip
    return "\n".join([*lines, "", *failures] if failures else lines)


def study_table(results: list[dict]) -> str:
    """Training of many models at once."""
    lines = ["| models at once | training s | together s | cold start s |", "| --- " * 4 + "|"]
    lines += [
        f"| {' and '.join(map(str, one['models']))} "
        f"| {' and '.join(f'{seconds:.3g}' for seconds in one['seconds'])} "
        f"| {sum(one['seconds']):.3g} | {one['cold_start_seconds']:.3g} |"
        for one in results
    ]
    return "\n".join(lines)


def selftest_table(results: list[dict]) -> str:
    """How often the gate noticed planted work."""
    lines = ["| planted | alarms | of runs | rate (95%) | invalid nights |", "| --- " * 5 + "|"]
    lines += [
        f"| {one['extra_rows']:.0%} more rows | {one['alarms']} | {one['runs']} "
        f"| {one['alarms'] / max(1, one['runs']):.0%} ({one['low']:.0%} to {one['high']:.0%}) "
        f"| {one['invalid']} |"
        for one in results
    ]
    return "\n".join(lines)


def provenance(record: Measured) -> str:
    """On which machine, with which versions and when a record was made."""
    machine = record.machine
    commit = (machine["commit"] or "unknown")[:10]
    changed = ", with uncommitted changes" if machine["uncommitted changes"] else ""
    return (
        f"Record [`{record.name}`](../bench/records/{record.name}), commit {commit}{changed}, "
        f"torch {machine['torch']}, triton {machine['triton']}, python {machine['python']}."
    )


class Page:
    """``docs/benchmarks.md`` and its plots, from all records."""

    def __init__(self, records: list[Measured], path: Path):
        self.records, self.path = records, path
        self.parts = [
            "# Benchmarks",
            "Written by `python -m flashpoint.bench report` from `bench/records/`. Each peer is "
            "checked against float64 before it is timed; ours and the peer then work in turn, "
            "warm, on the same machine, and the ratio is the median of the paired rounds with its "
            "bootstrap 95% interval. The floor is the time below which that device cannot "
            "do the work.",
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
        """Where a plot goes, and its place on the page."""
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
        titles = list(dict.fromkeys(title(entry) for entry in entries))
        speedups = defaultdict(lambda: [float("nan")] * len(titles))
        for entry in entries:
            if entry["timing"]:
                name = f"{entry['peer']}, {entry['precision']}"
                speedups[name][titles.index(title(entry))] = entry["timing"]["speedup"]
        figures.speedup_figure(titles, speedups, self.plot("speedups", record))
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
        """How many real draws pass the batteries of the speedrun, which stand in one file."""
        content = json.loads(path.read_text()) if path.exists() else {}
        self.parts.append("## Do real draws pass the tests of time to quality?")
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
        self.parts += [f"## Does the gate notice: {device}", provenance(record),
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


def readme_section(records: list[Measured]) -> str:
    """The performance tables of the README: each device's, and the GPU's rows even if empty."""
    newest, parts = latest(records, "race"), []
    for device, record in latest(records, "works").items():
        parts += [
            f"{device}, beside eager PyTorch ([record](bench/records/{record.name})):",
            works_table(record.results("works")),
        ]
    if not any(record.machine["gpu"] for record in newest.values()):
        parts += ["On a GPU, against all:", summary_table([])]
    for device, record in newest.items():
        table = summary_table(record.results("race"))
        parts += [f"{device} ([record](bench/records/{record.name})):", table]
    return "\n\n".join(parts)


def put_between_markers(text: str, section: str) -> str:
    """The text with the section between the markers.

    Raises:
        ValueError: the markers are not there, once each and in this order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"README must hold the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


_path = click.Path(path_type=Path)


@click.command()
@click.option("--records", type=_path, default=ROOT / "bench/records", help="Default: all.")
@click.option("--page", type=_path, default=ROOT / "docs/benchmarks.md", help="What is written.")
@click.option("--readme", type=_path, default=ROOT / "README.md", help="With the two markers.")
def main(records: Path, page: Path, readme: Path) -> None:
    """Turn the records into a page with plots, and into the README's table."""
    found = read_records(records)
    text = put_between_markers(readme.read_text(), readme_section(found))
    make_folder(page.parent)
    Page(found, page).write()
    write_atomically(readme, text.encode())
    click.echo(f"{len(found)} records; wrote {page.name} and {readme.name}")
