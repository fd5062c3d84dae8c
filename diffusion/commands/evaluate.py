"""``flashpoint evaluate``: measures a file of samples."""

import json
from pathlib import Path

import click

from .. import files
from ..data import Points, load_points
from ..errors import UserError
from ..metrics import evaluate, summary
from ..metrics.bands import FEWEST_POINTS
from ..progress import note
from .data_choice import DataChoice
from .of_run import points_of_samples


def evaluate_samples(
    *,
    samples: Path,
    label: str | None,
    held_out: Path | None,
    real_draws: int,
    as_json: bool,
    data: DataChoice,
    other_data: bool,
    quiet: bool,
    seed: int,
) -> None:
    """Measures a file of samples, and prints tables or JSON."""
    files.check_is_file(samples)
    points = points_of_samples(samples, data, other_data)
    number = None if label is None else points.label(label)
    others = None
    if held_out is not None:
        kept = _read_like(held_out, points, "--held-out")
        others = kept.data
        if number is not None and kept.labels is not None:
            others = points.same_class(kept, number)
        if points.redraw is None and len(others) < FEWEST_POINTS:
            raise UserError(
                f"--held-out must be at least {FEWEST_POINTS} points, got {len(others)}"
            )
    x = _read_like(samples, points, "samples").data
    if not quiet:
        note(f"measuring {len(x):,} samples against {real_draws} real draws ...")
    result = evaluate(
        x,
        points,
        label=number,
        repeats=real_draws,
        seed=seed,
        full=True,
        held_out=others,
        progress=not quiet,
    )
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False))
        return
    click.echo(f"{summary({samples.name: result})}\n\n{result.table()}\n")
    for line in filter(None, (*result.notes, points.unit_of_distances)):
        click.echo(line)


def _read_like(path: Path, data: Points, what: str) -> Points:
    """Returns the points of a file in the units of the data, mapped as the data are."""
    points = load_points(path, standardise=data.standardisation or False, say=note)
    if points.dim != data.dim:
        raise UserError(f"{what} must have dimension {data.dim} like the data, got {points.dim}")
    return points
