"""Simulates months of nights, with and without planted faults, and counts what the gate notices.

    python -m flashpoint.bench gate-months [--noise 0.005] [--record FOLDER]

Nothing is measured. The times of each night are drawn: clocks move ours and the reference together
by 2%, and the ratio of the two by ``--noise`` from night to night and by 0.3% from measurement to
measurement (standard deviations). The gate judges them by its own code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median
from typing import Any

import click
import numpy as np

from ..diffusion.metrics.table import markdown_table
from ..diffusion.progress import counted
from .nights import History, Night
from .options import Number, count_option
from .record import Record, record_option
from .timing import Timing, clopper_pearson
from .verdict import Status, Verdict, headline, judge, status_of

NIGHTS = 30
_CLOCKS, _WITHIN = 0.02, 0.003  # of times together, and of the ratio in one measurement
_SPEEDUPS = {"training": 6.0, "sampling": 5.0, "guided": 2.0, "classifier-free": 4.0, "many": 9.0}
_HERE = {"device": "simulated", "suite": 0, "reference work": "simulated", "sizes": "full"}


def _nothing(_night: int, _work: str) -> float:
    return 1.0


def _first_driver(_night: int) -> str:
    return "driver 1"


@dataclass(frozen=True)
class Month:
    """What is planted in a month.

    Attributes:
        slowdown: slowdown of ours by night and work, planted.
        reference: factor of the times of ours and the reference by night and work.
        driver: the driver by night.
        since: the first night on which the gate should raise an alarm; None for never.
        works: the works that it should name.
    """

    slowdown: Callable[[int, str], float] = _nothing
    reference: Callable[[int, str], float] = _nothing
    driver: Callable[[int], str] = _first_driver
    since: int | None = None
    works: tuple[str, ...] = tuple(_SPEEDUPS)


MONTHS = {
    "nothing": Month(),
    "a step of 5%": Month(lambda night, _: 1.05 if night >= 12 else 1.0, since=12),
    "a drift of 1% a night": Month(lambda night, _: 1.01 ** max(0, night - 9), since=10),
    "a drift of 0.2% a night": Month(lambda night, _: 1.002**night, since=1),
    "10% faster, lost again": Month(
        lambda night, _: 1 / 1.1 if 8 <= night < 20 else 1.0, since=20
    ),
    "an invalid week that hides a step of 5%": Month(
        lambda night, work: 1.05 if work == "guided" and night >= 14 else 1.0,
        lambda night, work: 1.3 if work != "guided" and 12 <= night < 19 else 1.0,
        since=14, works=("guided",),
    ),
    "a new driver with a step of 5%": Month(
        lambda night, _: 1.05 if night >= 15 else 1.0,
        lambda night, _: 0.7 if night >= 15 else 1.0,
        lambda night: "driver 2" if night >= 15 else "driver 1", since=15,
    ),
    "a new driver, as fast": Month(
        reference=lambda night, _: 0.7 if night >= 15 else 1.0,
        driver=lambda night: "driver 2" if night >= 15 else "driver 1",
    ),
}  # fmt: skip


def machine_with(driver: str) -> dict[str, Any]:
    """Returns the machine of a night, as far as the gate looks at it."""
    limits = "driver, clocks (now, maximum), power limit"
    return {"torch": "2", "triton": "3", "threads": 1, limits: f"{driver}, 1, 2, 3"}


def simulated_night(
    nights: Sequence[Night],
    number: int,
    month: Month,
    noise: float,
    rng: np.random.Generator,
) -> tuple[Night, list[Verdict]]:
    """Draws and judges the night after some others; returns it and its verdicts."""
    machine = machine_with(month.driver(number))
    history = History(nights, _HERE, machine)
    clock = float(np.exp(rng.normal(0, _CLOCKS)))
    ratios = {
        work: speedup / month.slowdown(number, work) * float(np.exp(rng.normal(0, noise)))
        for work, speedup in _SPEEDUPS.items()
    }

    def measure(works: Sequence[str]) -> dict[str, Timing]:
        return {work: drawn(work) for work in works}

    def drawn(work: str) -> Timing:
        peer_us = 100 * clock * month.reference(number, work)
        speedup = ratios[work] * float(np.exp(rng.normal(0, _WITHIN)))
        width = 1.96 * _WITHIN
        return Timing(peer_us / speedup, peer_us, speedup, speedup * (1 - width),
                      speedup * (1 + width), 40)  # fmt: skip

    verdicts = judge([*_SPEEDUPS], history.before, history.past, measure)
    date = datetime(2026, 1, 1, 2, 17, tzinfo=UTC) + timedelta(days=number)
    timings, words = ({one.name: getattr(one, field) for one in verdicts}
                      for field in ("now", "word"))  # fmt: skip
    return Night(date, _HERE, machine, headline(verdicts), timings, words), verdicts


def simulated_month(month: Month, noise: float, seed: int) -> list[list[Verdict]]:
    """Returns the verdicts of each night of a month."""
    nights: list[Night] = []
    rng, verdicts = np.random.default_rng(seed), []
    for number in range(NIGHTS):
        night, judged = simulated_night(nights, number, month, noise, rng)
        nights.append(night)
        verdicts.append(judged)
    return verdicts


@dataclass
class Found:
    """What the gate noticed in many months alike.

    Attributes:
        months: number of months.
        quiet_nights: nights of works in which no alarm is right.
        false_alarms: alarms in them; ``low`` and ``high`` are the 95% interval of their rate.
        caught: months in which the planted fault raised an alarm; None if nothing is planted.
        nights: median number of nights until then, 1 for the first night.
        invalid: nights with the exit status of an invalid one.
    """

    planted: str
    months: int
    quiet_nights: int
    false_alarms: int
    low: float
    high: float
    caught: int | None
    nights: float | None
    invalid: int


def found_in(planted: str, months: Mapping[int, list[list[Verdict]]]) -> Found:
    """Returns what the gate noticed in months with the same fault."""
    month, quiet, alarms, delays, invalid = MONTHS[planted], 0, 0, [], 0
    for verdicts in months.values():
        first = None
        for number, night in enumerate(verdicts):
            invalid += status_of(night) is Status.INVALID
            for one in night:
                right = month.since is not None and number >= month.since
                if right and one.name in month.works:
                    first = number if first is None and one.word == "slower" else first
                else:
                    quiet += 1
                    alarms += one.word == "slower"
        if first is not None and month.since is not None:
            delays.append(first - month.since + 1)
    low, high = clopper_pearson(alarms, quiet)
    caught = None if month.since is None else len(delays)
    return Found(planted, len(months), quiet, alarms, low, high, caught,
                 median(delays) if delays else None, invalid)  # fmt: skip


def months_table(found: Sequence[Found]) -> str:
    """Returns the table of what was noticed, in Markdown."""
    header = ("planted", "months", "caught", "nights until then", "false alarms (rate, 95%)",
              "invalid nights")  # fmt: skip
    return markdown_table(header, (
        (
            one.planted, f"{one.months}", "" if one.caught is None else f"{one.caught}",
            "" if one.nights is None else f"{one.nights:g}",
            f"{one.false_alarms} of {one.quiet_nights} ({one.low:.2%} to {one.high:.2%})",
            f"{one.invalid}",
        )
        for one in found
    ))  # fmt: skip


@click.command()
@count_option("--months", 100, "Months of each kind.")
@click.option(
    "--noise",
    type=Number(min=0, max=0.1),
    default=0.005,
    show_default=True,
    help="Standard deviation of the ratio from night to night.",
)
@record_option
def main(months, noise, folder) -> None:
    """Simulate months with planted faults and count what the gate notices."""
    record, found = Record(folder), []
    for planted, month in MONTHS.items():
        simulate = partial(simulated_month, month, noise)
        seeds = counted(months, planted, "months")
        found.append(found_in(planted, {seed: simulate(seed) for seed in seeds}))
        record.put("gate-months", noise=noise, results=[asdict(one) for one in found])
    click.echo(months_table(found))
