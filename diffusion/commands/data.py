"""``flashpoint data``: draws a data set, and writes its points to files."""

from pathlib import Path
from typing import Any

import click

from .. import files, plots
from ..choices import FIGURES
from ..data import Points
from .data_choice import DataChoice
from .of_run import check_outputs, files_of_data
from .points import read_points


def draw_data(*, data: DataChoice, test_fraction: float | None, out: Path | None) -> None:
    """Draws a data set, and writes its points split in two if a fraction is given."""
    points = read_points(data)
    parts = (
        {}
        if test_fraction is None
        else dict(zip(("train", "test"), points.split(test_fraction), strict=True))
    )
    out = out or Path(f"{points.name.lower()}.png")
    files.make_target(out, *(f".{figure}" for figure in FIGURES))
    paths = {part: out.with_name(f"{out.stem}_{part}.pt") for part in parts}
    replaced = check_outputs([out, *paths.values()], files_of_data(data.name))
    plots.scatter(points.data, points.labels, points, points.name, out)
    click.echo(f"{points.name}: {len(points)} points in {points.dim} dimensions")
    for label in range(points.num_classes):
        click.echo(f"  {points.class_name(label)}: {len(points.of_class(label))}")
    click.echo(f"picture: {out}{replaced}")
    for part, half in parts.items():
        files.save(paths[part], _content(half))
        click.echo(f"{part}: {len(half)} points in {paths[part]}")


def _content(points: Points) -> dict[str, Any]:
    """Returns the content of a file that :func:`load_points` reads."""
    content: dict[str, Any] = {"data": points.in_units(points.data)}
    if points.labels is not None:
        content |= {"labels": points.labels, "class_names": list(points.class_names)}
    return content
