"""The folder of a sweep, in which a file is named after all that decides it.

::

    sweep.json              the data and the values of each key
    networks/<hash>.pt      state_dict of a trained network's averaged weights
    networks/<hash>.json    the duration of its training, or why it failed
    models/<hash>.json      the settings of a finished model and its metrics
    results.json, results.csv, table.md, factors.png    once all models are finished
    best-<metric>/          the best model by a metric, the folder of a run
    parts/<k>-of-<n>/       the process that does a part of the sweep
    .lock, .lock.json       the process that does the whole sweep
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from .. import files
from ..checkpoints import load_mlp
from ..errors import UserError
from ..metrics import Score
from ..run_folder import RunFolder
from .figure import FIGURE_FILES
from .grid import Sweep
from .models import SweepModel
from .results import LINES, RESULTS, TABLE, SweepResult

_OWN_FILES = (
    "sweep.json", "networks/*.pt", "networks/*.json", "models/*.json",
    RESULTS, LINES, TABLE, *FIGURE_FILES, "parts/*-of-*/.lock.json",
)  # fmt: skip
# What must stay as it is while a sweep goes on; further values of a key may be added.
_KEPT = ("digest", "samples", "metrics", "real draws")


class Trained(NamedTuple):
    """What came of a training: its share of the seconds, and why it failed, if it did."""

    seconds: float
    failed: str = ""


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep.

    Args:
        path: the folder; it need not exist.
        sweep: the sweep.
    """

    path: Path
    sweep: Sweep

    @property
    def config_file(self) -> Path:
        """The file with the data and the values of each key."""
        return self.path / "sweep.json"

    def own_files(self) -> Iterator[Path]:
        """Yields every file that a sweep left here."""
        for pattern in _OWN_FILES:
            yield from sorted(self.path.glob(pattern))
        for run in map(RunFolder, sorted(self.path.glob("best-*"))):
            yield from (run.config_file, *run.own_files())

    def check_unused(self) -> None:
        """Raises :class:`UserError` if the folder holds a sweep."""
        if self.config_file.exists():
            raise UserError(
                f"folder {self.path} holds a sweep already; --resume goes on with it, --overwrite "
                "replaces it, another --out keeps it"
            )

    def check_same(self) -> None:
        """Raises :class:`UserError` if the folder's sweep has other data or is measured otherwise.

        A folder without a sweep is as good as any.
        """
        if not self.config_file.exists():
            return
        before, now = files.load_json(self.config_file), self.record()
        changed = [name for name in _KEPT if before.get(name) != now[name]]
        if "digest" in changed:
            raise UserError(
                f"the data have changed since sweep {self.path} was started ({before.get('data')}, "
                f"now {now['data']}); give the same ones, or another --out"
            )
        if changed:
            said = "; ".join(f"{name} {before.get(name)}, now {now[name]}" for name in changed)
            raise UserError(
                f"sweep {self.path} is measured otherwise ({said}); give the same, or another --out"
            )

    def record(self) -> dict[str, Any]:
        """Returns the content of ``sweep.json``."""
        points, map_ = self.sweep.points, self.sweep.points.standardisation
        return {
            "data": points.name,
            "points": len(points),
            "dim": points.dim,
            "digest": self.sweep.digest,
            "standardisation": None if map_ is None else asdict(map_),
            "source": self.sweep.source,
            "factors": {
                key: [list(one) if isinstance(one, tuple) else one for one in values]
                for key, values in self.sweep.factors.items()
            },
            "samples": self.sweep.n_samples,
            "metrics": list(self.sweep.metrics or ()),
            "real draws": self.sweep.real_draws,
        }

    def begin(self, *, anew: bool) -> None:
        """Makes the folders and writes ``sweep.json``.

        Args:
            anew: deletes what an earlier sweep left.

        Raises:
            ValueError: a folder cannot be written to, or a file not be deleted.
        """
        for folder in (self.path, self.path / "networks", self.path / "models"):
            files.make_folder(folder)
        if anew:
            files.delete(self.own_files())
        files.save_json(self.config_file, self.record())

    def _network_file(self, model: SweepModel) -> Path:
        return self.path / "networks" / f"{model.training_id(self.sweep.digest)}.pt"

    def _model_file(self, model: SweepModel) -> Path:
        name = model.id(self.sweep.digest, self.sweep.n_samples)
        return self.path / "models" / f"{name}.json"

    def training(self, model: SweepModel) -> Trained | None:
        """Returns what came of a model's training, or None if it is not done."""
        file = self._network_file(model)
        record = file.with_suffix(".json")
        if not record.exists():
            return None
        content = files.load_json(record)
        training = Trained(float(content.get("seconds", 0)), str(content.get("failed", "")))
        return training if training.failed or file.exists() else None

    def save_network(self, model: SweepModel, training: Trained, network: nn.Module) -> None:
        """Keeps what came of a training, and the network unless the training failed."""
        file = self._network_file(model)
        if not training.failed:
            files.save(file, network.state_dict())
        files.save_json(file.with_suffix(".json"), training._asdict())  # says that all is there

    def load_network(self, model: SweepModel) -> nn.Module:
        """Returns a trained network."""
        if model.maker is not None:
            return self._load_own(model)
        return load_mlp(self._network_file(model), model.recipe.activation)

    def _load_own(self, model: SweepModel) -> nn.Module:
        """Returns a trained network of the user's own, made anew and given its weights."""
        task, file = model.task(self.sweep.points), self._network_file(model)
        network = task.initial()
        try:
            network.load_state_dict(files.load(file))
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"file {file} does not hold the weights of the model {model}: delete it, and the "
                "sweep trains it again"
            ) from error
        return network

    def save_result(
        self, model: SweepModel, scores: dict[str, Score | str], seconds: float, failed: str
    ) -> None:
        """Keeps the metrics of a finished model."""
        points = self.sweep.points
        metrics = {
            name: asdict(score) for name, score in scores.items() if isinstance(score, Score)
        }
        content = {
            "model": str(model),
            "network": model.training_id(self.sweep.digest),
            "settings": model.settings,
            "steps": model.task(points).total_steps,
            "seconds": seconds,
            "failed": failed,
            "metrics": metrics,
            "left out": {name: why for name, why in scores.items() if isinstance(why, str)},
        }
        files.save_json(self._model_file(model), content)

    def has_result(self, model: SweepModel) -> bool:
        """Returns True if the model is finished."""
        return self._model_file(model).exists()

    def result(self, model: SweepModel) -> SweepResult:
        """Returns what came of a finished model.

        Raises:
            ValueError: the file is damaged.
        """
        file = self._model_file(model)
        content = files.load_json(file)
        try:
            metrics = {name: Score(**one) for name, one in content["metrics"].items()}
            return SweepResult(
                model.number, dict(model.values), metrics, content["seconds"], content["steps"],
                content["failed"],
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"file {file} does not hold the result of the model {model}: delete it, and the "
                "sweep makes it again"
            ) from error

    def results(self) -> list[SweepResult]:
        """Returns what came of every finished model, in the order of the sweep."""
        return [self.result(model) for model in self.sweep.models if self.has_result(model)]
