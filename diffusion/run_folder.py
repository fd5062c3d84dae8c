"""The folder of a run: the place of every file, and plain readers of what the files hold.

::

    config.json                         the settings of the run
    checkpoints/denoiser.pt             state_dict of the denoiser's averaged weights
    checkpoints/classifier.pt           the same of the classifier, if the data has labels
    checkpoints/training.pt             the state of the training, for ``--resume``
    checkpoints/progress.json           steps done and steps in all, by network
    losses.csv                          losses and learning rates, written while training
    losses.jsonl, tensorboard/          the same, with ``--log``
    outputs/uncond_gen_samples.pt       [n, d] in the units of the data
    outputs/cond_gen_samples_<c>.pt     [n, d] in the units of the data, guided to class c
    metrics.json                        every number, beside the score of real data
    figures/*.png                       or .svg, .pdf
    report.md, report.html, view.html   written by ``flashpoint report`` and ``flashpoint view``
    exports/                            written by ``flashpoint export``
    .lock, .lock.json                   the process that trains in the folder
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from . import files
from .choices import FIGURES
from .errors import UserError
from .logs import OWN_LOGS
from .schedules import Schedule, given_schedule

NETWORKS = ("denoiser", "classifier")

# Every file that the commands leave in a run's folder, as patterns; # is the number of a class.
_OWN_FILES = (
    "metrics.json", "report.md", "report.html", "view.html", *OWN_LOGS,
    *(f"checkpoints/{name}" for name in
      ("denoiser.pt", "classifier.pt", "training.pt", "progress.json")),
    *(f"outputs/{name}" for name in
      ("uncond_gen_samples.pt", "cond_gen_samples_#.pt", "samples.pt",
       "samples_#.pt", "interpolation.pt")),
    *(f"outputs/{name}.{suffix}" for suffix in FIGURES for name in
      ("samples", "samples_#", "interpolation")),
    *(f"figures/{name}.{suffix}" for suffix in FIGURES for name in
      ("data", "unconditional", "conditional", "conditional_#", "classifier", "training_curves",
       "samples", "density", "trajectories", "reverse_steps", "excess_loss")),
    "figures/reverse.gif",
    *(f"exports/{network}{suffix}" for network in NETWORKS
      for suffix in (".safetensors", ".onnx", ".pt2")),
)  # fmt: skip


class History(NamedTuple):
    """The course of a training."""

    losses: dict[str, Tensor]  # of every step done, float32 [K], by network
    validation: list[tuple[int, float]]  # (step, NLL of a few samples)
    # (step, loss on held-out points), by network; empty where none were held out
    validation_losses: dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run.

    Args:
        path: the folder; it need not exist.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config_file(self) -> Path:
        """The file with the settings of the run."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        """The file with the metrics of the samples."""
        return self.path / "metrics.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of networks and training state."""
        return self.path / "checkpoints"

    @property
    def outputs(self) -> Path:
        """The folder of samples."""
        return self.path / "outputs"

    @property
    def figures(self) -> Path:
        """The folder of figures."""
        return self.path / "figures"

    @property
    def exports(self) -> Path:
        """The folder of networks in the formats of other programs."""
        return self.path / "exports"

    @property
    def report_markdown(self) -> Path:
        """The report in Markdown."""
        return self.path / "report.md"

    @property
    def report_page(self) -> Path:
        """The report as one page of HTML."""
        return self.path / "report.html"

    @property
    def view_page(self) -> Path:
        """The page of the viewer."""
        return self.path / "view.html"

    @property
    def training_file(self) -> Path:
        """The file with the state of the training."""
        return self.checkpoints / "training.pt"

    @property
    def progress_file(self) -> Path:
        """The file with the number of steps done."""
        return self.checkpoints / "progress.json"

    def network_file(self, name: str) -> Path:
        """Returns the file with the weights of ``denoiser`` or ``classifier``."""
        return self.checkpoints / f"{name}.pt"

    def samples_file(self, label: int | None = None) -> Path:
        """Returns the file with the samples of a class, or with those without guidance."""
        name = "uncond_gen_samples" if label is None else f"cond_gen_samples_{label}"
        return self.outputs / f"{name}.pt"

    def make(self) -> None:
        """Makes the folders that a run writes to.

        Raises:
            ValueError: a folder cannot be written to.
        """
        for folder in (self.path, self.checkpoints, self.outputs, self.figures):
            files.make_folder(folder)

    def own_files(self) -> Iterator[Path]:
        """Yields every file that a run left here, but for its settings."""
        for pattern in _OWN_FILES:
            start, number, end = pattern.partition("#")
            for path in sorted(self.path.glob(f"{start}*{end}" if number else pattern)):
                name = path.relative_to(self.path).as_posix()
                if not number or name.removeprefix(start).removesuffix(end).isdecimal():
                    yield path

    def check_settings_file(self) -> None:
        """Raises :class:`UserError` if there is no run, but another program's ``config.json``."""
        if not self.config_file.exists() or any(self.own_files()):
            return
        try:
            self.config()
        except UserError as error:
            raise UserError(
                f"folder {self} holds a {self.config_file.name} that is of no run, and would be "
                "lost; take another --out"
            ) from error

    def check_unused(self, *, resume: bool = False) -> None:
        """Raises :class:`UserError` if the folder holds a run.

        Args:
            resume: allows the logs of a run that has not come to its first checkpoint.
        """
        begun = resume and self.config_file.exists()
        logs = {one for pattern in OWN_LOGS for one in self.path.glob(pattern)} if begun else set()
        found = next((one for one in self.own_files() if one not in logs), None)
        if found is not None:
            raise UserError(
                f"folder {self} holds a run already ({found.relative_to(self.path)}); --resume "
                "goes on with it, --overwrite replaces it, another --out keeps it"
            )

    def clear(self) -> None:
        """Deletes every file of a run, and no other.

        Raises:
            ValueError: a file cannot be deleted.
        """
        files.delete((*self.own_files(), self.config_file))

    def config(self) -> dict[str, Any] | None:
        """Reads the settings of the run; returns None if there are none.

        Raises:
            ValueError: the file is damaged, or of a version with settings that are not known.
        """
        if not self.config_file.exists():
            return None
        config = files.load_json(self.config_file)
        for name, kinds in _KINDS.items():
            if name in config and not isinstance(config[name], kinds):
                raise self._no_settings(f"{name} is {config[name]!r}")
        schedule = config.get("schedule")
        if schedule is None:
            raise self._no_settings("schedule is missing")
        new = schedule.keys() - {one.name for one in fields(Schedule)}
        if new:
            raise self._no_settings(f"schedule has {', '.join(sorted(new))}; is it newer?")
        try:
            given_schedule(**schedule)
        except (ValueError, TypeError) as error:
            raise self._no_settings(f"schedule: {error}") from error
        return config

    def _no_settings(self, why: str) -> UserError:
        return UserError(
            f"file {self.config_file} does not hold the settings of a run that this version "
            f"knows: {why}"
        )

    def check_network(self, name: str, widths: Sequence[int]) -> None:
        """Raises :class:`UserError` if a network is of another shape than the settings say.

        Args:
            name: ``denoiser`` or ``classifier``.
            widths: widths of its input, hidden layers and output.
        """
        config = self.config() or {}
        hidden, dim = config.get(name, {}).get("hidden_layers"), config.get("dim")
        wrong_output = name == "denoiser" and dim not in (None, widths[-1])
        if wrong_output or (hidden is not None and list(hidden) != list(widths[1:-1])):
            raise UserError(
                f"file {self.network_file(name)} holds a network of widths "
                f"{' - '.join(map(str, widths))}, which is another than {self.config_file} says"
            )

    def progress(self) -> dict[str, tuple[int, int]]:
        """Reads the steps done and the steps in all by network; empty where nothing says them.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.progress_file.exists():
            return {}
        content = files.load_json(self.progress_file)
        try:
            return {name: (int(one["step"]), int(one["of"])) for name, one in content.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"file {self.progress_file} does not say steps of a run") from error

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Reads the metrics by kind of samples; returns an empty dict if nothing was measured.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.metrics_file.exists():
            return {}
        metrics = files.load_json(self.metrics_file).get("metrics")
        if not isinstance(metrics, dict) or not all(map(_is_evaluation, metrics.values())):
            raise UserError(f"file {self.metrics_file} does not hold the metrics of a run")
        return metrics

    def history(self) -> History | None:
        """Reads the course of the training; returns None if nothing was trained.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.training_file.exists():
            return None
        state = files.load(self.training_file)
        try:
            losses = {name: _recorded(state[name]["losses"]) for name in NETWORKS if name in state}
            validation = [(int(step), float(nll)) for step, nll in state["validation"]]
            held_out = records_of(state.get("validation_losses", {}))
        except Exception as error:  # of any kind, from a file of any content
            raise UserError(
                f"file {self.training_file} does not hold the state of a training"
            ) from error
        return History(losses, validation, held_out)

    def circumstances(self) -> tuple[dict[str, float], dict[str, str]]:
        """Reads durations of the run's parts, in seconds, and the versions that trained it.

        Both are empty where nothing says them: before the training, and of older versions.

        Raises:
            ValueError: a file is damaged.
        """
        state = files.load(self.training_file) if self.training_file.exists() else {}
        measured = files.load_json(self.metrics_file) if self.metrics_file.exists() else {}
        try:
            seconds = state.get("seconds", {}) | measured.get("seconds", {})
            environment = {
                str(name): str(value) for name, value in state.get("environment", {}).items()
            }
            return {str(name): float(value) for name, value in seconds.items()}, environment
        except Exception as error:  # of any kind, from a file of any content
            raise UserError(
                f"files {self.training_file} and {self.metrics_file} do not hold the times and "
                "versions of a run"
            ) from error


# Types of the entries of config.json.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "data": str,
    "digest": str,
    "points": int,
    "dim": int,
    "source": (dict, type(None)),
    "standardisation": (dict, type(None)),
    "seed": int,
    "schedule": dict,
    "denoiser": dict,
    "classifier": dict,
    "sampling_steps": (int, type(None)),
}


def _is_evaluation(entry: Any) -> bool:
    """Returns True for what ``Evaluation.to_dict`` returns, as far as reports read it."""
    if not isinstance(entry, dict) or not entry.keys() >= {"nll", "nll_data", "purity"}:
        return False
    plain = (entry[name] for name in ("nll", "nll_data", "purity"))
    scores = [one for one in entry.values() if isinstance(one, dict) and "value" in one]
    return all(isinstance(one, int | float | None) for one in plain) and all(
        one.keys() >= {"low", "high", "passed"} for one in scores
    )


def records_of(saved: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Returns pairs (step, loss) by network, as a run has saved them."""
    return {
        name: [(int(step), float(loss)) for step, loss in record] for name, record in saved.items()
    }


def _recorded(losses: Tensor) -> Tensor:
    """Returns the losses [K] of the steps done from [1, K], or [K]; those of later steps are 0."""
    losses = losses.flatten()
    return losses[: int(losses.nonzero().max()) + 1] if losses.any() else losses[:1]
