"""The figures of an experiment: its data, its samples and its classifier."""

from pathlib import Path

from torch import Tensor

from . import plots
from .chains import scale_in_force
from .data import Points
from .models import MLP
from .settings import Settings


def draw_samples(
    samples: dict[int | None, Tensor],
    points: Points,
    settings: Settings,
    classifier: MLP | None,
    folder: Path,
    suffix: str,
) -> None:
    """Draws the data, the samples without guidance and of each class, and the classifier.

    Args:
        samples: samples [n, d] by class; None is the class of those without guidance.
        points: the data.
        settings: settings of the experiment.
        classifier: the classifier that guided the samples, if one did.
        folder: folder of the figures.
        suffix: their format: png, svg or pdf.
    """

    def file_of(name: str) -> Path:
        return folder / f"{name}.{suffix}"

    scale = scale_in_force(settings.scale, guided=classifier is not None)
    plots.scatter(points.data, points.labels, points, points.name, file_of("data"))
    parts = [(f"{points.name}: data", points.data, None), ("samples", samples[None], None)]
    plots.panels(parts, points, file_of("unconditional"))
    guided = [x for label, x in samples.items() if label is not None]
    if not guided:
        return
    plots.conditional(guided, points, file_of("conditional"), scale=scale)
    for label, x in enumerate(guided):
        plots.conditional([x], points, file_of(f"conditional_{label}"), [label], scale)
    if points.dim == 2 and classifier is not None:
        plots.classifier_map(classifier, settings.schedule, points, file_of("classifier"))
