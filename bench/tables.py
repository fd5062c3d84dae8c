"""The tables of records, in Markdown."""

from collections.abc import Sequence
from statistics import mean

from ..diffusion.metrics.table import beside_band, markdown_table
from .workloads import EVERY_WORK

NOT_MEASURED = "**not measured**"


def duration(us: float) -> str:
    """Returns microseconds as text, in a unit that fits."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}"
    return f"{us:.3g} us"


def title(entry: dict) -> str:
    """Returns the name of a workload; if it was cut, with the steps that were left."""
    cut = f" ({entry['steps']} of {entry['full_steps']} steps)"
    return f"{entry['work']}, {entry['rows']:,} rows" + cut * (entry["steps"] < entry["full_steps"])


def speedup(entry: dict) -> str:
    """Returns the speedup of ours over an entry's peer with its interval; empty without a time."""
    timing = entry["timing"]
    if timing is None:
        return ""
    return f"{timing['speedup']:.2f} ({timing['low']:.2f} to {timing['high']:.2f})"


def race_table(entries: Sequence[dict]) -> str:
    """Returns the table of ours and every peer at every work."""
    header = ("work", "library", "precision", "time", "speedup of ours (95%)", "floor",
              "memory, MiB")  # fmt: skip
    return markdown_table(header, (
        (
            title(one), one["peer"], one["precision"],
            NOT_MEASURED if one["us"] is None else duration(one["us"]),
            speedup(one) or one["unavailable"] or "",
            duration(one["floor_us"]),
            "" if one["memory_mib"] is None else f"{one['memory_mib']:.0f}",
        )
        for one in entries
    ))  # fmt: skip


def summary_table(entries: Sequence[dict]) -> str:
    """Returns the table of ours beside the fastest peer and eager PyTorch, a line for each work."""
    header = ("work", "ours", "fastest peer", "speedup over it (95%)",
              "speedup over eager PyTorch (95%)")  # fmt: skip
    return markdown_table(header, (_summary(entries, *work) for work in EVERY_WORK))


def _summary(entries: Sequence[dict], work: str, rows: int) -> tuple[str, ...]:
    """Returns the line of one work in the summary."""
    here = [entry for entry in entries if (entry["work"], entry["rows"]) == (work, rows)]
    ours = next((entry for entry in here if entry["peer"] == "ours" and entry["us"]), None)
    if ours is None:
        return f"{work}, {rows:,} rows", NOT_MEASURED, "", "", ""
    timed = [entry for entry in here if entry["timing"]]
    best = _hardest(timed)
    eager = _hardest([entry for entry in timed if entry["peer"] == "eager"])
    return (
        title(ours), duration(ours["us"]),
        f"{best['peer']}, {best['precision']}" if best else NOT_MEASURED,
        speedup(best) if best else "", speedup(eager) if eager else "",
    )  # fmt: skip


def _hardest(entries: Sequence[dict]) -> dict | None:
    """Returns the entry over which ours has the smallest speedup."""
    return min(entries, key=lambda entry: entry["timing"]["speedup"], default=None)


def works_table(results: Sequence[dict]) -> str:
    """Returns the table of the works that users wait for, ours beside eager PyTorch."""
    rows = []
    for one in results:
        if one["timing"] is None:
            rows.append((one["work"], one["unavailable"] or NOT_MEASURED, "", ""))
            continue
        ours, peer = one["timing"]["ours_us"], one["timing"]["peer_us"]
        eager = f"{duration(peer)}, {one['eager']}"
        rows.append((one["work"], duration(ours), eager, speedup(one)))
    return markdown_table(("work", "ours", "eager PyTorch", "speedup (95%)"), rows)


def speedrun_table(results: Sequence[dict]) -> str:
    """Returns the table of the time to quality on each track, and the seeds that failed."""
    header = ("track", "seeds", "as good as data (95%)", "median s (95%)", "p95 s (95%)",
              "cold start s")  # fmt: skip
    rows = []
    for one in results:
        rate, seeds = one["pass_rate"], len(one["seeds"])
        times = (
            # One seed has no interval.
            f"{x:.3g} ({low:.3g} to {high:.3g})" if seeds > 1 else f"{x:.3g}"
            for x, low, high in (one["median_seconds"], one["p95_seconds"])
        )
        passed = f"{rate[0]:.0%} ({rate[1]:.0%} to {rate[2]:.0%})"
        rows.append((one["track"], f"{seeds}", passed, *times, f"{one['cold_start_seconds']:.3g}"))
    failures = [
        f"* {one['track']}, seed {seed['seed']} fails: {', '.join(seed['failed'])}"
        for one in results for seed in one["seeds"] if seed["failed"]
    ]  # fmt: skip
    return "\n".join([markdown_table(header, rows), *([""] if failures else []), *failures])


def study_table(results: Sequence[dict]) -> str:
    """Returns the table of the training of many models at once."""
    header = ("models at once", "training s", "together s", "cold start s")
    return markdown_table(header, (
        (
            " and ".join(map(str, one["models"])),
            " and ".join(f"{seconds:.3g}" for seconds in one["seconds"]),
            f"{sum(one['seconds']):.3g}",
            f"{one['cold_start_seconds']:.3g}",
        )
        for one in results
    ))  # fmt: skip


def selftest_table(results: Sequence[dict]) -> str:
    """Returns the table of how often the gate noticed planted work."""
    header = ("planted", "alarms", "of runs", "rate (95%)", "invalid nights")
    return markdown_table(header, (
        (
            f"{one['extra_rows']:.0%} more rows", str(one["alarms"]), str(one["runs"]),
            f"{one['alarms'] / max(1, one['runs']):.0%} ({one['low']:.0%} to {one['high']:.0%})",
            str(one["invalid"]),
        )
        for one in results
    ))  # fmt: skip


def quality_table(seeds: Sequence[dict]) -> str:
    """Returns the table of the quality of samples, from the metrics of some seeds.

    Args:
        seeds: the ``metrics`` of each run, by set of samples.
    """
    header = (
        "samples", "KDE-NLL of the data",
        f"samples minus data, mean of {len(seeds)} seed{'s' * (len(seeds) > 1)} (per seed)",
        "in the requested state",
        "median distance from a sample to the nearest datum (99% of real draws)",
        "from a datum to the nearest sample (99%)",
        "sliced Wasserstein (99% of real draws are below)",
    )  # fmt: skip
    return markdown_table(header, (_quality(name, seeds) for name in seeds[0]))


def _quality(name: str, seeds: Sequence[dict]) -> tuple[str, ...]:
    """Returns the line of one set of samples in the table of quality."""
    found = [seed[name] for seed in seeds]
    differences = [one["delta_nll"] for one in found]
    each = ", ".join(f"{difference:.3f}" for difference in differences)
    purity = [one["purity"] for one in found if one["purity"] is not None]
    return (
        name,
        f"{mean(one['nll_data'] for one in found):.3f}",
        f"{mean(differences):.3f} ({each})",
        f"{mean(purity):.2%}" if purity else "",
        _scored([one["sample_to_data"] for one in found]),
        _scored([one["data_to_sample"] for one in found]),
        _scored([one["sliced_wasserstein"] for one in found], one_sided=True),
    )


def _scored(scores: Sequence[dict], one_sided: bool = False) -> str:
    """Returns a metric's mean over seeds with the mean band, marked where a seed is outside."""
    value, low, high = (mean(score[key] for score in scores) for key in ("value", "low", "high"))
    text = f"{value:.4f} ({high:.4f})" if one_sided else beside_band(value, low, high)
    return text if all(score["passed"] is not False for score in scores) else f"{text} ✗"
