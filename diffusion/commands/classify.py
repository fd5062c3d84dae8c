"""``flashpoint classify``: a conditional denoiser as a classifier, beside nearest neighbours."""

from pathlib import Path

import click

from ..checkpoints import load
from ..classification import DiffusionClassifier
from ..errors import UserError
from ..models import ConditionalMLP
from . import data_option, device_option, options, read_points, seed_option


@click.command(name="classify")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-n", "--points", "most", default=1000, show_default=True, help="Number of points at most."
)
@click.option("--noises", default=4, show_default=True, help="Pairs of noise at each timestep.")
@click.option(
    "--test-fraction",
    default=0.2,
    show_default=True,
    help="Part of the data that is held out at random.",
)
@options(data_option, seed_option, device_option)
def classify_command(run, most, noises, test_fraction, data, seed, device) -> None:
    """Classify points by how well a conditional model removes their noise for each class.

    The points are new ones where the data's distribution is known, otherwise a part of the data.
    """
    from ..metrics.knn import fit_knn  # scikit-learn takes a second to import

    points, model = read_points(data), load(run)
    if not isinstance(model.model, ConditionalMLP):
        raise UserError(f"run {run} has no conditional model: train one with --p-uncond 0.2")
    if model.model.num_classes != points.num_classes:
        raise UserError(
            f"run {run} knows {model.model.num_classes} classes, "
            f"{points.name} has {points.num_classes}"
        )
    train, test = points.split(test_fraction, seed)
    if points.redraw is not None:
        test = points.fresh(most, seed)
    assert test.labels is not None
    assert train.labels is not None
    x, labels = test.data[:most], test.labels[:most]
    prior = train.labels.bincount()
    classifier = DiffusionClassifier(
        model.model, model.schedule, noises=noises, prior=prior, seed=seed, device=device
    )
    accuracy = classifier.score(x, labels)
    neighbours = fit_knn(train).score(x, labels)
    click.echo(f"{len(x)} points of {points.name}, {'new' if points.redraw else 'held out'}")
    click.echo(f"  by denoising error    {accuracy:.4f}")
    click.echo(f"  by nearest neighbours {neighbours:.4f}")
