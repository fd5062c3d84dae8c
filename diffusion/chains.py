"""Chains of samples: a model with its options, checked, as arguments of :func:`sample_chain`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import Condition, Guide, Network, draw_prior
from .errors import UserError, check_choice, check_number, check_seed
from .models import Perceptron, check_prediction, check_weights
from .reverse_steps import STEPS, GuidanceScale, timesteps
from .schedules import Schedule, check_schedule
from .solvers import SOLVERS, Churn, chain_table
from .spacings import given_timesteps

# The methods of sampling, each with its title in figures and reports.
METHODS = {name: entry.title for name, entry in (STEPS | SOLVERS).items()}


@dataclass(frozen=True)
class SampleConfig:
    """Model, schedule and options of one chain of samples.

    Args:
        model: denoiser of (point, timestep feature). A conditional one has ``class_features``,
            float [C + 1, E]; the row of the label, or the last one for no class, follows its other
            inputs.
        schedule: the forward process that it was trained with, and what it predicts.
        seed: seed of the noise.
        method: ``ddpm``; ``ddim``, which is deterministic unless ``eta`` says otherwise; or a
            solver for 10 to 50 steps: ``euler``, ``dpm++2m`` and ``heun``, which are deterministic,
            or ``edm``, Heun's method with noise. Under guidance by a classifier, the noise of DDPM
            corrects the errors that add up along a deterministic chain.
        variance: noise of DDPM, see :func:`reverse_table`; None is ``posterior``.
        eta: noise of DDIM, from 0 to 1; None is 0.
        s_churn, s_tmin, s_tmax, s_noise: noise of EDM's sampler, see :class:`.Churn`; None are 5,
            0, infinity and 1.
        num_steps: number of the T timesteps that are visited; None for all.
        spacing: which timesteps they are: ``linspace``, ``karras``, ``leading`` or ``trailing``.
            None leaves out those where x_t is noise in all but name, see
            :func:`.reverse_steps.timesteps`.
        timesteps: the timesteps themselves, decreasing, int64 [S] or numbers, in place of
            ``num_steps``, ``spacing`` and ``start``.
        classifier: classifier of noisy points, (point, timestep feature). It guides towards the
            label; a conditional model then takes no class.
        label: class of the samples, a number or int64 [n]; for a conditional model both C and None
            stand for no class.
        scale: guidance scale, a number or a function of t. With a classifier, 1 samples
            p(x | label) as the classifier sees it; None means 1. Without, the guidance is
            classifier-free, and 0 samples p(x | label) as the conditional model sees it; None
            means 0.
        x_T: start of the chain, [n, d]; None draws it.
        init: clean points [n, d] that the samples shall resemble (SDEdit, Meng et al. 2022): the
            chain starts from them with the noise of timestep ``start``. The larger it is, the less
            of them is left.
        start: first timestep of the chain, from 0 to T - 1, with ``init`` or ``x_T``; the first of
            ``timesteps`` if those are given.
    """

    model: Perceptron
    schedule: Schedule
    seed: int = 0
    method: str = "ddpm"
    variance: str | None = None
    eta: float | None = None
    num_steps: int | None = None
    classifier: Perceptron | None = None
    label: int | Tensor | None = None
    scale: GuidanceScale | None = None
    x_T: Tensor | None = None
    init: Tensor | None = None
    start: int | None = None
    spacing: str | None = None
    timesteps: Sequence[int] | Tensor | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None


class Chain(NamedTuple):
    """The arguments of :func:`sample_chain` for one model, on the device and checked."""

    denoiser: Network
    table: Tensor  # float32 [R, 4 or 7], with a row for each evaluation of the denoiser
    features: Tensor  # float32 [R, F]
    guide: Guide | None
    condition: Condition | None
    seed: int
    x_T: Tensor | None  # float32 [n, d], on the CPU
    init: Tensor | None  # float32 [n, d], on the CPU
    levels: tuple[float, float]  # signal and noise where the chain starts
    rows_per_step: int  # of the table

    @property
    def kind(self) -> tuple:
        """Equal for chains that can run in the same launch."""
        guide, condition = self.guide, self.condition
        return (
            self.rows_per_step,
            self.table.shape[-1],
            self.denoiser.shape,
            self.features.shape[-1],
            guide and guide.classifier.shape,
            condition and (condition.class_features.shape, condition.free),
        )

    def first_points(self, rows: slice, first_row: int, device: torch.device) -> Tensor:
        """Returns the points [1, B, d] that some rows start from.

        Args:
            rows: the rows.
            first_row: global number of row 0.
            device: device of the result.
        """
        if self.x_T is not None:
            return self.x_T[None, rows].to(device)
        noise = draw_prior(
            rows.stop - rows.start,
            self.denoiser.shape.widths[-1],
            seed=self.seed,
            first_row=first_row + rows.start,
            device=device,
        )
        if self.init is None:
            return noise
        clean = self.init[None, rows].to(device)
        return self.levels[0] * clean + self.levels[1] * noise


def prepare(config: SampleConfig, n: int, device: torch.device) -> Chain:
    """Checks the options of one model and puts its tensors on the device.

    Args:
        config: model, schedule and options.
        n: number of samples.
        device: the device that the chain runs on.

    Raises:
        ValueError: an option is of a wrong type, out of range or without effect.
    """
    _check_options(config)
    check_prediction(config.model, config.schedule)
    schedule, steps = config.schedule, _steps(config)
    first = int(steps[0])
    scale = (0.0 if config.classifier is None else 1.0) if config.scale is None else config.scale
    table, t = chain_table(
        schedule,
        steps,
        method=config.method,
        variance="posterior" if config.variance is None else config.variance,
        eta=0.0 if config.eta is None else config.eta,
        churn=_churn(config),
        scale=scale,
        classifier_free=config.classifier is None,
    )
    condition = _condition(config, n, device, scale)
    denoiser = _denoiser(config, condition, device)
    dim = denoiser.shape.widths[-1]
    return Chain(
        denoiser,
        table.float().to(device),
        _features(schedule, t).float().to(device),
        _guide(config, n, dim, device),
        condition,
        check_seed(config.seed),
        None if config.x_T is None else points("x_T", config.x_T, (n, dim)),
        None if config.init is None else points("init", config.init, (n, dim)),
        (schedule.signal[first].item(), schedule.noise[first].item()),
        SOLVERS[config.method].rows_per_step if config.method in SOLVERS else 1,
    )


def _check_options(config: SampleConfig) -> None:
    """Raises :class:`UserError` for an option of a wrong type, or one that does nothing."""
    check_schedule(config.schedule)
    check_choice("method", config.method, METHODS)
    of_method = {"variance": "ddpm", "eta": "ddim"} | dict.fromkeys(Churn._fields, "edm")
    for name, method in of_method.items():
        given = getattr(config, name)
        if given is not None and config.method != method:
            raise UserError(
                f"{name} must be left out unless method is {method}, "
                f"got {given!r} with {config.method}"
            )
    scale = config.scale
    if scale is not None and not callable(scale):
        check_number("scale", scale)
    if scale is not None and config.label is None:
        raise UserError(f"scale must be left out without a label, got {scale!r}")
    if config.init is not None and config.x_T is not None:
        raise UserError("init and x_T exclude each other: both are where the chain starts")
    if config.timesteps is not None:
        for name in ("num_steps", "spacing", "start"):
            given = getattr(config, name)
            if given is not None:
                raise UserError(f"{name} must be left out with timesteps, got {given!r}")
    elif config.init is not None and config.start is None:
        raise UserError("init needs start, the timestep whose noise is added to the points")
    if config.start is not None and config.init is None and config.x_T is None:
        raise UserError("start needs init or x_T, the points to start from")


def _steps(config: SampleConfig) -> Tensor:
    """Returns the timesteps that the chain visits, int64 [S]."""
    if config.timesteps is not None:
        return given_timesteps(config.schedule, config.timesteps)
    return timesteps(
        config.schedule,
        config.num_steps,
        start=config.start,
        method=config.method,
        spacing=config.spacing,
    )


def _churn(config: SampleConfig) -> Churn:
    """Returns the noise of EDM's sampler."""
    given = {name: getattr(config, name) for name in Churn._fields}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if not (name == "s_tmax" and isinstance(value, float) and value == math.inf):
            check_number(name, value, 0)
    churn = Churn(**{name: float(value) for name, value in given.items()})
    if churn.s_tmin > churn.s_tmax:
        raise UserError(f"s_tmax must be at least s_tmin, {churn.s_tmin}, got {churn.s_tmax}")
    return churn


def _features(schedule: Schedule, t: Tensor) -> Tensor:
    """Returns what networks see of timesteps [R], which may be fractions: float64 [R, F]."""
    whole = (t == t.floor())[:, None]
    return torch.where(whole, schedule.time_features[t.long()], schedule.features_of(t))


def _denoiser(config: SampleConfig, condition: Condition | None, device: torch.device) -> Network:
    denoiser = _network("model", config.model, device)
    width = denoiser.shape.widths[-1] + config.schedule.time_features.shape[-1]
    width += 0 if condition is None else condition.class_features.shape[-1]
    if denoiser.shape.widths[0] != width:
        raise UserError(
            f"model must have {width} inputs, for the point, t and the class, "
            f"got {denoiser.shape.widths[0]}; is it a denoiser for this schedule?"
        )
    return denoiser


def _guide(config: SampleConfig, n: int, dim: int, device: torch.device) -> Guide | None:
    if config.classifier is None:
        if config.label is not None and _class_features(config.model) is None:
            raise UserError("classifier and label must be given together, or a conditional model")
        return None
    if config.label is None:
        raise UserError("classifier and label must be given together")
    classifier = _network("classifier", config.classifier, device)
    width = dim + config.schedule.time_features.shape[-1]
    if classifier.shape.widths[0] != width:
        raise UserError(
            f"classifier must have {width} inputs, for the point and t, "
            f"got {classifier.shape.widths[0]}"
        )
    labels = labels_of(config.label, n, classifier.shape.widths[-1], device)
    return Guide(classifier, labels[None])


def _condition(
    config: SampleConfig, n: int, device: torch.device, scale: GuidanceScale
) -> Condition | None:
    class_features = _class_features(config.model)
    if class_features is None:
        return None
    no_class = len(class_features) - 1  # the label that stands for it
    label: int | Tensor = no_class
    guided = False
    if config.classifier is None and config.label is not None:
        label, guided = config.label, callable(scale) or bool(scale != 0)
    labels = labels_of(label, n, no_class + 1, device)
    return Condition(class_features.detach().float().to(device)[None], labels[None], guided)


def _class_features(model: Perceptron) -> Tensor | None:
    """Returns the class features of a conditional model, [C + 1, E]; None for any other model."""
    return getattr(model, "class_features", None)


def labels_of(label: Any, n: int, classes: int, device: torch.device) -> Tensor:
    """Returns the label of each of n points, int64 [n].

    Args:
        label: a number, or one for each point.
        n: number of points.
        classes: number of allowed labels.
        device: device of the result.

    Raises:
        ValueError: a label is not a whole number, of no class, or there are not n.
    """
    allowed = f"label must be a whole number or int64 [{n}]"
    try:
        labels = torch.as_tensor(label, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{allowed}, got {label!r}") from error
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.shape not in ((), (n,)):
        raise UserError(f"{allowed}, got {labels.dtype} {list(labels.shape)}")
    unknown = labels[(labels < 0) | (labels >= classes)]
    if len(unknown):
        raise UserError(f"label must be from 0 to {classes - 1}, got {unknown[0].item()}")
    return labels.long().expand(n)


def points(
    name: str,
    given: Any,
    shape: tuple[int | None, int | None],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns points [n, d] where they are.

    Args:
        name: name of the argument.
        given: a tensor, an array or lists of numbers.
        shape: n and d; None allows any.
        dtype: dtype of the result.

    Raises:
        ValueError: they are no finite numbers, or of another shape.
    """
    wanted = f"[{', '.join(str(size or symbol) for size, symbol in zip(shape, 'nd', strict=True))}]"
    try:
        x = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} must be {wanted} numbers, got {type(given).__name__}") from error
    if x.dim() != 2 or any(
        size not in (None, had) for size, had in zip(shape, x.shape, strict=True)
    ):
        raise UserError(f"{name} must be {wanted}, got {list(x.shape)}")
    if x.is_complex() or x.dtype == torch.bool:
        raise UserError(f"{name} must be real numbers, got {x.dtype}")
    x = x.detach().to_dense().to(dtype)
    if not x.isfinite().all():
        rows = (~x.isfinite()).any(dim=1).sum().item()
        raise UserError(f"{name} must be finite, got NaN or infinity in {rows} of {len(x)} rows")
    return x


def check_finite(name: str, x: Tensor) -> None:
    """Raises :class:`UserError` if one of many results [n, ...] is not finite."""
    bad = (~x.isfinite()).flatten(1).any(dim=1).sum().item()  # waits for the device
    if bad:
        raise UserError(
            f"{name} are not finite: {bad} of {len(x)} rows hold NaN or infinity; the network's "
            "values are too large, as of one whose training diverged"
        )


def _network(name: str, model: Perceptron, device: torch.device) -> Network:
    if not isinstance(model, Perceptron):
        raise UserError(
            f"{name} must be an MLP, ConditionalMLP or BlockMLP of this package, "
            f"got {type(model).__name__}"
        )
    parameters, shape = model.network()
    check_weights(name, parameters)
    return Network(parameters.float().to(device), shape)
