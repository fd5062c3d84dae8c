"""Sampling: the reverse process of one model or of many, guided or not."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels import Condition, Guide, Network, sample_chain
from ..kernels.default_state import in_default_state
from ..kernels.reverse_step.reference import X
from .chains import METHODS, Chain, SampleConfig, prepare
from .device import choose_device
from .errors import UserError, check_integer
from .given import check_finite
from .own_chains import OwnNetworks
from .progress import check_progress, reported
from .schedules import Schedule

__all__ = ["METHODS", "SampleConfig", "Samples", "sample", "sample_many"]


class Samples(NamedTuple):
    """Samples, and the trajectory that led to them."""

    x: Tensor  # [n, d]
    trajectory: Tensor  # [K, n, d], from noise to x; K = 0 if none was asked for


def sample(
    model: nn.Module,
    schedule: Schedule,
    n: int,
    *,
    batch_size: int = 100_000,
    first_row: int = 0,
    keep_every: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Callable[[int], None] = False,
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
        progress: True shows a bar on stderr; a function is called after each batch with the number
            of samples done so far.
        options: the other fields of :class:`SampleConfig`: seed, method, variance, eta, num_steps,
            classifier, label, scale, x_T, init, start, spacing, timesteps, s_churn, s_tmin, s_tmax
            and s_noise.

    Raises:
        ValueError: an argument is of a wrong type, out of range or without effect; or the network's
            weights, or the samples, are not finite.
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


@in_default_state
def sample_many(
    configs: Sequence[SampleConfig],
    n: int,
    *,
    batch_size: int = 100_000,
    first_row: int = 0,
    keep_every: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Callable[[int], None] = False,
) -> list[Samples]:
    """Draws n points from each of many models, those of one shape in the same launches.

    Each gets the samples that :func:`sample` would draw from it alone. A chain that is shorter than
    others that run with it rests at its end, in steps that change nothing; on a CPU, where those
    take as long as any, only chains of one length run together. Methods run together if they
    evaluate the denoiser equally often in a step, and all or none of them are solvers.

    Args:
        configs: models, schedules, seeds and options, which may all differ.
        n, first_row, keep_every, device: see :func:`sample`.
        batch_size: number of rows of all models together that are sampled at once.
        progress: see :func:`sample`; the samples are those of all models.

    Raises:
        ValueError: see :func:`sample`.
    """
    for name, count, least in (
        ("n", n, 1), ("batch_size", batch_size, 1), ("first_row", first_row, 0),
        ("keep_every", keep_every, 0),
    ):  # fmt: skip
        check_integer(name, count, least)
    n, batch_size, first_row, keep_every = map(int, (n, batch_size, first_row, keep_every))
    check_progress(progress)
    if not isinstance(configs, Sequence):
        raise UserError(f"configs must be SampleConfigs, got {type(configs).__name__}")
    device = choose_device(device)
    groups = defaultdict(list)
    for number, config in enumerate(configs):
        if not isinstance(config, SampleConfig):
            raise UserError(f"configs must be SampleConfigs, got {type(config).__name__}")
        chain = prepare(config, n, device)
        length = None if _resting_is_cheap(device) else len(chain.table)
        groups[chain.kind, length].append((number, chain))
    found: dict[int, Samples] = {}
    done = 0
    with reported(progress, "sample", n * len(configs), "samples") as report:
        for group in groups.values():
            numbers, chains = zip(*group, strict=True)
            parts, rows = [], max(1, batch_size // len(chains))
            for start in range(0, n, rows):
                stop = min(start + rows, n)
                parts.append(_run(chains, slice(start, stop), first_row, keep_every))
                done += (stop - start) * len(chains)
                report(done)
            found |= zip(numbers, _samples_of(parts, chains, keep_every), strict=True)
    return [found[number] for number in range(len(found))]


def _resting_is_cheap(device: torch.device) -> bool:
    """Returns False where a chain that has ended takes as long as one that goes on."""
    return device.type == "cuda"


def _run(
    chains: Sequence[Chain], rows: slice, first_row: int, keep_every: int
) -> tuple[Tensor, Tensor]:
    """Runs some rows of chains of one kind; returns samples [M, B, d] and path [K, M, B, d]."""
    if isinstance(chains[0].denoiser, OwnNetworks):
        return _run_own(chains[0], chains[0].denoiser, rows, first_row, keep_every)
    networks = [chain.denoiser for chain in chains if isinstance(chain.denoiser, Network)]
    denoiser = _stack_networks(networks)
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
        torch.cat([chain.first_points(rows, first_row, device) for chain in chains]),
        torch.stack([_rest_at_end(chain.table, longest) for chain in chains]),
        torch.stack([_repeat_last(chain.features, longest) for chain in chains]),
        seed=torch.tensor([chain.seed for chain in chains], device=device),
        guide=guide,
        condition=condition,
        first_row=first_row + rows.start,
        keep_every=keep_every * chains[0].rows_per_step,
    )


def _run_own(
    chain: Chain, networks: OwnNetworks, rows: slice, first_row: int, keep_every: int
) -> tuple[Tensor, Tensor]:
    """Runs some rows of a chain in which a network is a user's own, see :func:`_run`."""
    device = chain.table.device
    return networks.run(
        chain.first_points(rows, first_row, device),
        chain.table[None],
        chain.features[None],
        rows,
        seed=torch.tensor([chain.seed], device=device),
        first_row=first_row + rows.start,
        keep_every=keep_every * chain.rows_per_step,
    )


def _rest_at_end(table: Tensor, length: int) -> Tensor:
    """Returns the table with further rows, up to a length, that leave x as it is."""
    rest = table.new_zeros(length - len(table), table.shape[1])
    rest[:, X] = 1
    return torch.cat((table, rest))


def _repeat_last(features: Tensor, length: int) -> Tensor:
    return torch.cat((features, features[-1:].expand(length - len(features), -1)))


def _samples_of(
    parts: list[tuple[Tensor, Tensor]], chains: Sequence[Chain], keep_every: int
) -> list[Samples]:
    """Returns the samples of each chain, from those of batches of rows."""
    x = torch.cat([samples for samples, _ in parts], dim=1)
    trajectory = torch.cat([kept for _, kept in parts], dim=2)
    check_finite("samples", x.flatten(0, 1))
    found = []
    for model, chain in enumerate(chains):
        kept = 1 + -(-len(chain.table) // (keep_every * chain.rows_per_step)) if keep_every else 0
        found.append(Samples(x[model], trajectory[:kept, model]))
    return found


def _stack_networks(networks: Sequence[Network]) -> Network:
    return Network(torch.cat([each.parameters for each in networks]), networks[0].shape)
