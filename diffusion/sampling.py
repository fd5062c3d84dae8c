"""Sampling: the reverse process of one model or of many, guided or not."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import Condition, Guide, Network, draw_prior, sample_chain
from ..kernels.reverse_step.reference import GUIDE, X
from .device import choose_device
from .errors import UserError, check_at_least, check_choice
from .models import Perceptron
from .reverse_steps import STEPS, GuidanceScale, reverse_table, timesteps
from .schedules import Schedule
from .solvers import SOLVERS, solver_timesteps

# The methods of sampling, each with its title in figures and reports.
METHODS = {name: entry.title for name, entry in (STEPS | SOLVERS).items()}


class Samples(NamedTuple):
    """Samples, and the trajectory that led to them."""

    x: Tensor  # [n, d]
    trajectory: Tensor  # [K, n, d], from noise to x; K = 0 if none was asked for


@dataclass(frozen=True)
class SampleConfig:
    """Model, schedule and options of one chain of samples.

    Args:
        model: denoiser that predicts the noise of (point, timestep feature). A conditional one has
            ``class_features``, float [C + 1, E]; the row of the label, or the last one for no
            class, follows its other inputs.
        schedule: the forward process that it was trained with.
        seed: seed of the noise.
        method: ``ddpm``; ``ddim``, which is deterministic unless ``eta`` says otherwise; or
            ``dpm++2m`` and ``heun``, deterministic solvers for 10 to 50 steps. Under guidance by a
            classifier, the noise of DDPM corrects the errors that add up along a deterministic
            chain.
        variance, eta: see :func:`reverse_table`.
        num_steps: number of the T timesteps that are visited; None for all.
        classifier: classifier of noisy points, (point, timestep feature). It guides towards the
            label; a conditional model then takes no class.
        label: class of the samples, a number or int64 [n]; for a conditional model both C and None
            stand for no class.
        scale: guidance scale, a number or a function of t. With a classifier, 1 samples
            p(x | label) as the classifier sees it; None means 1. Without, the guidance is
            classifier-free, and 0 samples p(x | label) as the conditional model sees it; None
            means 0.
        x_T: start of the chain, [n, d]; None draws it.
    """

    model: Perceptron
    schedule: Schedule
    seed: int = 0
    method: str = "ddpm"
    variance: str = "posterior"
    eta: float = 0.0
    num_steps: int | None = None
    classifier: Perceptron | None = None
    label: int | Tensor | None = None
    scale: GuidanceScale | None = None
    x_T: Tensor | None = None


def sample(
    model: Perceptron,
    schedule: Schedule,
    n: int,
    *,
    batch_size: int = 100_000,
    first_row: int = 0,
    keep_every: int = 0,
    device: str | torch.device | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Samples:
    """Draws n points from a trained denoiser, of one class each where a label is given.

    A sample depends on the seed and its own row number alone, not on the batch size.

    Args:
        model, schedule: see :class:`SampleConfig`.
        n: number of samples.
        batch_size: number of rows sampled at once, which bounds the memory.
        first_row: number of the first row; ranks that share the work each take a range of rows.
        keep_every: number of steps between two points of the trajectory; 0 keeps none.
        device: None takes CUDA where there is one.
        progress: called with the number of samples done so far after each batch.
        options: the other fields of :class:`SampleConfig`: seed, method, variance, eta, num_steps,
            classifier, label, scale and x_T.

    Raises:
        ValueError: a count is not positive, a name is unknown, or a label is of no class.
    """
    config = SampleConfig(model, schedule, **options)
    return sample_many(
        [config],
        n,
        batch_size=batch_size,
        first_row=first_row,
        keep_every=keep_every,
        device=device,
        progress=progress,
    )[0]


def sample_many(
    configs: Sequence[SampleConfig],
    n: int,
    *,
    batch_size: int = 100_000,
    first_row: int = 0,
    keep_every: int = 0,
    device: str | torch.device | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Samples]:
    """Draws n points from each of many models, those of one shape in the same launches.

    Each gets the samples that :func:`sample` would draw from it alone. A chain that is shorter than
    others that run with it rests at its end, in steps that change nothing. Methods run together if
    they evaluate the denoiser equally often in a step, and all or none of them are solvers.

    Args:
        configs: models, schedules, seeds and options, which may all differ.
        n, first_row, keep_every, device: see :func:`sample`.
        batch_size: number of rows of all models together that are sampled at once.
        progress: called with the number of samples of all models done so far.

    Raises:
        ValueError: see :func:`sample`.
    """
    check_at_least("n", n, 1)
    check_at_least("batch_size", batch_size, 1)
    check_at_least("first_row", first_row, 0)
    check_at_least("keep_every", keep_every, 0)
    device = choose_device(device)
    groups = defaultdict(list)
    for number, config in enumerate(configs):
        chain = _prepare(config, n, device)
        groups[chain.kind].append((number, chain))
    found: dict[int, Samples] = {}
    done = 0
    for group in groups.values():
        numbers, chains = zip(*group, strict=True)
        parts, rows = [], max(1, batch_size // len(chains))
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            parts.append(_run(chains, slice(start, stop), first_row, keep_every))
            done += (stop - start) * len(chains)
            if progress is not None:
                progress(done)
        found |= zip(numbers, _samples_of(parts, chains, keep_every), strict=True)
    return [found[number] for number in range(len(found))]


class _Chain(NamedTuple):
    """The arguments of :func:`sample_chain` for one model, on the device and checked."""

    denoiser: Network
    table: Tensor  # float32 [R, 4 or 7], with a row for each evaluation of the denoiser
    features: Tensor  # float32 [R, F]
    guide: Guide | None
    condition: Condition | None
    seed: int
    x_T: Tensor | None  # float32 [n, d]
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


def _prepare(config: SampleConfig, n: int, device: torch.device) -> _Chain:
    """Checks the options of one model and puts its tensors on the device."""
    check_choice("method", config.method, METHODS)
    schedule, solver = config.schedule, SOLVERS.get(config.method)
    if solver:
        steps = solver_timesteps(schedule, config.num_steps)
    else:
        steps = timesteps(schedule, config.num_steps, method=config.method)
    scale = (0.0 if config.classifier is None else 1.0) if config.scale is None else config.scale
    table = reverse_table(
        schedule,
        steps,
        method="ddim" if solver else config.method,
        variance=config.variance,
        eta=config.eta,
        scale=scale,
        classifier_free=config.classifier is None,
    )
    if solver:
        table, place = solver.table(schedule, steps, table[:, GUIDE])
        steps = steps[place]
    guide, condition = _guide(config, n, device), _condition(config, n, device, scale)
    denoiser = _network(config.model, device)
    width = denoiser.shape.widths[-1] + schedule.time_features.shape[-1]
    width += 0 if condition is None else condition.class_features.shape[-1]
    if denoiser.shape.widths[0] != width:
        raise UserError(
            f"model must have {width} inputs, for the point, t and the class, "
            f"got {denoiser.shape.widths[0]}; is it a denoiser for this schedule?"
        )
    x_T = None if config.x_T is None else torch.as_tensor(config.x_T, dtype=torch.float32)
    if x_T is not None and x_T.shape != (n, denoiser.shape.widths[-1]):
        raise UserError(f"x_T must be {[n, denoiser.shape.widths[-1]]}, got {list(x_T.shape)}")
    return _Chain(
        denoiser,
        table.float().to(device),
        schedule.time_features[steps].float().to(device),
        guide,
        condition,
        config.seed,
        x_T,
        solver.rows_per_step if solver else 1,
    )


def _guide(config: SampleConfig, n: int, device: torch.device) -> Guide | None:
    if config.classifier is None:
        if config.label is not None and _class_features(config.model) is None:
            raise UserError("classifier and label must be given together, or a conditional model")
        return None
    if config.label is None:
        raise UserError("classifier and label must be given together")
    classifier = _network(config.classifier, device)
    return Guide(classifier, _labels(config.label, n, classifier.shape.widths[-1], device))


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
        label, guided = config.label, callable(scale) or scale != 0
    labels = _labels(label, n, no_class + 1, device)
    return Condition(class_features.detach().float().to(device)[None], labels, guided)


def _class_features(model: Perceptron) -> Tensor | None:
    """Returns the class features of a conditional model, [C + 1, E]; None for any other model."""
    return getattr(model, "class_features", None)


def _labels(label: int | Tensor, n: int, classes: int, device: torch.device) -> Tensor:
    """Returns the label of each sample, int64 [1, n].

    Raises:
        ValueError: a label is not a whole number, of no class, or there are not n.
    """
    labels = torch.as_tensor(label, device=device)
    if labels.is_floating_point() or labels.shape not in ((), (n,)):
        raise UserError(
            f"label must be a whole number or int64 [{n}], got {labels.dtype} {list(labels.shape)}"
        )
    unknown = labels[(labels < 0) | (labels >= classes)]
    if len(unknown):
        raise UserError(f"label must be from 0 to {classes - 1}, got {unknown[0].item()}")
    return labels.long().expand(n)[None]


def _run(
    chains: Sequence[_Chain], rows: slice, first_row: int, keep_every: int
) -> tuple[Tensor, Tensor]:
    """Runs some rows of chains of one kind; returns samples [M, B, d] and path [K, M, B, d]."""
    denoiser = _stack_networks([chain.denoiser for chain in chains])
    guide = condition = None  # of one kind: all have them or none
    guides = [chain.guide for chain in chains if chain.guide is not None]
    if guides:
        guide = Guide(
            _stack_networks([each.classifier for each in guides]),
            torch.cat([each.labels[:, rows] for each in guides]),
        )
    conditions = [chain.condition for chain in chains if chain.condition is not None]
    if conditions:
        condition = Condition(
            torch.cat([each.class_features for each in conditions]),
            torch.cat([each.labels[:, rows] for each in conditions]),
            conditions[0].free,
        )
    device = denoiser.parameters.device
    longest = max(len(chain.table) for chain in chains)
    return sample_chain(
        denoiser,
        torch.cat([_start(chain, rows, first_row, device) for chain in chains]),
        torch.stack([_rest_at_end(chain.table, longest) for chain in chains]),
        torch.stack([_repeat_last(chain.features, longest) for chain in chains]),
        seed=torch.tensor([chain.seed for chain in chains], device=device),
        guide=guide,
        condition=condition,
        first_row=first_row + rows.start,
        keep_every=keep_every * chains[0].rows_per_step,
    )


def _start(chain: _Chain, rows: slice, first_row: int, device: torch.device) -> Tensor:
    """Returns x_T of some rows, [1, B, d]."""
    if chain.x_T is not None:
        return chain.x_T[None, rows].to(device)
    return draw_prior(
        rows.stop - rows.start,
        chain.denoiser.shape.widths[-1],
        seed=chain.seed,
        first_row=first_row + rows.start,
        device=device,
    )


def _rest_at_end(table: Tensor, length: int) -> Tensor:
    """Returns the table with further rows, up to a length, that leave x as it is."""
    rest = table.new_zeros(length - len(table), table.shape[1])
    rest[:, X] = 1
    return torch.cat((table, rest))


def _repeat_last(features: Tensor, length: int) -> Tensor:
    return torch.cat((features, features[-1:].expand(length - len(features), -1)))


def _samples_of(
    parts: list[tuple[Tensor, Tensor]], chains: Sequence[_Chain], keep_every: int
) -> list[Samples]:
    """Returns the samples of each chain, from those of batches of rows."""
    x = torch.cat([samples for samples, _ in parts], dim=1)
    trajectory = torch.cat([kept for _, kept in parts], dim=2)
    found = []
    for model, chain in enumerate(chains):
        kept = 1 + -(-len(chain.table) // (keep_every * chain.rows_per_step)) if keep_every else 0
        found.append(Samples(x[model], trajectory[:kept, model]))
    return found


def _stack_networks(networks: Sequence[Network]) -> Network:
    return Network(torch.cat([each.parameters for each in networks]), networks[0].shape)


def _network(model: Perceptron, device: torch.device) -> Network:
    if not isinstance(model, Perceptron):
        raise UserError(
            "model must be an MLP, ConditionalMLP or BlockMLP of this package, "
            f"got {type(model).__name__}"
        )
    parameters, shape = model.network()
    return Network(parameters.float().to(device), shape)
