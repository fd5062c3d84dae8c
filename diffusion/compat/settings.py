"""Settings of schedulers: their checks, and files of them that diffusers reads and writes."""

import math
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import UserError, check_choice, did_you_mean, shown
from ..files import load_json
from . import checks

CONFIG_NAME = "scheduler_config.json"
LEFT_OUT = "_use_default_values"  # in a config, names of the settings that nobody gave
ALWAYS_SAID = {"clip_sample", "follow_timesteps"}  # their defaults here are not all diffusers'
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "laplace")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range")

_MOST_TIMESTEPS = 1_000_000
_TINY = float(np.finfo(np.float32).tiny)
_FLAGS = {
    "clip_sample",
    "euler_at_final",
    "follow_timesteps",
    "invert_sigmas",
    "lower_order_final",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "stochastic_sampling",
    "thresholding",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
    "beta_schedule": BETA_SCHEDULES,
    "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear", "log_linear"),
    "prediction_type": PREDICTION_TYPES,
    "solver_type": ("midpoint", "heun"),
    "time_shift_type": ("exponential", "linear"),
    "timestep_spacing": TIMESTEP_SPACINGS,
    "timestep_type": ("discrete", "continuous"),
    "variance_type": VARIANCE_TYPES,
}
_NUMBERS = {  # the smallest and the largest value
    "beta_start": (0, math.inf),
    "beta_end": (0, math.inf),
    "clip_sample_range": (0, math.inf),
    "dynamic_thresholding_ratio": (0, 1),
    "sample_max_value": (_TINY, math.inf),
    "flow_shift": (_TINY, math.inf),
    "shift": (_TINY, math.inf),
    "base_shift": (-math.inf, math.inf),
    "max_shift": (-math.inf, math.inf),
}
_NUMBERS_OR_NONE = {
    "sigma_min": (_TINY, math.inf),
    "sigma_max": (_TINY, math.inf),
    "shift_terminal": (0, 1 - 1e-6),
}
_INTEGERS = {
    "solver_order": (1, 3),
    "base_image_seq_len": (1, None),
    "max_image_seq_len": (1, None),
}
# At most one of these chooses the noise levels of a chain.
_GRIDS = (
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
)
# Settings of diffusers' other schedulers of a process, with the values that change nothing in a
# scheduler without them. They choose steps of solvers.
_OF_SOLVERS: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++", "deis", "data_prediction"),
    "clip_sample": (False,),
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
    "thresholding": (False,),
    "timestep_scaling": (10.0,),
    "timestep_type": ("discrete",),
    "use_beta_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_karras_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "variance_type": ("fixed_small", None),
}
# These have an effect only beside another of the settings above.
_OF_OTHER_SETTINGS = {"clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"}
# The same of another process: a model that was trained with them needs another scheduler.
_OF_PROCESSES: dict[str, tuple[Any, ...]] = {
    "flow_shift": (1.0,),
    "predict_epsilon": (True,),
    "rescale_betas_zero_snr": (False,),
    "shift": (1.0,),
    "shift_terminal": (None,),
    "sigma_max": (None,),
    "sigma_min": (None,),
    "time_shift_type": ("exponential",),
    "use_dynamic_shifting": (False,),
    "use_flow_sigmas": (False,),
}
# How the names of classes of diffusers begin whose process is not the variance-preserving one.
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

    def __eq__(self, other: object) -> bool:
        """Two configs are equal if their settings are, whether given or left out."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return {k: v for k, v in self.items() if k != LEFT_OUT} == {
            k: v for k, v in other.items() if k != LEFT_OUT
        }

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


def checked(
    settings: Mapping[str, Any], choices: Mapping[str, tuple[str | None, ...]]
) -> dict[str, Any]:
    """Returns a scheduler's settings as Python's own numbers, bools and tuples.

    Args:
        settings: all settings of a scheduler.
        choices: allowed values of settings that have others than in most schedulers.

    Raises:
        ValueError: one is of the wrong type, unknown or out of range.
    """
    values = dict(settings)
    values["num_train_timesteps"] = count = checks.integer(
        "num_train_timesteps", values["num_train_timesteps"], 1, _MOST_TIMESTEPS
    )
    for name, value in values.items():
        if name in _CHOICES:
            _check_choice(name, value, choices.get(name, _CHOICES[name]))
        elif name in _FLAGS:
            values[name] = checks.flag(name, value)
        elif name in _NUMBERS:
            values[name] = checks.number(name, value, *_NUMBERS[name])
        elif name in _INTEGERS:
            values[name] = checks.integer(name, value, *_INTEGERS[name])
        elif name in _NUMBERS_OR_NONE and value is not None:
            values[name] = checks.number(name, value, *_NUMBERS_OR_NONE[name])
        elif name == "steps_offset":
            values[name] = checks.integer(name, value, 0, count - 1)
        elif name == "lambda_min_clipped" and value != -math.inf:
            values[name] = checks.number(name, value, -math.inf)
        elif name == "trained_betas" and value is not None:
            values[name] = tuple(checks.numbers(name, value).tolist())
    several = [name for name in _GRIDS if values.get(name)]
    if len(several) > 1:
        raise UserError(f"{several[1]} must be False with {several[0]}, got both")
    return values


def _check_choice(name: str, value: Any, allowed: tuple[str | None, ...]) -> None:
    if not (value is None and None in allowed):
        other = "or None" if None in allowed else ""
        check_choice(name, value, [each for each in allowed if each is not None], other)


def given(config: Mapping[str, Any], own_defaults: Collection[str]) -> dict[str, Any]:
    """Returns the settings of a config without those that were left out when it was made.

    Args:
        config: settings of a scheduler of this package or of diffusers.
        own_defaults: settings whose default is not that of diffusers: the config's value counts.
    """
    left_out = set(config.get(LEFT_OUT, ())) - set(own_defaults)
    return {name: value for name, value in config.items() if name not in left_out}


def _same(value: Any, allowed: Any) -> bool:
    """Returns whether a setting has a value; an array never does."""
    return bool(np.ndim(value) == 0 and value == allowed) or (value == [] and allowed == [])


def own(
    config: Mapping[str, Any], names: Collection[str], scheduler: str, process: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns those settings of a config that a scheduler has, and those of other schedulers.

    It warns of a setting of another scheduler of diffusers that would change the steps.

    Args:
        config: settings of a scheduler of this package or of diffusers.
        names: names of the settings that this scheduler has.
        scheduler: name of its class.
        process: ``variance-preserving`` or ``flow``.

    Raises:
        ValueError: a setting is unknown, or says that the model was trained with another process.
    """
    source = str(config.get("_class_name", ""))
    foreign = source.startswith(_OTHER_PROCESSES)
    if process == "flow":
        foreign = bool(source) and not source.startswith("Flow")
    if foreign:
        raise UserError(f"config is one of {source}, whose process is not that of {scheduler}")
    carried, ignored = {}, []
    for name, value in config.items():
        if name in names or str(name).startswith("_"):
            continue
        carried[name] = value
        neutral = _OF_SOLVERS.get(name, _OF_PROCESSES.get(name))
        if process == "flow" or (neutral is None and name not in _OF_OTHER_SETTINGS):
            raise unknown(name, value, names, scheduler)
        if neutral is None or any(_same(value, one) for one in neutral):
            continue
        if name in _OF_PROCESSES:
            raise UserError(f"{name} must be {neutral[0]} for {scheduler}, got {value!r}")
        ignored.append(f"{name}={value!r}")
    if ignored:
        warnings.warn(
            f"{scheduler} ignores {', '.join(ignored)}: settings of other schedulers", stacklevel=4
        )
    return {name: value for name, value in config.items() if name in names}, carried


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
