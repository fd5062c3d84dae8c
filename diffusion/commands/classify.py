"""``flashpoint classify``: a conditional denoiser as a classifier, beside nearest neighbours."""

from pathlib import Path

import click
import torch
from torch import Tensor

from ..checkpoints import load
from ..classification import DiffusionClassifier
from ..data import Points
from ..errors import UserError
from ..metrics.knn import fit_knn
from ..models import ConditionalMLP
from ..progress import note
from .data_choice import DataChoice
from .of_run import parts_of_run, say_unfinished

_NEIGHBOURS = 50_000  # points at most among which the nearest are searched
_MOST_OTHERS = 5  # classes for which the points of one are taken


def classify_points(
    *,
    run: Path,
    most: int,
    noises: int,
    test_fraction: float | None,
    data: DataChoice,
    other_data: bool,
    seed: int,
    quiet: bool,
    device: str | None,
) -> None:
    """Classifies points with a run's conditional denoiser, and prints how many are right."""
    points, held_out = parts_of_run(run, data, other_data)
    model = load(run)
    if not isinstance(model.model, ConditionalMLP):
        raise UserError(f"run {run} has no conditional model: train one with --p-uncond 0.2")
    if model.model.num_classes != points.num_classes:
        raise UserError(
            f"run {run} knows {model.model.num_classes} classes, "
            f"{points.name} has {points.num_classes}"
        )
    say_unfinished(run)
    if held_out is not None and test_fraction is not None:
        raise UserError(
            f"--test-fraction is for a run that has held nothing out; {run} has held out "
            f"{len(held_out)} points"
        )
    train, test, which = _parts(points, held_out, other_data, test_fraction, most, seed)
    assert test.labels is not None
    assert train.labels is not None
    x, labels = test.data[:most], test.labels[:most]
    prior = train.labels.bincount()
    classifier = DiffusionClassifier(
        model.model, model.schedule, noises=noises, prior=prior, seed=seed, device=device
    )
    found = torch.from_numpy(classifier.predict(x, progress=not quiet))
    if len(train) > _NEIGHBOURS:
        note(f"the neighbours are {_NEIGHBOURS:,} of {len(train):,} points")
        train = train.split(_NEIGHBOURS / len(train), seed)[1]
    neighbours = fit_knn(train).score(x, labels)
    click.echo(f"{len(x)} points of {points.name}, {which}")
    click.echo(f"  by denoising error    {(found == labels).double().mean():.4f}")
    click.echo(f"  by nearest neighbours {neighbours:.4f}")
    click.echo("each class by denoising error, and the classes that its other points are taken for")
    for line in _by_class(found, labels, points):
        click.echo(f"  {line}")


def _by_class(found: Tensor, labels: Tensor, points: Points) -> list[str]:
    """Returns a line for each class: the share of its points that are found, and the others.

    Args:
        found: int64 [n], the classes that the points are taken for.
        labels: int64 [n], their classes.
        points: the data, which names them.
    """
    lines, width = [], max(len(points.class_name(label)) for label in range(points.num_classes))
    for label in labels.unique().tolist():
        of_class = found[labels == label]
        counts = of_class.bincount(minlength=points.num_classes)
        line = f"{points.class_name(label):{width}} {counts[label] / len(of_class):.4f}"
        line += f" of {len(of_class)}"
        counts[label] = 0
        others = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())].tolist()
        shown = [f"{points.class_name(other)} {counts[other]}" for other in others[:_MOST_OTHERS]]
        lines.append(": ".join([line, ", ".join(shown)]) if shown else line)
    return lines


def _parts(
    points: Points,
    held_out: Points | None,
    other_data: bool,
    test_fraction: float | None,
    most: int,
    seed: int,
) -> tuple[Points, Points, str]:
    """Returns the points of the nearest neighbours, those to classify, and what these are."""
    if held_out is not None:
        return points, held_out, "held out of the training"
    train, test = points.split(0.2 if test_fraction is None else test_fraction, seed)
    if points.redraw is not None:
        return train, points.fresh(most, seed), "new"
    if other_data:
        return train, test, "which the run was not given; the neighbours are the others"
    return (
        train,
        test,
        (
            "which the run was trained on, so that it knows them (train with --test-fraction to "
            "hold some out); the neighbours are the others"
        ),
    )
