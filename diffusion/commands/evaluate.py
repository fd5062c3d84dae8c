"""``flashpoint evaluate``: measures a file of samples."""

import json
from pathlib import Path

import click

from ..data import Points, load_points
from ..errors import UserError
from ..metrics import evaluate, summary
from . import options, seed_option
from .of_run import points_of_samples, run_data_option


@click.command(name="evaluate")
@click.argument("samples", type=click.Path(path_type=Path))
@click.option("--label", type=int, default=None, help="Class that the samples should have.")
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
    if label is not None:
        points.check_label(label)
    others = None
    if held_out is not None:
        kept = _same_dimension(load_points(held_out), points, "held-out points")
        others = kept.data if label is None or kept.labels is None else kept.of_class(label)
    result = evaluate(
        _same_dimension(load_points(samples), points, "samples").data,
        points,
        label=label,
        repeats=real_draws,
        seed=seed,
        full=True,
        held_out=others,
    )
    click.echo(summary({samples.name: result}))
    click.echo(f"\n{result.table()}\n")
    click.echo(json.dumps(result.to_dict(), indent=2))


def _same_dimension(points: Points, data: Points, what: str) -> Points:
    if points.dim != data.dim:
        raise UserError(f"{what} must have dimension {data.dim} like the data, got {points.dim}")
    return points
