"""Chains of samples: a model with its options, checked, as arguments of :func:`sample_chain`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels import Condition, Guide, Network, draw_prior
from .errors import UserError, check_choice, check_number, check_seed
from .given import labels_of, points
from .models import Perceptron, check_prediction, check_weights
from .own_chains import OwnNetworks, function_of
from .own_networks import check_own_network, is_own, num_classes, point_dim
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
            inputs. Or a network of your own, see :mod:`.own_networks`, of which a copy in
            ``eval()`` mode is taken.
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
        classifier: classifier of noisy points, (point, timestep feature), or a network of your own.
            It guides towards the label; a conditional model then takes no class.
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

    model: nn.Module
    schedule: Schedule
    seed: int = 0
    method: str = "ddpm"
    variance: str | None = None
    eta: float | None = None
    num_steps: int | None = None
    classifier: nn.Module | None = None
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

    denoiser: Network | OwnNetworks
    table: Tensor  # float32 [R, 4 or 7], with a row for each evaluation of the denoiser
    features: Tensor  # float32 [R, F]; [R, 1 + F] with t before them for own networks
    guide: Guide | None
    condition: Condition | None
    seed: int
    x_T: Tensor | None  # float32 [n, d], on the CPU
    init: Tensor | None  # float32 [n, d], on the CPU
    levels: tuple[float, float]  # signal and noise where the chain starts
    rows_per_step: int  # of the table

    @property
    def kind(self) -> tuple:
        """Equal for chains that can run in the same launch; one of own networks runs alone."""
        if isinstance(self.denoiser, OwnNetworks):
            return ("own", id(self.denoiser))
        guide, condition = self.guide, self.condition
        return (
            self.rows_per_step,
            self.table.shape[-1],
            self.denoiser.shape,
            self.features.shape[-1],
            guide and guide.classifier.shape,
            condition and (condition.class_features.shape, condition.free),
        )

    @property
    def dim(self) -> int:
        """Dimension of the points."""
        if isinstance(self.denoiser, OwnNetworks):
            return self.denoiser.dim
        return self.denoiser.shape.widths[-1]

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
            self.dim,
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
    scale = scale_in_force(config.scale, guided=config.classifier is not None)
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
    features = _features(schedule, t)
    denoiser: Network | OwnNetworks
    guide = condition = None
    if is_own(config.model) or is_own(config.classifier):
        denoiser = _own_networks(config, n, t, device, scale)
        dim, features = denoiser.dim, torch.cat((t[:, None], features), dim=1)
    else:
        condition = _condition(config, n, device, scale)
        denoiser = _denoiser(config, device)
        dim = denoiser.shape.widths[-1]
        guide = _guide(config, n, dim, device)
    return Chain(
        denoiser,
        table.float().to(device),
        features.float().to(device),
        guide,
        condition,
        check_seed(config.seed),
        None if config.x_T is None else points("x_T", config.x_T, (n, dim)),
        None if config.init is None else points("init", config.init, (n, dim)),
        (schedule.signal[first].item(), schedule.noise[first].item()),
        SOLVERS[config.method].rows_per_step if config.method in SOLVERS else 1,
    )


def scale_in_force(scale: Any, *, guided: bool) -> Any:
    """Returns the guidance scale, or its default: 1 with a classifier, 0 without one."""
    return float(guided) if scale is None else scale


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


def _denoiser(config: SampleConfig, device: torch.device) -> Network:
    denoiser = _network("model", config.model, device)
    _check_inputs(config, denoiser)
    return denoiser


def _check_inputs(config: SampleConfig, denoiser: Network) -> None:
    """Raises :class:`UserError` unless a perceptron takes the points, t and class of a chain."""
    class_features = _class_features(config.model)
    width = denoiser.shape.widths[-1] + config.schedule.time_features.shape[-1]
    width += 0 if class_features is None else class_features.shape[-1]
    if denoiser.shape.widths[0] != width:
        raise UserError(
            f"model must have {width} inputs, for the point, t and the class, "
            f"got {denoiser.shape.widths[0]}; is it a denoiser for this schedule?"
        )


def _guide(config: SampleConfig, n: int, dim: int, device: torch.device) -> Guide | None:
    if not _is_guided(config):
        return None
    classifier = _network("classifier", config.classifier, device)
    labels = labels_of(config.label, n, _classes(config, classifier, dim), device)
    return Guide(classifier, labels[None])


def _is_guided(config: SampleConfig) -> bool:
    """Returns True with a classifier; raises :class:`UserError` if its label is missing."""
    if config.classifier is None:
        if config.label is not None and _no_class(config.model) is None:
            raise UserError("classifier and label must be given together, or a conditional model")
        return False
    if config.label is None:
        raise UserError("classifier and label must be given together")
    return True


def _classes(config: SampleConfig, classifier: Network, dim: int) -> int:
    """Returns the number of classes of a perceptron; checks that it takes the points and t."""
    width = dim + config.schedule.time_features.shape[-1]
    if classifier.shape.widths[0] != width:
        raise UserError(
            f"classifier must have {width} inputs, for the point and t, "
            f"got {classifier.shape.widths[0]}"
        )
    return classifier.shape.widths[-1]


def _condition(
    config: SampleConfig, n: int, device: torch.device, scale: GuidanceScale
) -> Condition | None:
    class_features = _class_features(config.model)
    if class_features is None:
        return None
    labels, guided = _seen_labels(config, len(class_features) - 1, n, device, scale)
    return Condition(class_features.detach().float().to(device)[None], labels[None], guided)


def _seen_labels(
    config: SampleConfig, no_class: int, n: int, device: torch.device, scale: GuidanceScale
) -> tuple[Tensor, bool]:
    """Returns the label [n] that a conditional model sees; True with classifier-free guidance."""
    label: int | Tensor = no_class
    guided = False
    if config.classifier is None and config.label is not None:
        label, guided = config.label, callable(scale) or bool(scale != 0)
    return labels_of(label, n, no_class + 1, device), guided


def _class_features(model: nn.Module) -> Tensor | None:
    """Returns the class features of a conditional model, [C + 1, E]; None for any other model."""
    return getattr(model, "class_features", None)


def _no_class(model: nn.Module) -> int | None:
    """Returns the label that stands for no class, which is C; None for a model without classes."""
    if is_own(model):
        return num_classes(model)
    class_features = _class_features(model)
    return None if class_features is None else len(class_features) - 1


def _own_networks(
    config: SampleConfig, n: int, t: Tensor, device: torch.device, scale: GuidanceScale
) -> OwnNetworks:
    """Returns the networks of a chain of which one at least is a user's own, checked."""
    model, whole, no_class = config.model, bool((t == t.floor()).all()), _no_class(config.model)
    fractions = (False,) if whole else (False, True)
    if is_own(model):
        dim = point_dim("model", model)
        for fraction in fractions:
            check_own_network(
                "model", model, config.schedule, dim, dim, no_class, fractions=fraction
            )
    else:
        network = _network("model", model, device)
        dim = network.shape.widths[-1]
        _check_inputs(config, network)
    labels, free = None, False
    if no_class is not None:
        labels, free = _seen_labels(config, no_class, n, device, scale)
    classifier = guide_labels = None
    if _is_guided(config):
        given = config.classifier
        assert given is not None
        if is_own(given):
            for fraction in fractions:
                classes = check_own_network(
                    "classifier", given, config.schedule, dim, None, fractions=fraction
                )
        else:
            classes = _classes(config, _network("classifier", given, device), dim)
        guide_labels = labels_of(config.label, n, classes, device)
        classifier = function_of("classifier", given, device, whole=whole)
    denoiser = function_of("model", model, device, whole=whole)
    return OwnNetworks(dim, denoiser, labels, no_class or 0, free, classifier, guide_labels)


def _network(name: str, model: nn.Module | None, device: torch.device) -> Network:
    if not isinstance(model, Perceptron):
        raise UserError(
            f"{name} must be an MLP, ConditionalMLP or BlockMLP of this package, "
            f"got {type(model).__name__}"
        )
    parameters, shape = model.network()
    check_weights(name, parameters)
    return Network(parameters.float().to(device), shape)
