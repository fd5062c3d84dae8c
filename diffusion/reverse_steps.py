"""Reverse steps that are linear in x_t, the network's output and z, as tables: DDPM and DDIM."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.default_state import in_default_state
from .choices import VARIANCES
from .errors import UserError, check_choice, check_number
from .predictions import PREDICTIONS, estimates
from .schedules import Schedule, check_schedule
from .spacings import SPACINGS, check_timesteps

GuidanceScale = float | Callable[[Tensor], Tensor]
Coefficients = tuple[Tensor, Tensor, Tensor]  # of x0_hat, eps_hat and z, float64 [S] each


class StepLevels(NamedTuple):
    """Signal and noise level before and after each step, float64 [S]; the last one leads to x_0."""

    signal: Tensor
    noise: Tensor
    signal_prev: Tensor
    noise_prev: Tensor

    @property
    def posterior_variance(self) -> Tensor:
        """The variance of q(x_prev | x_t, x_0) (Ho et al. 2020, equation 7)."""
        ratio = self.noise_prev * self.signal / (self.signal_prev * self.noise)  # of both sigma
        return self.noise_prev.square() * (1 - ratio.square())

    @property
    def added_variance(self) -> Tensor:
        """The variance of q(x_t | x_prev): beta of a variance-preserving process."""
        kept = self.noise_prev * self.signal / self.signal_prev
        return self.noise.square() - kept.square()


class Step(NamedTuple):
    """A reverse step that is linear in x_t, eps and z; an entry of :data:`STEPS`."""

    title: str  # in figures and reports
    # of the levels, variance and eta; see reverse_table
    coefficients: Callable[[StepLevels, str, float], Coefficients]


def _ddpm(levels: StepLevels, variance: str, eta: float) -> Coefficients:  # noqa: ARG001
    posterior = levels.posterior_variance
    sigma_squared = {
        "beta": levels.added_variance,
        "posterior": posterior,
        "none": torch.zeros_like(posterior),
    }[variance]
    sigma = sigma_squared.sqrt()
    sigma[-1] = 0
    return levels.signal_prev, (levels.noise_prev.square() - posterior).sqrt(), sigma


def _ddim(levels: StepLevels, variance: str, eta: float) -> Coefficients:  # noqa: ARG001
    sigma = eta * levels.posterior_variance.sqrt()
    eps = (levels.noise_prev.square() - sigma.square()).clamp(min=0).sqrt()
    return levels.signal_prev, eps, sigma


STEPS = {"ddpm": Step("DDPM", _ddpm), "ddim": Step("DDIM", _ddim)}


def levels_at(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns signal and noise at timesteps [S], float64 [S] each; t may be fractions.

    Between two timesteps log(sigma) is linear in t, as in :meth:`Schedule.features_of`; signal and
    noise follow from it as at the timesteps. The levels of ``flow`` are linear in t themselves.
    """
    t = t.double()
    low, high = t.floor().long(), t.ceil().long()
    if schedule.name == "flow":
        signal, noise = schedule.signal, schedule.noise
        return signal[low].lerp(signal[high], t - low), noise[low].lerp(noise[high], t - low)
    log_sigma = schedule.sigma.log()
    sigma = torch.lerp(log_sigma[low], log_sigma[high], t - low).exp()
    signal = (sigma.square() + (schedule.sigma_data**2 if schedule.name == "edm" else 1)).rsqrt()
    whole = low == high
    return (
        torch.where(whole, schedule.signal[low], signal),
        torch.where(whole, schedule.noise[low], signal * sigma),
    )


def timestep_of(schedule: Schedule, sigma: Tensor) -> Tensor:
    """Returns the timesteps of noise levels sigma [S], float64 fractions [S] from 0 to T - 1.

    It inverts :func:`levels_at`, for finite sigma from that at 0 up.
    """
    if schedule.name == "flow":
        return schedule.num_steps * sigma / (1 + sigma) - 1
    log_sigma, wanted = schedule.sigma.log(), sigma.log()
    low = (torch.searchsorted(log_sigma, wanted, right=True) - 1).clamp(0, schedule.num_steps - 2)
    return low + (wanted - log_sigma[low]) / (log_sigma[low + 1] - log_sigma[low])


def levels_of(schedule: Schedule, steps: Tensor) -> StepLevels:
    """Returns the levels of a chain that visits these timesteps, int64 [S], and ends at x_0."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    signal, noise = schedule.signal[steps], schedule.noise[steps]
    return StepLevels(signal, noise, torch.cat((signal[1:], one)), torch.cat((noise[1:], zero)))


def of_output(schedule: Schedule, t: Tensor, x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns weights of x_t and the network's output [S] for those of x0_hat and eps_hat [S].

    The timesteps t [S] may be fractions.
    """
    (x0_x, x0_output), (eps_x, eps_output) = _estimates_at(schedule, t)
    return x0 * x0_x + eps * eps_x, x0 * x0_output + eps * eps_output


def _estimates_at(
    schedule: Schedule, t: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns the weights of x_t and of the network's output in x0_hat and eps_hat [S]."""
    signal, noise = levels_at(schedule, t)
    target = PREDICTIONS[str(schedule.prediction)].coefficients(signal, noise, schedule.sigma_data)
    return estimates(signal, noise, *target)


def guide_of(
    schedule: Schedule, t: Tensor, scale: GuidanceScale, *, classifier_free: bool
) -> Tensor:
    """Returns the guidance scale at timesteps [S], in units of the network's output, float64 [S].

    A classifier's gradient is that of log p(y | x_t), and changes eps_hat by noise_t times it. At a
    timestep without any data it is 0, and so is its scale. The timesteps may be fractions.

    Raises:
        ValueError: the scale is not finite, or the function returns no tensor [S].
    """
    ones = torch.ones(len(t), dtype=torch.float64)
    guide = scale(t.double()) if callable(scale) else ones * scale
    if not isinstance(guide, Tensor) or guide.shape != ones.shape:
        shape = list(guide.shape) if isinstance(guide, Tensor) else type(guide).__name__
        raise UserError(
            f"scale must return a tensor [{len(ones)}] for t [{len(ones)}], got {shape}"
        )
    if not guide.isfinite().all():
        raise UserError("scale must be finite, got NaN or infinity")
    if classifier_free:
        return guide
    _, (_, per_output) = _estimates_at(schedule, t)
    return torch.where(per_output == 0, 0.0, guide * levels_at(schedule, t)[1] / per_output)


@in_default_state
def timesteps(
    schedule: Schedule,
    num_steps: int | None,
    *,
    start: int | None = None,
    method: str = "ddpm",
    spacing: str | None = None,
) -> Tensor:
    """Returns the timesteps that a chain of S steps visits, int64 [S], decreasing.

    Without a spacing they are the same whatever the network predicts, so that samples of different
    parametrisations can be compared: evenly spaced for DDPM and DDIM and as of ``karras`` for the
    solvers, from where sigma = noise / signal is at most 14, or 8 in 5 steps. Above, x_t is noise
    in all but name. Where no data is left at T - 1, and with ``flow``, whose x_t grows with t, the
    first of them is replaced by T - 1, or by ``start``.

    Args:
        schedule: the forward process.
        num_steps: S; None for all.
        start: the first timestep; None is where :meth:`Schedule.start_of` says, or T - 1.
        method: one of :data:`~flashpoint.diffusion.sampling.METHODS`. DDPM can visit all T, the
            others those that hold some of the data.
        spacing: None, or ``linspace``, evenly spaced down to 0, or ``karras``, with even steps of
            sigma^(1/7) (Karras et al. 2022, equation 5), both from :meth:`Schedule.start_of` on;
            or ``leading`` or ``trailing``, evenly spaced from 0 up or from T - 1 down (Lin et al.
            2024, table 2).

    Raises:
        ValueError: S is not in 1 ... T, ``start`` is no timestep, or the spacing is unknown.
    """
    first, count = schedule.start_of(
        num_steps, start=start, for_all=spacing is None, all_levels=method == "ddpm"
    )
    last = schedule.num_steps - 1 if start is None else int(start)
    if spacing is None:
        spread = SPACINGS["linspace" if method in STEPS else "karras"]
        steps = spread.timesteps(schedule, first, count)
        if schedule.name == "flow" or schedule.sigma[last].isinf():
            steps[0] = last
        return steps
    check_choice("spacing", spacing, SPACINGS)
    if SPACINGS[spacing].over_all:
        first, count = last, last + 1 if num_steps is None else int(num_steps)
    return SPACINGS[spacing].timesteps(schedule, first, count)


@in_default_state
def reverse_table(
    schedule: Schedule,
    steps: Tensor,
    *,
    method: str = "ddpm",
    variance: str = "posterior",
    eta: float = 0.0,
    scale: GuidanceScale = 0.0,
    classifier_free: bool = False,
) -> Tensor:
    """Returns the coefficients of x_t, output, z and the guidance of each step, float64 [S, 4].

    DDPM (Ho et al. 2020, algorithm 2) and DDIM (Song et al. 2021, equation 12) are, at any stride::

        x_prev = signal_prev x0_hat + sqrt(noise_prev^2 - v) eps_hat + sigma z

    where v = sigma^2 for DDIM, and for DDPM the variance of q(x_prev | x_t, x_0). x0_hat and
    eps_hat are linear in x_t and the network's output, see :meth:`Schedule.x0_hat`.

    Guidance (Dhariwal and Nichol 2021, algorithm 2) changes the noise, and with it the output::

        eps_hat = eps - scale(t) noise_t grad log p(y | x_t)

    or, classifier-free (Ho and Salimans 2022, equation 6), the output itself::

        output = (1 + scale(t)) output(x_t, y) - scale(t) output(x_t)

    Args:
        schedule: the forward process.
        steps: decreasing timesteps, int64 [S].
        method: ``ddpm`` or ``ddim``.
        variance: sigma^2 of DDPM: ``beta``, ``posterior`` for that of q(x_prev | x_t, x_0), or
            ``none``, which makes the step deterministic (z = 0).
        eta: noise of DDIM: 0 for none, 1 for as much as in DDPM with the posterior's variance.
        scale: guidance scale, a number or a function of t.
        classifier_free: True for classifier-free guidance, False for guidance by a classifier.

    Raises:
        ValueError: no decreasing timesteps, an unknown method or variance, an eta outside [0, 1],
            or a scale that is not finite.
    """
    check_schedule(schedule)
    check_timesteps("steps", steps, schedule)
    check_choice("method", method, STEPS)
    check_choice("variance", variance, VARIANCES)
    check_number("eta", eta, 0, 1)
    x0, eps, sigma = STEPS[method].coefficients(levels_of(schedule, steps), variance, eta)
    guide = guide_of(schedule, steps, scale, classifier_free=classifier_free)
    return torch.stack((*of_output(schedule, steps, x0, eps), sigma, guide), dim=1)
