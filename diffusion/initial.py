"""Weights of a run that another one starts from, instead of random ones."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .checkpoints import load
from .data import Points, Standardisation
from .errors import UserError
from .models import Perceptron
from .training import Task
from .training.task import check_initial


@dataclass(frozen=True)
class Initial:
    """The networks of a run, and what their numbers mean.

    Args:
        path: where they were read.
        denoiser, classifier: the networks; None for no classifier.
        standardisation: the map from a user's points to those that they know; None for points as
            they came.
        class_names: names of the classes, or none.
    """

    path: Path
    denoiser: Perceptron
    classifier: Perceptron | None
    standardisation: Standardisation | None
    class_names: tuple[str, ...]

    def record(self) -> dict[str, str]:
        """Returns what a run that starts from the weights writes down of them."""
        digest = hashlib.sha256()
        for network in (self.denoiser, self.classifier):
            if network is not None:
                digest.update(network.network().parameters.cpu().numpy().tobytes())
        return {"path": str(self.path.absolute()), "digest": digest.hexdigest()}

    def network(self, task: Task, say: Callable[[str], None]) -> Perceptron | None:
        """Returns the network that a training starts from; None if it starts anew.

        Args:
            task: the training.
            say: called with a line that says why a classifier starts anew.

        Raises:
            ValueError: the data are in other units, or the denoiser does not fit.
        """
        self._check_units(task.points)
        try:
            self._check_classes(task)
            network = self.classifier if task.classify else self.denoiser
            if network is None:
                raise UserError("there is none")
            check_initial(network, task)
        except UserError as error:
            if not task.classify:
                raise UserError(
                    f"--init {self.path} does not fit: {error}; --config with its config.json "
                    "takes its settings"
                ) from error
            say(f"the classifier starts anew, not from that of {self.path}: {error}")
            return None
        return network

    def _check_units(self, points: Points) -> None:
        if points.standardisation != self.standardisation:
            known, given = (
                "as they came" if map_ is None else f"standardised: {map_}"
                for map_ in (self.standardisation, points.standardisation)
            )
            raise UserError(
                f"--init {self.path} needs points in the units of its networks, {known}; got "
                f"points {given}"
            )

    def _check_classes(self, task: Task) -> None:
        names = task.points.class_names
        if (task.classify or task.conditional) and self.class_names and names != self.class_names:
            raise UserError(
                f"its classes are {', '.join(self.class_names)}, those of the data "
                f"{', '.join(names) or 'have no names'}"
            )


def load_initial(path: Path) -> Initial:
    """Reads the networks that a run is to start from.

    Args:
        path: a run's folder, or a file as :func:`.load` reads it.

    Raises:
        ValueError: there are none, or they cannot be read.
    """
    found = load(path)
    return Initial(path, found.model, found.classifier, found.standardisation, found.class_names)


def record_of_initial(initial: Initial | None) -> dict[str, str] | None:
    """Returns the record of initial weights; None where they are random."""
    return None if initial is None else initial.record()
