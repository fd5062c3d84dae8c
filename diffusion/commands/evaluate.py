"""``flashpoint evaluate``: measures a file of samples."""

import json
from pathlib import Path

import click

from ..data import Points, load_points
from ..errors import UserError
from ..metrics import evaluate, summary
from . import note, options, seed_option
from .of_run import points_of_samples, run_data_option


@click.command(name="evaluate")
@click.argument("samples", type=click.Path(path_type=Path))
@click.option(
    "--label",
    default=None,
    metavar="CLASS",
    help="Class that the samples should have, a name or a number.",
)
@click.option(
    "--held-out",
    type=click.Path(path_type=Path),
    default=None,
    help="File of real points that were not trained on, for the check of memorisation.",
)
@click.option(
    "--real-draws", default=40, show_default=True, help="Real draws behind each metric's band."
)
@options(run_data_option, seed_option)
def evaluate_command(samples, label, held_out, real_draws, data, other_data, seed) -> None:
    """Measure a file of samples, each number beside the score of real data."""
    points = points_of_samples(samples, data, other_data)
    label = None if label is None else points.label(label)
    others = None
    if held_out is not None:
        kept = _read_like(held_out, points, "held-out points")
        whole = label is None or kept.labels is None
        others = kept.data if whole else points.same_class(kept, label)
    result = evaluate(
        _read_like(samples, points, "samples").data,
        points,
        label=label,
        repeats=real_draws,
        seed=seed,
        full=True,
        held_out=others,
    )
    click.echo(summary({samples.name: result}))
    click.echo(f"\n{result.table()}\n")
    if points.unit_of_distances:
        note(points.unit_of_distances)
    click.echo(json.dumps(result.to_dict(), indent=2))


def _read_like(path: Path, data: Points, what: str) -> Points:
    """Returns the points of a file in the units of the data, mapped as the data are."""
    points = load_points(path, standardise=data.standardisation or False, say=note)
    if points.dim != data.dim:
        raise UserError(f"{what} must have dimension {data.dim} like the data, got {points.dim}")
    return points
