"""Sampling of points with high reward, without gradients and without training."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..kernels import draw_prior, reverse_step
from ..kernels.default_state import in_default_state
from ..kernels.philox import Stream, child_seed, normal_rows, random_words, seed_tensor
from .device import choose_device
from .errors import UserError, check_integer, check_number, check_seed
from .given import check_finite
from .models import Perceptron, check_prediction
from .own_networks import point_dim, predictor, takes_timesteps
from .progress import check_progress, reported
from .reverse_steps import reverse_table, timesteps
from .sampling import Samples
from .schedules import Schedule, check_schedule

# Parts of a chain that draw random numbers of their own.
_PRIOR, _NOISE, _CHOICE, _POSTERIOR = range(4)

Reward = Callable[[Tensor], Tensor]  # points [n, d] -> rewards [n]
Predictor = Callable[..., Tensor]  # point and timestep feature [n, d + F] -> output [n, d]
Denoise = Callable[[Tensor, int], Tensor]  # x_t [n, d] and timestep -> output [n, d]


@in_default_state
@torch.no_grad()
def sample_with_reward(
    model: Predictor,
    schedule: Schedule,
    n: int,
    reward: Reward,
    *,
    dim: int | None = None,
    candidates: int = 10,
    temperature: float = 0.0,
    posterior_draws: int = 0,
    seed: int = 0,
    num_steps: int | None = None,
    batch_size: int = 10_000,
    device: str | torch.device | None = None,
    progress: bool | Callable[[int], None] = False,
) -> Samples:
    """Draws n points of high reward: SVDD-PM (Li et al. 2024, algorithm 1 with equation 8).

    At each step of DDPM every sample draws M candidates for x_{t-1}. The value of a candidate is
    the reward of the clean point that the denoiser predicts from it, x0_hat = E[x_0 | x_{t-1}], and
    one candidate is chosen with probability proportional to exp(value / temperature). With more
    candidates the samples come closer to p(x_0) exp(reward(x_0) / temperature), up to the
    approximation of the value. The reward is only evaluated and may be any function.

    While there is much noise, x0_hat lies between the points that it may become, and its reward
    says little about theirs. With K ``posterior_draws`` the value is the soft one of equation 4,
    temperature * log E[exp(reward(x_0) / temperature) | x_{t-1}], over K points of the normal
    distribution with the posterior's mean and covariance. Half of the points mirror the others, so
    that their mean is x0_hat. The covariance follows from Tweedie's formula,
    noise^2 / signal dx0_hat / dx, with the slope of a linear fit to the candidates and their
    x0_hat: it needs no further evaluation of the denoiser, and K times as many of the reward.
    Candidates follow a step, so they hold some of the data even if x_T holds none.

    Args:
        model: denoiser, of (point, timestep feature) or a network of your own, see
            :mod:`.own_networks`; a conditional one takes no class.
        schedule: the forward process that it was trained with, and what it predicts.
        n: number of samples.
        reward: takes points float32 [m, d] on the device, returns [m].
        dim: d; None asks the model.
        candidates: M; 1 samples without regard to the reward.
        temperature: temperature of the choice; 0 always takes the best candidate.
        posterior_draws: K, the even number of clean points that a value is an average over; 0 takes
            x0_hat alone.
        seed: seed of everything random. A sample depends on the seed and its own row number alone.
        num_steps: number of the T timesteps that are visited; None for all.
        batch_size: number of candidates evaluated at once, which bounds the memory.
        device: None takes CUDA where there is one.
        progress: True shows a bar on stderr; a function is called after each batch with the number
            of samples done so far.

    Returns:
        The samples [n, d], without a trajectory.

    Raises:
        ValueError: an argument is of a wrong type or out of range, ``posterior_draws`` is odd,
            there are too few candidates to fit the posterior's covariance, the reward is NaN or has
            another shape, or the samples are not finite.
    """
    for name, count, least in (
        ("n", n, 1), ("candidates", candidates, 1), ("posterior_draws", posterior_draws, 0),
        ("batch_size", batch_size, 1),
    ):  # fmt: skip
        check_integer(name, count, least)
    check_number("temperature", temperature, 0)
    check_progress(progress)
    check_schedule(schedule)
    check_prediction(model, schedule)
    if not callable(reward):
        raise UserError(f"reward must be a function of points, got {type(reward).__name__}")
    device = choose_device(device)
    if dim is None:
        dim = _dim_of(model)
    check_integer("dim", dim, 1)
    if isinstance(model, Perceptron) and dim != model.shape.widths[-1]:
        raise UserError(f"dim must be that of the model, {model.shape.widths[-1]}, got {dim}")
    if posterior_draws % 2:
        raise UserError(f"posterior_draws must be even, got {posterior_draws}")
    if posterior_draws and candidates <= dim:
        raise UserError(
            f"candidates must be at least {dim + 1} for posterior_draws in {dim} dimensions, "
            f"got {candidates}"
        )
    chain = _RewardChain(
        predictor(model, schedule, device, dim), schedule, reward, timesteps(schedule, num_steps),
        candidates, temperature, posterior_draws, check_seed(seed),
    )  # fmt: skip
    parts, size = [], max(1, batch_size // candidates)
    prior = child_seed(seed, _PRIOR)
    with reported(progress, "sample", n, "samples") as report:
        for start in range(0, n, size):
            rows = min(size, n - start)
            x = draw_prior(rows, dim, seed=prior, first_row=start, device=device)[0]
            parts.append(chain.run(x, start))
            report(start + rows)
    x = torch.cat(parts)
    check_finite("samples", x)
    return Samples(x, x.new_empty((0, *x.shape)))


def _dim_of(model: Predictor) -> int:
    """Returns the dimension of the points that a model takes, if it knows it."""
    if isinstance(model, Perceptron):
        return model.shape.widths[-1]
    if isinstance(model, nn.Module) and takes_timesteps(model):
        return point_dim("model", model)
    raise UserError("dim must be given: the model does not know it")


@dataclass
class _RewardChain:
    """The reverse process of :func:`sample_with_reward`, with its arguments."""

    model: Denoise
    schedule: Schedule
    reward: Reward
    steps: Tensor
    candidates: int
    temperature: float
    posterior_draws: int
    seed: int

    def run(self, x: Tensor, first_row: int) -> Tensor:
        """Runs the chain from x_T [n, d], whose rows are numbered from this one on."""
        table = reverse_table(self.schedule, self.steps).float().to(x.device)
        each, last = torch.arange(len(x), device=x.device), len(self.steps) - 1
        rows = first_row + each
        output = self.output(x, 0)
        for step in range(last):
            x, output = (a.repeat_interleave(self.candidates, dim=0) for a in (x, output))
            x = reverse_step(
                x, output, table[step], seed=child_seed(self.seed, _NOISE), step=step,
                first_row=first_row * self.candidates,
            )  # [n * M, d]  # fmt: skip
            output = self.output(x, step + 1)
            x, output = (a.unflatten(0, (len(rows), -1)) for a in (x, output))  # [n, M, d]
            chosen = self.choose(self.value(x, output, rows, step), rows, step)
            x, output = x[each, chosen], output[each, chosen]
        return reverse_step(x, output, table[last])

    def posterior_normals(self, step: int, rows: Tensor, count: int, dim: int) -> Tensor:
        """Returns standard normal vectors [n, count, d] of each row at a step."""
        seed, numbers = child_seed(self.seed, _POSTERIOR), _numbers(rows, count)
        return normal_rows(seed, Stream.NOISE, step, numbers.flatten(), dim).view(-1, count, dim)

    def output(self, x: Tensor, step: int) -> Tensor:
        """Returns the denoiser's output [n, d] at a step of the chain."""
        return self.model(x, int(self.steps[step]))

    def value(self, x: Tensor, output: Tensor, rows: Tensor, step: int) -> Tensor:
        """Returns the values [n, M] of candidates [n, M, d] for the next step."""
        t = int(self.steps[step + 1])
        x_0 = self.schedule.x0_hat(x, output, t)
        if not self.posterior_draws:
            return self.rewards(x_0)
        # All candidates of a sample share their draws, so that their values differ in nothing else.
        h = self.posterior_normals(step, rows, self.posterior_draws // 2, x.shape[2])
        spread = self.schedule.noise[t].square() / self.schedule.signal[t]
        h = torch.cat((h, -h), dim=1) @ posterior_root(x, x_0, spread.item())  # [n, K, d]
        reward = self.rewards(x_0[:, :, None] + h[:, None])  # [n, M, K]
        if self.temperature == 0:
            return reward.amax(dim=2)
        soft = (reward / self.temperature).logsumexp(dim=2) - math.log(self.posterior_draws)
        return self.temperature * soft

    def rewards(self, x_0: Tensor) -> Tensor:
        """Returns the reward [...] of points [..., d]."""
        points = x_0.flatten(0, -2)
        reward = self.reward(points)
        if not isinstance(reward, Tensor) or reward.shape != points.shape[:1]:
            got = list(reward.shape) if isinstance(reward, Tensor) else type(reward).__name__
            raise UserError(f"reward must return a tensor [{len(points)}], got {got}")
        if reward.isnan().any():
            raise UserError("reward must return numbers, got NaN")
        return reward.view(x_0.shape[:-1])

    def choose(self, value: Tensor, rows: Tensor, step: int) -> Tensor:
        """Chooses a candidate int64 [n] by values [n, M], with the Gumbel trick."""
        if self.temperature == 0:
            return value.argmax(dim=1)
        numbers = _numbers(rows, self.candidates)
        seed = seed_tensor(child_seed(self.seed, _CHOICE), value.device)
        words = random_words(seed, Stream.NOISE, step, numbers.flatten(), 1)[0, :, 0]
        gumbel = -((words.view_as(numbers).double() + 0.5) / 2**32).log().neg().log()
        return (value.double() / self.temperature + gumbel).argmax(dim=1)


def _numbers(rows: Tensor, count: int) -> Tensor:
    """Returns the numbers [n, count] that belong to each row [n], distinct over all rows."""
    return rows[:, None] * count + torch.arange(count, device=rows.device)


def posterior_root(x: Tensor, x_0: Tensor, spread: float) -> Tensor:
    """Returns symmetric roots [n, d, d] of the covariance of x_0 given x_t, around x_t.

    The covariance is noise^2 / signal dx0_hat / dx by Tweedie's formula, at any levels of both. The
    slope is that of a linear fit by least squares.

    Args:
        x: points x_t [n, M, d] that lie close together, M > d.
        x_0: their posterior means x0_hat [n, M, d].
        spread: noise^2 / signal of their timestep.
    """
    dx, dx_0 = (each - each.mean(dim=1, keepdim=True) for each in (x, x_0))
    slope = torch.linalg.lstsq(dx, dx_0).solution  # [n, d, d]
    values, vectors = torch.linalg.eigh((slope + slope.mT) / 2)
    variances = values.clamp(min=0) * spread
    return vectors * variances.sqrt()[:, None] @ vectors.mT


def class_reward(predict_proba: Callable, label: int) -> Reward:
    """Returns the reward log p(label | x) of a classifier of clean points.

    Args:
        predict_proba: method of a scikit-learn classifier: takes an array [n, d], returns [n, C].
        label: the class, from 0.

    Raises:
        ValueError: an argument is of a wrong type or out of range.
    """
    if not callable(predict_proba):
        raise UserError(f"predict_proba must be a method, got {type(predict_proba).__name__}")
    check_integer("label", label, 0)

    def reward(x: Tensor) -> Tensor:
        shares = predict_proba(x.cpu().numpy())
        if label >= shares.shape[1]:
            raise UserError(f"label must be from 0 to {shares.shape[1] - 1}, got {label}")
        p = torch.as_tensor(shares[:, label], device="cpu").double()
        return p.clamp(min=1e-300).log().to(x)  # of several -inf none would be the best

    return reward
