"""The trend of the gate's last nights, as text for a job summary and as a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..diffusion.metrics.table import markdown_table
from .baseline import same_machine
from .figures import nights_figure
from .nights import Night
from .timing import Timing
from .verdict import Verdict, table

NIGHTS = 30
_BLOCKS = "▁▂▃▄▅▆▇█"
_NONE = "x"  # an invalid night


def sparkline(values: Sequence[float | None], bar: float) -> str:
    """Returns one character for each night: the higher, the faster; x for an invalid one.

    The lowest block is at most 3% below the bar, so that noise stays flat.
    """
    known = [value for value in values if value is not None]
    low, high = min([*known, 0.97 * bar]), max([*known, bar])
    return "".join(
        _NONE if value is None
        else _BLOCKS[round((value - low) / (high - low) * (len(_BLOCKS) - 1))]
        for value in values
    )  # fmt: skip


def slowdowns(nights: Sequence[Night], bars: Mapping[str, Timing]) -> dict[str, list[float | None]]:
    """Returns by work how much slower than its bar each night was, as a fraction; None if invalid.

    Works without a bar are left out.
    """
    return {
        name: [
            None if (timing := night.valid(name)) is None else bar.speedup / timing.speedup - 1
            for night in nights
        ]
        for name, bar in bars.items()
    }


def summary(
    title: str,
    notes: Sequence[str],
    verdicts: Sequence[Verdict],
    nights: Sequence[Night],
    bars: Mapping[str, Timing],
) -> str:
    """Returns the summary of a night in Markdown: its verdicts and the trend of the last nights.

    Args:
        title: the night in one line.
        notes: lines for the reader.
        verdicts: tonight's verdicts.
        nights: the nights up to tonight; none without a history.
        bars: the bars that were tonight's.
    """
    parts = [f"## Nightly gate: {title}", *[f"- {note}" for note in notes]]
    if verdicts:
        parts += ["", table(verdicts)]
    last = nights[-NIGHTS:]
    if len(last) > 1 and bars:
        parts += ["", f"### The last {len(last)} nights", "", _lines(last, bars), ""]
        parts += [_chart(last, bars)]
    return "\n".join(parts) + "\n"


def _lines(nights: Sequence[Night], bars: Mapping[str, Timing]) -> str:
    def speedup(night: Night, name: str) -> float | None:
        timing = night.valid(name)
        return None if timing is None else timing.speedup

    rows = []
    for name, bar in bars.items():
        values = [speedup(night, name) for night in nights]
        known = [value for value in values if value is not None]
        latest = f"{known[-1]:.3f}" if known else ""
        rows.append((name, f"`{sparkline(values, bar.speedup)}`", f"{bar.speedup:.3f}", latest))
    return markdown_table(("work", "speed, oldest night first", "bar", "last valid night"), rows)


def _chart(nights: Sequence[Night], bars: Mapping[str, Timing]) -> str:
    """Returns a chart, drawn by the page that shows it, of the slowest work."""
    known = {
        name: [
            (night, slowdown)
            for night, slowdown in zip(nights, line, strict=True) if slowdown is not None
        ]
        for name, line in slowdowns(nights, bars).items()
    }  # fmt: skip
    name = max((one for one in known if known[one]), key=lambda one: known[one][-1][1], default="")
    if not name:
        return ""
    dates = ", ".join(f'"{night.date:%m-%d}"' for night, _ in known[name])
    values = ", ".join(f"{100 * value:.2f}" for _, value in known[name])
    return "\n".join((
        "```mermaid", "xychart-beta", f'    title "{name}"', f"    x-axis [{dates}]",
        '    y-axis "slower than the bar, %"', f"    line [{values}]", "```",
    ))  # fmt: skip


def draw(nights: Sequence[Night], bars: Mapping[str, Timing], path: Path) -> None:
    """Draws how much slower than its bar each work was in the last nights, into a PNG."""
    last = nights[-NIGHTS:]
    changes = [
        number
        for number in range(1, len(last))
        if not same_machine(last[number - 1].machine, last[number].machine)
    ]
    dates = [f"{night.date:%m-%d}" for night in last]
    nights_figure(dates, slowdowns(last, bars), changes, path)
