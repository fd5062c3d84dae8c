"""Settings of schedulers: their checks, and files of them that diffusers reads and writes."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, check_choice, did_you_mean, shown
from ..files import load_json
from . import checks

CONFIG_NAME = "scheduler_config.json"
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range")

_MOST_TIMESTEPS = 1_000_000
# What diffusers' schedulers can do to images and these do not: the only values that are taken.
_FIXED = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "rescale_betas_zero_snr": False,
}
# Settings of diffusers' other schedulers of this process, with the values that change nothing here.
# They choose steps of solvers.
_OF_SOLVERS: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++", "deis", "data_prediction"),
    "corrector_order": (2,),
    "disable_corrector": ([],),
    "euler_at_final": (False,),
    "final_sigmas_type": ("zero",),
    "follow_timesteps": (False, True),
    "interpolation_type": ("linear",),
    "lambda_min_clipped": (-float("inf"),),
    "lower_order_final": (True, False),
    "original_inference_steps": (50,),
    "predict_x0": (True,),
    "predictor_order": (2,),
    "set_alpha_to_one": (True, False),
    "skip_prk_steps": (False,),
    "solver_order": (2,),
    "solver_p": (None,),
    "solver_type": ("logrho", "midpoint", "bh2"),
    "tau_func": (None,),
    "tensor_format": ("pt", "np"),
    "timestep_scaling": (10.0,),
    "timestep_type": ("discrete",),
    "use_beta_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_karras_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "variance_type": ("fixed_small", None),
}
# The same of another process: a model that was trained with them needs another scheduler.
_OF_PROCESSES: dict[str, tuple[Any, ...]] = {
    "flow_shift": (1.0,),
    "predict_epsilon": (True,),
    "shift": (1.0,),
    "shift_terminal": (None,),
    "sigma_max": (None,),
    "sigma_min": (None,),
    "time_shift_type": ("exponential",),
    "use_dynamic_shifting": (False,),
    "use_flow_sigmas": (False,),
}
_OTHER_PROCESSES = ("Flow", "EDM", "CMStochastic", "SCM", "ScoreSde", "VQDiffusion", "CogVideoX")


class SchedulerConfig(dict[str, Any]):
    """Settings of a scheduler, to be read as ``config["name"]`` or ``config.name``.

    They cannot be changed: ``from_config`` makes a scheduler with other settings. ``dict(config)``
    is a copy that can.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the scheduler's config has no {name!r}") from None

    def _refuse(self, *names: Any, **_: Any) -> NoReturn:
        name = names[0] if names and isinstance(names[0], str) else "NAME"
        raise UserError(
            f"config.{name} cannot be changed in place; "
            f"from_config(scheduler.config, {name}=...) makes a scheduler with another setting"
        )

    __setattr__ = __setitem__ = __delattr__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


def checked(settings: Mapping[str, Any], beta_schedules: Collection[str]) -> dict[str, Any]:
    """Returns a scheduler's settings as Python's own numbers, bools and tuples.

    Args:
        settings: all settings of a scheduler.
        beta_schedules: the allowed values of ``beta_schedule``.

    Raises:
        ValueError: one is of the wrong type, unknown or out of range.
    """
    values = dict(settings)
    values["num_train_timesteps"] = count = checks.integer(
        "num_train_timesteps", values["num_train_timesteps"], 1, _MOST_TIMESTEPS
    )
    for name in ("beta_start", "beta_end"):
        values[name] = checks.number(name, values[name], 0)
    choices = {
        "beta_schedule": beta_schedules,
        "prediction_type": PREDICTION_TYPES,
        "timestep_spacing": TIMESTEP_SPACINGS,
        "variance_type": VARIANCE_TYPES,
    }
    for name, allowed in choices.items():
        if name in values:
            check_choice(name, values[name], allowed)
    for name in {"clip_sample", "set_alpha_to_one", "follow_timesteps"} & values.keys():
        values[name] = checks.flag(name, values[name])
    values["clip_sample_range"] = checks.number("clip_sample_range", values["clip_sample_range"], 0)
    values["steps_offset"] = checks.integer("steps_offset", values["steps_offset"], 0, count - 1)
    if values["trained_betas"] is not None:
        values["trained_betas"] = _numbers("trained_betas", values["trained_betas"], count)
    for name, only in _FIXED.items():
        if not _same(values[name], only):
            raise UserError(
                f"{name} must be {only}, got {shown(values[name])}: "
                "only diffusers' own schedulers have it"
            )
        values[name] = only
    return values


def _numbers(name: str, value: Any, count: int) -> tuple[float, ...]:
    """Returns a sequence, array or tensor of numbers as a tuple of floats."""
    try:
        numbers = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value))
        numbers = numbers.double().detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(0)
    if numbers.shape != (count,):
        given = f"{len(value)}" if isinstance(value, Sequence) else shown(value)
        raise UserError(f"{name} must be num_train_timesteps = {count} numbers, got {given}")
    return tuple(numbers.tolist())


def _same(value: Any, allowed: Any) -> bool:
    """Returns whether a setting has a value; an array never does."""
    return bool(np.ndim(value) == 0 and value == allowed) or (value == [] and allowed == [])


def own(config: Mapping[str, Any], names: Collection[str], scheduler: str) -> dict[str, Any]:
    """Returns those settings of a config that a scheduler has.

    A setting of another scheduler of diffusers that would change the steps is left out with a
    warning, one that changes nothing without.

    Args:
        config: settings of a scheduler of this package or of diffusers.
        names: names of the settings that this scheduler has.
        scheduler: name of its class.

    Raises:
        ValueError: a setting is unknown, or says that the model was trained with another process.
    """
    source = str(config.get("_class_name", ""))
    if source.startswith(_OTHER_PROCESSES):
        raise UserError(f"config is one of {source}, whose process is not that of {scheduler}")
    ignored = []
    for name, value in config.items():
        if name in names or str(name).startswith("_"):
            continue
        neutral = _OF_SOLVERS.get(name, _OF_PROCESSES.get(name))
        if neutral is None:
            raise unknown(name, value, names, scheduler)
        if any(_same(value, one) for one in neutral):
            continue
        if name in _OF_PROCESSES:
            raise UserError(f"{name} must be {neutral[0]} for {scheduler}, got {value!r}")
        ignored.append(f"{name}={value!r}")
    if ignored:
        warnings.warn(
            f"{scheduler} ignores {', '.join(ignored)}: settings of other schedulers", stacklevel=4
        )
    kept = {name: value for name, value in config.items() if name in names}
    if kept.get("variance_type", "") is None:  # in the configs of solvers that have no variance
        del kept["variance_type"]
    return kept


def unknown(name: str, value: Any, names: Collection[str], scheduler: str) -> UserError:
    """Returns the error of a setting that a scheduler does not have."""
    hint = did_you_mean(str(name), names) or f"; it has {', '.join(names)}"
    return UserError(f"{name} is no setting of {scheduler}, got {shown(value)}{hint}")


def read(folder: str | Path, subfolder: str | None) -> dict[str, Any]:
    """Returns the settings in ``scheduler_config.json``.

    Args:
        folder: the folder, or the file itself.
        subfolder: a folder inside it.

    Raises:
        ValueError: there is no such file, or it holds no settings.
    """
    path = checks.path("pretrained_model_name_or_path", folder)
    if subfolder is not None:
        path = path / checks.path("subfolder", subfolder)
    path = path if path.is_file() else path / CONFIG_NAME
    try:
        return load_json(path)
    except UserError as error:
        inside = [p.parent.name for p in Path(folder).glob(f"*/{CONFIG_NAME}")]
        hint = f"; did you mean subfolder={inside[0]!r}?" if inside else ""
        if not Path(folder).exists():
            hint = ": it is no folder on this machine, and nothing is downloaded"
        raise UserError(f"{error}{hint}") from error
