"""Scheduler objects that are made of settings: configs, files and changes of class."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ...kernels.default_state import methods_in_default_state
from .. import files
from ..errors import UserError, shown
from . import checks, settings
from .settings import SchedulerConfig

_Self = TypeVar("_Self", bound="Configured")


@methods_in_default_state
class Configured:
    """An object whose settings are the fields of its dataclass, under diffusers' names.

    Settings cannot be changed in place. Those of other classes that :meth:`from_config` met are
    carried along, so that a script can change the class of a scheduler and change it back.
    """

    order: ClassVar[int] = 1
    config_name: ClassVar[str] = settings.CONFIG_NAME
    # Settings whose default is not that of diffusers, so that a config's default counts.
    _own_defaults: ClassVar[frozenset[str]] = frozenset()
    # Allowed values of settings that have others in other classes.
    _choices: ClassVar[Mapping[str, tuple[str | None, ...]]] = {}
    # The process; classes of one process take each other's configs.
    _process: ClassVar[str] = "variance-preserving"

    _given: frozenset[str]
    _carried: dict[str, Any]

    def __new__(cls: type[_Self], *values: Any, **given: Any) -> _Self:
        """Refuses a setting that the class does not have, before ``__init__`` meets it."""
        parameters = inspect.signature(cls.__init__).parameters
        if all(each.kind != each.VAR_KEYWORD for each in parameters.values()):
            for name in given.keys() - parameters.keys():
                raise settings.unknown(name, given[name], cls._names(), cls.__name__)
        scheduler = super().__new__(cls)
        by_place = [*parameters][1 : 1 + len(values)]
        object.__setattr__(scheduler, "_given", frozenset((*by_place, *given)))
        object.__setattr__(scheduler, "_carried", {})
        return scheduler

    def __post_init__(self) -> None:
        for name, value in settings.checked(self._settings(), self._choices).items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._names() and "timesteps" in self.__dict__:
            raise UserError(
                f"{name} cannot be changed in place; "
                f"from_config(scheduler.config, {name}=...) makes a scheduler with another setting"
            )
        object.__setattr__(self, name, value)

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))  # type: ignore[arg-type]

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names()}

    @property
    def config(self) -> SchedulerConfig:
        """Every setting, under diffusers' names; it cannot be changed.

        ``_use_default_values`` names those that were left out: where the class is changed, they
        take the defaults of the new class, as in diffusers.
        """
        values = self._settings()
        left_out = values.keys() - self._given - settings.ALWAYS_SAID
        if left_out:
            values[settings.LEFT_OUT] = sorted(left_out)
        return SchedulerConfig(self._carried | values)

    @classmethod
    def from_config(cls: type[_Self], config: Mapping[str, Any], **changes: Any) -> _Self:
        """Returns a scheduler with these settings, for example those of another scheduler.

        Settings that only other schedulers of diffusers have are carried along in ``config``, with
        a warning if they would have changed the steps.

        Args:
            config: settings of a scheduler of this package or of diffusers.
            **changes: settings that replace those of the config.

        Raises:
            ValueError: a setting is unknown, of the wrong type or out of range, or says that the
                model was trained with another process.
        """
        if not isinstance(config, Mapping):
            raise UserError(f"config must be a dict of settings, got {shown(config)}")
        given = settings.given(config, cls._own_defaults) | changes
        own, carried = settings.own(given, cls._names(), cls.__name__, cls._process)
        if own.get("variance_type", "") is None and "variance_type" not in cls._choices:
            del own["variance_type"]  # of a solver that has no variance
        scheduler = cls(**own)
        object.__setattr__(scheduler, "_carried", carried)
        return scheduler

    @classmethod
    def from_pretrained(
        cls: type[_Self],
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        **changes: Any,
    ) -> _Self:
        """Reads ``scheduler_config.json`` of a folder, as either package writes it.

        Args:
            pretrained_model_name_or_path: a folder on this machine, or the file itself; nothing is
                downloaded.
            subfolder: a folder inside it, such as ``"scheduler"`` of a saved pipeline.
            **changes: settings that replace those of the file.

        Raises:
            ValueError: there is no such file, or its settings are not supported.
        """
        return cls.from_config(settings.read(pretrained_model_name_or_path, subfolder), **changes)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes ``scheduler_config.json``, which diffusers reads too, into a folder.

        Raises:
            ValueError: it cannot be written.
        """
        target = (
            files.make_folder(checks.path("save_directory", save_directory)) / settings.CONFIG_NAME
        )
        saved = {name: x for name, x in self.config.items() if name != settings.LEFT_OUT}
        files.save_json(target, {"_class_name": type(self).__name__, **saved})

    save_config = save_pretrained

    @property
    def compatibles(self) -> list[type["Configured"]]:
        """The schedulers of this package that take the config of this one."""
        return [each for each in _schedulers(Configured) if each._process == self._process]


def _schedulers(cls: type[Configured]) -> Iterator[type[Configured]]:
    """Yields the public subclasses of a class, those of scripts left out."""
    for each in cls.__subclasses__():
        if is_dataclass(each) and each.__module__.startswith(f"{__package__}."):
            yield each
        yield from _schedulers(each)
