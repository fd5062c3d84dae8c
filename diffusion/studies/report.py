"""Tables and figures of a study's results, and the page that shows all studies."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import files, plots
from ..latents import interpolate
from ..metrics.table import markdown_table
from ..plots.style import PAGE, styled
from .lessons import LESSONS, REMARKS
from .runner import StudyRun, data_of
from .study import OUR_BEST, Cell, Grid, Study

_DECIMALS = {"EMD": 1, "accuracy": 3, "kernel NLL": 2, "KDE NLL": 3, "distance to the data": 4}
_HIGHER_IS_BETTER = ("accuracy",)
_SHOWN = 1000  # points of a panel
_WAYS = 8  # interpolations


def write_report(run: StudyRun, results: dict, figure_format: str = "png") -> None:
    """Writes ``table.md``, ``plot`` and the ``samples`` of each grid into the study's folder.

    For images it also draws an ``interpolation``.

    Args:
        run: the study.
        results: its results.
        figure_format: format and suffix of the figures: png, svg or pdf.
    """
    files.write_atomically(run.folder / "table.md", table(results).encode())
    plot(results, run.folder / f"plot.{figure_format}")
    for number, grid in enumerate(run.study.grids):
        name = f"samples_{number}" if number else "samples"
        if rows := _sample_rows(run, grid):
            plots.sample_grid(rows, run.folder / f"{name}.{figure_format}")
            if rows[0][0].image_shape is not None:
                ways = run.folder / f"interpolation.{figure_format}"
                _draw_interpolations(run, grid.cells()[0], ways)


def _draw_interpolations(run: StudyRun, cell: Cell, save_to: Path) -> None:
    """Draws the ways between images through the noise of a cell's model."""
    points = data_of(cell.data, cell.protocol.standardise)
    model, schedule = run.store.load_model(cell.model), cell.variant.schedule
    a, b = points.data[: 2 * _WAYS].chunk(2)
    ways = interpolate(model, schedule, a, b, device=run.device).cpu()
    plots.interpolation(ways, points, save_to)


def _sample_rows(run: StudyRun, grid: Grid) -> list:
    """Returns the data sets of a grid, each with title, samples and labels of its cells."""
    rows: dict[str, list] = {}
    for cell in filter(run.store.has_cell, grid.cells()):
        samples = run.store.samples(cell)
        shown = [x[: _SHOWN // len(samples)] for x in samples]
        labels = [torch.full((len(x),), label) for label, x in enumerate(shown)]
        part = (cell.column, torch.cat(shown), torch.cat(labels) if len(shown) > 1 else None)
        rows.setdefault(cell.data, []).append(part)
    return [(data_of(name, grid.protocol.standardise), parts) for name, parts in rows.items()]


def table(results: dict) -> str:
    """Returns tables in Markdown, one for each grid and metric, beside the published numbers.

    Where accuracies were published, one more table compares EMDs at equal accuracy.
    """
    parts = []
    for grid in results["grids"]:
        parts += [_grid_table(grid, metric) for metric in _metrics(grid)]
        if any(cell["published"].get("accuracy") is not None for cell in grid["cells"]):
            parts.append(_equal_accuracy_table(grid))
    return "\n".join(parts)


@styled
def plot(results: dict, save_to: Path) -> Figure:
    """Draws one metric of every column, with a row of panels for each grid."""
    grids, metric = results["grids"], results.get("shown", "EMD")
    widest = max(len(grid["rows"]) for grid in grids)
    width = PAGE if widest > 2 else 0.75 * PAGE
    figure = Figure(figsize=(width, 2.2 * len(grids) + 0.4), layout="constrained")
    panels = figure.subplots(len(grids), widest, squeeze=False)
    for grid, axes in zip(grids, panels, strict=True):
        for axis in axes[len(grid["rows"]) :]:
            axis.remove()
        for axis, data in zip(axes, grid["rows"], strict=False):
            _panel(axis, grid, data, metric)
        axes[0].set_ylabel(metric)
    figure.supxlabel(results["varied"], fontsize=8)
    handles = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles=list(handles.values()), loc="outside upper center", ncols=3)
    plots.save(figure, save_to)
    return figure


def write_page(studies: Sequence[Study], runs: Path, page: Path) -> None:
    """Writes the page of all studies, and its figures into a folder of its name beside it.

    A study that ``runs`` does not hold is shown in its quick form, from the folder
    ``<runs>-quick``; if that does not hold it either, the page says that it has not been run.

    Args:
        studies: the studies.
        runs: folder of the results.
        page: the Markdown file.
    """
    figures = files.make_folder(page.with_suffix(""))
    parts = [_INTRODUCTION]
    for study in studies:
        parts.append(f"## {study.title}\n\n`flashpoint study {study.name}`\n")
        places = (runs, runs.with_name(f"{runs.name}-quick"))
        found = [
            file for place in places if (file := place / study.name / "results.json").is_file()
        ]
        if not found:
            parts.append("Not run yet.\n")
            continue
        results = files.load_json(found[0])
        plot(results, figures / f"{study.name}.png")
        shown = results.get("shown", "EMD")
        picture = f"![{shown} against {study.varied}]({figures.name}/{study.name}.png)\n"
        parts += [LESSONS.get(study.name, ""), picture, table(results)]
        parts += [REMARKS.get(study.name, "").lstrip(), _origin(results)]
    files.write_atomically(page, "\n".join(parts).encode())


_INTRODUCTION = """# Lessons from the studies

This page is written by `flashpoint study --page`. Each number stands beside the score of perfect
samples, which are new draws of the data measured in the same way, and, in brackets, beside the
published number; a number below the perfect one is not better. EMD is the cost of the cheapest
assignment of 250 samples to 250 points of the data (where data is standardised: of 128 samples to
128 points not trained on), the mean of 5 draws. ± is the standard deviation of such a mean over 10
repeats. ✗ marks a number that is worse than the published one by more than two standard deviations.

The recipe is the one behind the published numbers, a common one in course work. The network sees a
sinusoidal embedding of the timestep, 16 numbers. It has a linear input layer, five blocks of 128
units with ReLU, and an output layer. Adam trains it at a learning rate of 1e-3 for 100 epochs of
N / 64 steps, with batches of 64 points and a random timestep for each point. The last weights draw
2,000 samples with all T reverse steps of DDPM and sigma_t^2 = beta_t. Each study says what it
changes.
"""


def _origin(results: dict) -> str:
    where = results["environment"]
    return f"Seed {results['seed']}, {where['device']}, torch {where['torch']}.\n"


def _metrics(grid: dict) -> list[str]:
    return list(grid["perfect"][grid["rows"][0]])


def _grid_table(grid: dict, metric: str) -> str:
    """Returns the title and the table of one metric."""
    rows = []
    for data in grid["rows"]:
        done = {cell["column"]: _entry(grid, cell, metric) for cell in _row(grid, data)}
        entries = [done.get(column, "not run") for column in grid["columns"]]
        rows.append([data, *entries, _value(grid["perfect"][data], metric)])
    header = ["data", *grid["columns"], "perfect samples"]
    return f"{grid['title']}: {metric}\n\n{markdown_table(header, rows)}\n"


def at_published_accuracy(grid: dict, published: dict) -> dict | None:
    """Returns the cell of least EMD among those that are as accurate as a published one.

    Published accuracies are rounded to hundredths, so 0.005 below them counts as reached.

    Args:
        grid: a grid of the results.
        published: the cell whose published accuracy is to be reached; only cells of its data set
            are considered.

    Returns:
        A cell, or None if no cell is as accurate.
    """
    least = published["published"]["accuracy"] - 0.005
    reach = [
        cell
        for cell in _row(grid, published["data"])
        if cell["scores"]["accuracy"]["value"] >= least
    ]
    return min(reach, key=lambda cell: cell["scores"]["EMD"]["value"], default=None)


def _equal_accuracy_table(grid: dict) -> str:
    """Returns the title and the table that compares EMDs at equal accuracy."""
    rows = []
    for cell in grid["cells"]:
        accuracy, theirs = cell["published"]["accuracy"], cell["published"]["EMD"]
        if accuracy is None:
            continue
        ours = at_published_accuracy(grid, cell)
        entry, column = "not reached", ""
        if ours is not None:
            entry, column = _value(ours["scores"], "EMD"), ours["column"]
            if _exceeds(grid, ours, theirs):
                entry += " ✗"
        perfect = _value(grid["perfect"][cell["data"]], "EMD")
        rows.append([cell["data"], f"{accuracy:g}", f"{theirs:g}", entry, column, perfect])
    header = ["data", "published accuracy", "published EMD", "EMD", "at", "perfect samples"]
    title = f"{grid['title']}: least EMD at each published accuracy"
    return f"{title}\n\n{markdown_table(header, rows)}\n"


def _exceeds(grid: dict, cell: dict, published: float) -> bool:
    """Returns True if a cell's EMD is above the published and the perfect one by 2 deviations."""
    ours, perfect = cell["scores"]["EMD"], grid["perfect"][cell["data"]]["EMD"]
    margin = 2 * max(ours["sd"], perfect["sd"])
    return ours["value"] > max(published, perfect["value"]) + margin


def _row(grid: dict, data: str) -> Iterator[dict]:
    return (cell for cell in grid["cells"] if cell["data"] == data)


def _entry(grid: dict, cell: dict, metric: str) -> str:
    entry, published = _value(cell["scores"], metric), cell["published"][metric]
    if published is not None:
        entry += f" ({published:g})"
    return f"{entry} ✗" if is_worse(grid, cell, metric) else entry


def _value(scores: dict, metric: str) -> str:
    value, sd = scores[metric]["value"], scores[metric]["sd"]
    digits = _DECIMALS[metric]
    return f"{value:.{digits}f} ± {sd:.{digits}f}" if sd else f"{value:.{digits}f}"


def is_worse(grid: dict, cell: dict, metric: str) -> bool:
    """Returns True if a cell is worse than the published number by over two standard deviations.

    The standard deviation is the larger one of the cell's own and of perfect samples.

    Args:
        grid: a grid of the results.
        cell: a cell of the grid.
        metric: name of the metric.
    """
    published = cell["published"][metric]
    if published is None:
        return False
    scores, perfect = cell["scores"][metric], grid["perfect"][cell["data"]][metric]
    sign = -1 if metric in _HIGHER_IS_BETTER else 1
    return sign * (scores["value"] - published) > 2 * max(scores["sd"], perfect["sd"])


def _panel(axis: Axes, grid: dict, data: str, metric: str) -> None:
    cells = list(_row(grid, data))
    places = [grid["columns"].index(cell["column"]) for cell in cells]
    value, sd = (
        np.array([cell["scores"][metric][part] for cell in cells]) for part in ("value", "sd")
    )
    published = np.array([cell["published"][metric] for cell in cells], dtype=float)
    floor, floor_sd = (grid["perfect"][data][metric][part] for part in ("value", "sd"))
    low, high = floor - 2 * floor_sd, floor + 2 * floor_sd
    axis.errorbar(
        places,
        value,
        2 * sd,
        fmt="o",
        color=plots.COLORS[0],
        ms=3,
        lw=1,
        label="flashpoint, 2 standard deviations",
    )
    varied = [not cell["column"].startswith(OUR_BEST) for cell in cells]
    axis.plot(np.array(places)[varied], value[varied], color=plots.COLORS[0])
    if np.isfinite(published).any():
        axis.plot(places, published, "s--", color=plots.COLORS[1], ms=3, label="published")
    axis.axhspan(
        low,
        high,
        color=plots.COLORS[6],
        alpha=0.35,
        lw=0,
        label="perfect samples, 2 standard deviations",
    )
    axis.set_xticks(
        range(len(grid["columns"])),
        grid["columns"],
        rotation=45,
        ha="right",
        rotation_mode="anchor",
    )
    axis.set_title(data)
    axis.set_ylim(0, 1.1 * np.nanmax([high, *(value + 2 * sd), *published]))
