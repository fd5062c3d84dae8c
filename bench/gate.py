"""The nightly gate, which fails when ours has become slower.

    python -m flashpoint.bench gate --history FOLDER    compares with the nights in a folder
    python -m flashpoint.bench gate                     compares with the baseline of this device
    python -m flashpoint.bench gate --update            writes the baseline

Ours and the frozen work of ``reference_work.py`` run in turn, A B B A. The gate compares the median
of the paired ratios from night to night, because clocks, drivers and neighbours change both times.
Ours has become slower if the favourable bound of the ratio's bootstrap 95% interval is more than 3%
below the bar, and again in a second measurement; or if the median of the last five nights is.

The bar is the ratio in the baseline. With a history it is that of the first night, or the highest
median of five nights in a row (``nights.py``). Every work is judged alone. It is invalid if the
time of the reference differs by more than 10% from the earlier one, or a number is no measurement.

``--update`` starts the times of the reference anew, and keeps each bar unless tonight's is higher.
Only ``--accept-slower`` lowers a bar.

Exit status 0: as fast as before. 1: a work is slower, whatever the others are. 2: a wrong argument,
or a file that cannot be used. 3: a work is invalid, and none is slower. 4: nothing to compare with,
so tonight was written for later nights. 5: an answer is wrong, so nothing was timed, or a work
broke. 130: interrupted. 143: told to stop by the system.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import click
import torch

from ..diffusion.errors import UserError
from ..diffusion.files import make_folder
from . import announce, trend
from .baseline import BASELINES, Baseline, setup
from .gate_works import allowed, errors, measure, works
from .machine import describe, free_device
from .nights import History, Night, missing, read_nights, write_night
from .operations import one_line
from .options import Number, rounds_option
from .problem import Problem, states_problem
from .record import FILE, Record, record_option
from .timing import Timing
from .verdict import Status, Verdict, compare, headline, judge, status_of, table

__all__ = ["compare", "main"]

_BAR_ROUNDS = 3  # times the rounds of a night, because every night is compared with a bar
_SECONDS = 4.0  # limit of the rounds of a work in a night


class WrongAnswerError(Exception):
    """An answer of ours is wrong; the message is one line."""


@dataclass
class Options:
    """Options of the command, see its help."""

    update: bool
    accept_slower: bool
    device: torch.device
    rounds: int
    extra_rows: float
    small: bool


def check_apart(record: Path | None, baseline: Path | None, history: Path | None) -> None:
    """Raises :class:`UserError` if the record would be written among the nights or as baseline."""
    if record is None:
        return
    if history is not None and record.resolve() == history.resolve():
        raise UserError(f"--record and --history must be two folders, got {record} for both")
    if baseline is not None and (record / FILE).resolve() == baseline.resolve():
        raise UserError(f"--baseline must not be the record, got {baseline}")


def standard_of(
    options: Options, baseline: Path | None, history: Path | None, machine: dict
) -> Baseline | History:
    """Returns what tonight is compared with.

    Raises:
        ValueError: both are given; a test of the gate would use or write the real baseline; a file
            is damaged; or there is nothing to compare planted work with.
    """
    if baseline is not None and history is not None:
        raise UserError("--baseline and --history exclude each other, got both")
    testing = "--small" if options.small else "--extra-rows" if options.extra_rows else None
    if testing and baseline is None and history is None:
        raise UserError(f"{testing} needs --baseline or --history; it must not use the real ones")
    here = setup(options.device, options.small)
    standard: Baseline | History
    if history is not None:
        standard = History(read_nights(history), here, machine, options.update)
        make_folder(history)
    else:
        path = baseline or BASELINES / f"{here['device']}.json"
        standard = Baseline.read(path, here, options.update)
        if options.update or not standard.before:
            make_folder(path.parent)
    if options.extra_rows and (options.update or not standard.before):
        raise UserError("--extra-rows needs earlier nights to compare with, and no --update")
    return standard


def check_correct(problem: Problem, device: torch.device) -> None:
    """Checks the answers of ours against float64.

    Raises:
        WrongAnswerError: an answer is wrong.
    """
    for check, error in errors(problem, device):
        if not error <= allowed(device):
            raise WrongAnswerError(
                f"{check} is wrong (error {error:.1e}, allowed {allowed(device):g}); "
                "nothing is timed"
            )


@dataclass
class Ending:
    """The end of a night: its status, the line about it, and the verdicts, if any.

    Attributes:
        accepted: works that were slower, which was accepted.
    """

    status: Status
    line: str
    verdicts: list[Verdict] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)


def ending_of(options: Options, standard: Baseline | History) -> Ending:
    """Checks and measures all works and returns the end of the night."""
    broken: dict[str, str] = {}
    factor = _BAR_ROUNDS if options.update or not standard.before else 1

    def measured(names: Sequence[str]) -> dict[str, Timing]:
        timings: dict[str, Timing] = {}
        for name in names:
            try:
                timings |= measure(
                    [todo[name]], options.rounds * factor, options.device, _SECONDS * factor
                )
            except Exception as error:  # one work must not hide the verdicts on others
                broken[name] = one_line(error)
        return timings

    try:
        problem = states_problem()
        check_correct(problem, options.device)
        found = works(problem, options.device, options.extra_rows, options.small)
        todo = {work.name: work for work in found}
        gone = [name for name in standard.before if name not in todo]
        standard.notes += [f"{name} is no longer measured" for name in gone]
    except WrongAnswerError as error:
        return Ending(Status.BROKEN, str(error))
    except Exception as error:  # compilers, captures and allocators raise various errors
        return Ending(Status.BROKEN, f"the works cannot be prepared: {one_line(error)}")
    return ending(options, judge([*todo], standard.before, standard.past, measured), broken)


def ending(options: Options, verdicts: list[Verdict], broken: Mapping[str, str]) -> Ending:
    """Returns the end of a night with these verdicts and these works that broke."""
    slower = [one.name for one in verdicts if one.word == "slower"]
    accepted = slower if options.accept_slower else []
    status = status_of(one for one in verdicts if one.name not in accepted)
    if status is Status.FIRST and options.update:  # it was asked for
        status = Status.AS_BEFORE
    parts = [headline(verdicts)] if verdicts else []
    if accepted:
        parts.append("slower ones are accepted")
    if broken:
        status = status if status is Status.SLOWER else Status.BROKEN
        parts.append("broken: " + "; ".join(f"{name} ({why})" for name, why in broken.items()))
    return Ending(status, ". ".join(parts), verdicts, accepted)


def night_of(options: Options, machine: dict, end: Ending) -> Night:
    """Returns tonight as an entry of a history."""
    return Night(
        datetime.now(UTC), setup(options.device, options.small), machine,
        end.line, {one.name: one.now for one in end.verdicts},
        {one.name: one.word for one in end.verdicts}, tuple(end.accepted), options.update,
    )  # fmt: skip


def keep(
    options: Options,
    standard: Baseline | History,
    history: Path | None,
    night: Night,
    end: Ending,
) -> str:
    """Writes tonight for later nights and returns the words about it, which may be empty."""
    if options.extra_rows:
        return ""
    if isinstance(standard, Baseline):
        slower = end.status in (Status.SLOWER, Status.BROKEN)
        wrote = standard.write(end.verdicts, end.accepted, options.update and not slower)
        if options.update and slower:
            return "; --update changed no bar, --accept-slower would lower it"
        return f"; {wrote}" if wrote else ""
    assert history is not None
    return f"; wrote {write_night(history, night).name}"


def payload(night: Night, end: Ending) -> dict:
    """Returns what the webhook is told; ``text`` is what chat services show."""
    return {
        "text": f"flashpoint gate on {night.setup['device']}: {end.line}",
        "status": int(end.status), "verdict": end.status.name.lower().replace("_", " "),
        "date": night.date.isoformat(), "device": night.setup["device"],
        "commit": night.machine["commit"],
        "works": [
            {"work": one.name, "verdict": one.word, "slowdown": one.slowdown if one.sound else None}
            for one in end.verdicts
        ],
    }  # fmt: skip


_path = click.Path(path_type=Path)


@click.command()
@click.option("--update", is_flag=True, help="Start the times of the reference anew; keep bars.")
@click.option("--accept-slower", is_flag=True, help="What is slower tonight sets a new bar.")
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@rounds_option(40, "Paired rounds of each work.")
@click.option("--history", type=_path, default=None, help="Folder with one file for each night.")
@click.option(
    "--baseline",
    type=_path,
    default=None,
    help="Without a history: the file. Default: bench/records/baselines/<this device>.json.",
)
@click.option(
    "--webhook",
    envvar="FLASHPOINT_GATE_WEBHOOK",
    callback=announce.checked_url,
    default=None,
    help="Address to which the verdict is posted as JSON. Default: $FLASHPOINT_GATE_WEBHOOK.",
)
@click.option(
    "--extra-rows",
    type=Number(min=0),
    default=0.0,
    show_default=True,
    help="Additional fraction of rows for ours, to test the gate.",
)
@click.option("--small", is_flag=True, help="Toy sizes, to test the command.")
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@record_option
def main(
    update, accept_slower, device, rounds, history, baseline, webhook, extra_rows, small, busy,
    folder,
) -> None:  # fmt: skip
    """Compare the speed of ours with earlier nights on this device."""
    options = Options(update, accept_slower, free_device(device, busy), rounds, extra_rows, small)
    machine = describe()
    check_apart(folder, baseline, history)
    standard, record = standard_of(options, baseline, history, machine), Record(folder)
    end = ending_of(options, standard)
    night = night_of(options, machine, end)
    nights = [*standard.nights, night] if isinstance(standard, History) else []
    notes = [*standard.notes, *missing(nights)]
    # A disk that is full comes last, so that it does not cost the verdict.
    for note in notes:
        click.echo(f"gate: {note}")
    if end.verdicts:
        click.echo(table(end.verdicts))
    announce.add_to_job_summary(
        trend.summary(end.line, notes, end.verdicts, nights, standard.before)
    )
    if webhook:
        announce.post(webhook, payload(night, end))
    wrote = ""
    try:
        wrote = keep(options, standard, history, night, end)
    finally:
        click.echo(f"gate: {end.line}{wrote}")
    timings = {one.name: one.now for one in end.verdicts}
    record.put("gate", verdict=end.line, status=int(end.status), results=_plain(timings))
    if record.path is not None and len(nights) > 1:
        trend.draw(nights, standard.before, record.path.with_name("gate.png"))
    raise SystemExit(int(end.status))


def _plain(timings: dict[str, Timing]) -> list[dict]:
    return [{"work": name, **asdict(timing)} for name, timing in timings.items()]
