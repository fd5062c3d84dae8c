"""How a run was made, as its report tells it: recipe, sampler, time, versions, device."""

import platform
from dataclasses import asdict
from typing import Any

import torch

from .chains import METHODS
from .solvers import Churn
from .training import RECIPES, ClassicRecipe, Recipe
from .training.on_device import NORMAL_LOG_SIGMA
from .versions import version_of

VERSIONS = ("flashpoint", "torch", "triton", "numpy")
_UNKNOWN = "not written down (a run of an older version)"


def made_with(device: torch.device) -> dict[str, dict[str, str]]:
    """Returns versions and device under ``environment``, as a run writes them down.

    Args:
        device: the device that trains.
    """
    found = {"python": platform.python_version()} | {name: version_of(name) for name in VERSIONS}
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        place = f"{device.type}, {torch.get_num_threads()} threads"
    return {"environment": found | {"device": place}}


def told(
    config: dict[str, Any], seconds: dict[str, float], environment: dict[str, str]
) -> list[tuple[str, str]]:
    """Returns rows of a report's table.

    Args:
        config: settings of the run.
        seconds: duration of each part of the run; empty where nothing says it.
        environment: what :func:`made_with` returns under this name; empty where nothing says it.
    """
    network = config.get("denoiser", {})
    versions = [f"{name} {number}" for name, number in environment.items() if name != "device"]
    times = [f"{part} {value:.0f} s" for part, value in seconds.items()]
    return [
        ("recipe", _recipe(network)),
        ("timesteps are drawn", _density(network)),
        ("sampler", _sampler(config)),
        ("time", f"{sum(seconds.values()):.0f} s: {', '.join(times)}" if times else _UNKNOWN),
        ("device", environment.get("device", _UNKNOWN)),
        ("versions", ", ".join(versions) or _UNKNOWN),
    ]


def _recipe(network: dict[str, Any]) -> str:
    """Returns the recipe with most of the denoiser's settings, and those that are others."""

    def others(recipe: Recipe | ClassicRecipe) -> dict[str, Any]:
        own = asdict(recipe)
        return {key: value for key, value in network.items() if own.get(key) != _like(value)}

    name, changed = min(
        ((name, others(denoiser)) for name, (denoiser, _) in RECIPES.items()),
        key=lambda entry: len(entry[1]),
    )
    return ", ".join([name, *(f"{key} {_short(value)}" for key, value in changed.items())])


def _like(value: Any) -> Any:
    """Returns a value of JSON as a recipe holds it."""
    return tuple(value) if isinstance(value, list) else value


def _density(network: dict[str, Any]) -> str:
    density = network.get("t_density")
    if density is None:
        return "every pair of point and timestep once an epoch"
    text = f"{density}, {_short(network.get('low_noise', 0.0))} of the rows by noise level"
    own = zip(("p_mean", "p_std"), NORMAL_LOG_SIGMA.get(density, ()), strict=False)
    numbers = [f"{name} {_short(_given(network, name, value))}" for name, value in own]
    return ", ".join([text, *numbers])


def _given(settings: dict[str, Any], name: str, default: Any) -> Any:
    """Returns a setting, or its default where it is not given."""
    value = settings.get(name)
    return default if value is None else value


def _sampler(config: dict[str, Any]) -> str:
    method = str(config.get("method", "ddpm"))
    title = METHODS.get(method, "unknown")
    if method != "edm":
        return title
    own = Churn()
    given = {name: _given(config, name, getattr(own, name)) for name in ("s_churn", "s_noise")}
    return ", ".join([title, *(f"{name} {_short(value)}" for name, value in given.items())])


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
