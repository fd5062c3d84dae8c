"""Sampling: the reverse process with DDPM or DDIM steps, guided by a classifier or not."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import Guide, Network, draw_prior, sample_chain
from .device import choose_device
from .errors import UserError, check_at_least, check_choice
from .models import MLP
from .schedules import Schedule
from .solvers import SOLVERS, solver_chain, solver_timesteps

STEPS = ("ddpm", "ddim")
METHODS = (*STEPS, *SOLVERS)
VARIANCES = ("beta", "posterior")

GuidanceScale = float | Callable[[Tensor], Tensor]


class Samples(NamedTuple):
    """What :func:`sample` returns."""

    x: Tensor  # [n, d]
    trajectory: Tensor  # [K, n, d], from noise to x; K = 0 if none was asked for


def timesteps(schedule: Schedule, num_steps: int | None) -> Tensor:
    """int64 [S]: the timesteps that a chain of S steps visits, from T - 1 down to 0, evenly spaced.

    Raises:
        ValueError: S is not in 1 ... T.
    """
    total = schedule.num_steps
    count = total if num_steps is None else num_steps
    if not 1 <= count <= total:
        raise UserError(f"num_steps must be from 1 to {total}, got {num_steps}")
    return torch.linspace(total - 1, 0, count, dtype=torch.float64).round().long()


def reverse_table(
    schedule: Schedule,
    steps: Tensor,
    *,
    method: str = "ddpm",
    variance: str = "posterior",
    eta: float = 0.0,
    scale: GuidanceScale = 0.0,
) -> Tensor:
    """Coefficients of x_t, eps, z and the guidance for each reverse step, float64 [S, 4].

    DDPM (Ho et al. 2020, algorithm 2), written for any stride, with alpha = alpha_bar_t /
    alpha_bar_prev and beta = 1 - alpha::

        x_prev = (x_t - beta / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha) + sigma z

    DDIM (Song et al. 2021, equation 12)::

        x_prev = sqrt(alpha_bar_prev) x0_hat + sqrt(1 - alpha_bar_prev - sigma^2) eps + sigma z

    Guidance (Dhariwal and Nichol 2021, algorithm 2)::

        eps_hat = eps - scale(t) sqrt(1 - alpha_bar_t) grad log p(y | x_t)

    Args:
        schedule: of the forward process.
        steps: int64 [S], decreasing timesteps.
        method: ``ddpm`` or ``ddim``.
        variance: sigma^2 of DDPM: ``beta``, or ``posterior`` for that of q(x_prev | x_t, x_0).
        eta: noise of DDIM, 0 deterministic, 1 as much as DDPM's posterior.
        scale: guidance scale, a number or a function of t.

    Raises:
        ValueError: an unknown method or variance, or a negative eta.
    """
    check_choice("method", method, STEPS)
    check_choice("variance", variance, VARIANCES)
    check_at_least("eta", eta, 0)
    alpha_bar = schedule.alpha_bar[steps]
    prev = torch.cat((schedule.alpha_bar[steps[1:]], torch.ones(1, dtype=torch.float64)))
    alpha = alpha_bar / prev
    beta = 1 - alpha
    posterior = beta * (1 - prev) / (1 - alpha_bar)
    if method == "ddpm":
        x = alpha.rsqrt()
        eps = -beta / ((1 - alpha_bar) * alpha).sqrt()
        sigma = (beta if variance == "beta" else posterior).sqrt()
        sigma[-1] = 0
    else:
        sigma = eta * posterior.sqrt()
        x = (prev / alpha_bar).sqrt()
        eps = (1 - prev - sigma**2).clamp(min=0).sqrt() - x * (1 - alpha_bar).sqrt()
    strength = scale(steps.double()) if callable(scale) else torch.full_like(x, scale)
    return torch.stack((x, eps, sigma, strength * (1 - alpha_bar).sqrt()), dim=1)


def sample(
    model: MLP,
    schedule: Schedule,
    n: int,
    *,
    seed: int = 0,
    method: str = "ddpm",
    variance: str = "posterior",
    eta: float = 0.0,
    num_steps: int | None = None,
    classifier: MLP | None = None,
    label: int | Tensor | None = None,
    scale: GuidanceScale = 1.0,
    batch_size: int = 100_000,
    keep_every: int = 0,
    x_T: Tensor | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[int], None] | None = None,
) -> Samples:
    """Draws n points from a trained denoiser, of given classes if a classifier guides it.

    A sample depends on the seed and its own row number alone, not on the batch size.

    Args:
        model: denoiser, input (point, timestep feature), output the noise.
        schedule: that it was trained with.
        n: number of samples.
        seed: of the noise.
        method: ``ddpm``; ``ddim``, which is deterministic unless ``eta`` says otherwise; or
            ``dpm++2m`` and ``heun``, deterministic solvers for 10 to 50 steps. With
            guidance the noise of DDPM makes up for the classifier's errors step by step, which
            otherwise add up along the chain.
        variance, eta: see :func:`reverse_table`.
        num_steps: how many of the T timesteps are visited; None for all.
        classifier: of noisy points, the same input as the denoiser.
        label: class to guide towards, a number or int64 [n].
        scale: guidance scale, a number or a function of t; 1 samples p(x | label) as the classifier
            sees it.
        batch_size: rows sampled at once, bounds the memory.
        keep_every: keep x after every so many steps too.
        x_T: [n, d], where to start; None draws it.
        device: None takes CUDA where there is one.
        progress: called with the number of samples done so far after each batch.

    Raises:
        ValueError: a count is not positive, an unknown name, or a label that the classifier
            does not know.
    """
    check_at_least("n", n, 1)
    check_at_least("batch_size", batch_size, 1)
    if (classifier is None) != (label is None):
        raise UserError("classifier and label must be given together")
    device = choose_device(device)
    check_choice("method", method, METHODS)
    if method in SOLVERS:
        steps = solver_timesteps(schedule, num_steps)
        chain = solver_chain(method, schedule, steps)
    else:
        steps, chain = timesteps(schedule, num_steps), sample_chain
    table = reverse_table(
        schedule,
        steps,
        method="ddim" if method in SOLVERS else method,
        variance=variance,
        eta=eta,
        scale=0.0 if classifier is None else scale,
    )
    table = table[None].float().to(device)
    features = schedule.time_features[steps][None].float().to(device)
    denoiser = _network(model, device)
    guide = None
    if classifier is not None:
        labels = torch.as_tensor(label, device=device).expand(n)[None]
        classes = classifier.shape.widths[-1]
        if not 0 <= labels.min() <= labels.max() < classes:
            raise UserError(
                f"label must be from 0 to {classes - 1}, "
                f"got {labels.min().item()} to {labels.max().item()}"
            )
        guide = Guide(_network(classifier, device), labels)
    parts = []
    for start in range(0, n, batch_size):
        stop = min(start + batch_size, n)
        rows = slice(start, stop)
        if x_T is None:
            x = draw_prior(
                stop - start, model.shape.widths[-1], seed=seed, first_row=start, device=device
            )
        else:
            x = x_T[None, rows].to(device)
        part = None if guide is None else guide._replace(labels=guide.labels[:, rows])
        parts.append(
            chain(
                denoiser,
                x,
                table,
                features,
                seed=seed,
                guide=part,
                first_row=start,
                keep_every=keep_every,
            )
        )
        if progress is not None:
            progress(stop)
    x = torch.cat([samples[0] for samples, _ in parts])
    trajectory = torch.cat([kept[:, 0] for _, kept in parts], dim=1)
    return Samples(x, trajectory)


def _network(model: MLP, device: torch.device) -> Network:
    parameters, shape = model.network()
    return Network(parameters.to(device), shape)
