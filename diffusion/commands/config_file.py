"""Files of settings, ``--config``: TOML or JSON with the names of a run's ``config.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import files
from ..checkpoints import standardisation_in
from ..choices import DATASETS
from ..data import Points
from ..errors import UserError, shown
from ..initial import Initial
from ..settings import OF_RUN, Settings
from .data_choice import DataChoice, Remembered, remembered_in

_FILES = (".toml", ".json")


@dataclass(frozen=True)
class ConfigFile:
    """What a file of settings says.

    Args:
        path: the file; None where there is none, and nothing is said.
        settings: the record of :meth:`.Settings.from_record`.
        of_run: what is said of the data, and of the weights that a run starts from.
    """

    path: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    of_run: dict[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """True for the ``config.json`` of a run, which has every setting."""
        return "points" in self.of_run

    @property
    def seed(self) -> int:
        """The seed that the file says, or the default."""
        return self.settings.get("seed", Settings.seed)

    def data(self) -> Remembered | None:
        """Returns the data that the file names, and what is held out of them; None without any.

        Raises:
            ValueError: it says of them what is not known.
        """
        name, source = self.of_run.get("data"), self.of_run.get("source")
        if isinstance(source, Mapping) and "name" not in source and name is not None:
            source = {"name": name, **source}
        found = remembered_in({"source": source}, str(self.path))
        if found is not None or name is None:
            return found
        if not isinstance(name, str) or not name:
            raise UserError(f"file {self.path}: data must be a name or a path, got {shown(name)}")
        if self.whole:  # of an older version, which wrote down the name of the points alone
            return Remembered(DataChoice(name.lower())) if name.lower() in DATASETS else None
        return Remembered(DataChoice(name))

    @property
    def initial(self) -> Path | None:
        """The run whose weights the file's run starts from, if any."""
        record = self.of_run.get("init")
        if record is None or isinstance(record, str):
            return Path(record) if record else None
        if not isinstance(record, Mapping) or not isinstance(record.get("path"), str):
            raise UserError(
                f"file {self.path}: init must be the path of a run, got {shown(record)}"
            )
        return Path(record["path"])

    def has_units_of(self, points: Points) -> bool:
        """Returns True if points are standardised as those of the run whose settings these are."""
        return points.standardisation == standardisation_in(self.of_run)

    def check_points(self, points: Points) -> None:
        """Raises :class:`UserError` if the data that a run's settings name have changed since.

        Args:
            points: what the run of the file, with its seed, trains on of the data as they are now.
        """
        if self.of_run.get("digest", points.digest) != points.digest:
            raise UserError(
                f"the data of {self.path} have changed since it was written; name them with --data "
                "to take them as they are now"
            )

    def check_initial(self, initial: Initial) -> None:
        """Raises :class:`UserError` if the weights that a run's settings name have changed."""
        record = self.of_run.get("init")
        digest = record.get("digest") if isinstance(record, Mapping) else None
        if digest not in (None, initial.record()["digest"]):
            raise UserError(
                f"the weights of {initial.path} have changed since {self.path} was written; name "
                "them with --init to take them as they are now"
            )


def read_config(path: Path | None) -> ConfigFile:
    """Reads a file of settings.

    Raises:
        ValueError: it is neither TOML nor JSON, or cannot be read.
    """
    if path is None:
        return ConfigFile()
    if path.suffix.lower() not in _FILES:
        raise UserError(f"config must be a file {' or '.join(_FILES)}, got {path}")
    load = files.load_toml if path.suffix.lower() == ".toml" else files.load_json
    content = load(path)
    settings = {name: value for name, value in content.items() if name not in OF_RUN}
    return ConfigFile(path, settings, {name: content[name] for name in OF_RUN if name in content})


def merged(record: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record with the values of another one, which win, in its tables too."""
    both = dict(record)
    for name, value in over.items():
        own = both.get(name)
        if isinstance(own, Mapping) and isinstance(value, Mapping):
            value = merged(own, value)
        both[name] = value
    return both
