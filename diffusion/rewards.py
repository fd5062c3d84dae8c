"""Sampling that seeks a reward, without gradients and without training."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import draw_prior, reverse_step
from ..kernels.philox import Stream, child_seed, random_words, seed_tensor
from ..kernels.reverse_step import draw_noise
from .device import choose_device
from .errors import UserError, check_at_least
from .models import Perceptron, fused_copy
from .sampling import Samples, reverse_table, timesteps
from .schedules import Schedule

# Parts of a chain that draw random numbers of their own.
_PRIOR, _NOISE, _CHOICE = range(3)

Reward = Callable[[Tensor], Tensor]  # points [n, d] -> rewards [n]
Denoiser = Callable[[Tensor], Tensor]  # point and timestep feature [n, d + F] -> noise [n, d]


@torch.no_grad()
def sample_with_reward(
    model: Denoiser,
    schedule: Schedule,
    n: int,
    reward: Reward,
    *,
    dim: int | None = None,
    candidates: int = 10,
    temperature: float = 0.0,
    seed: int = 0,
    num_steps: int | None = None,
    batch_size: int = 10_000,
    device: str | torch.device | None = None,
    progress: Callable[[int], None] | None = None,
) -> Samples:
    """Draws n points of high reward: SVDD-PM (Li et al. 2024, algorithm 1 with equation 8).

    At each step of DDPM every sample draws M candidates for x_{t-1}; the value of one is the reward
    of the clean point that the denoiser sees in it, x0_hat = E[x_0 | x_{t-1}], and one is chosen
    with probability proportional to exp(value / temperature). The more candidates, the closer the
    samples come to p(x_0) exp(reward(x_0) / temperature), up to the approximation of the value.
    The reward is only evaluated: it may be any function, of any origin.

    Args:
        model: denoiser; an unconditional one, or a conditional one that is told no class.
        schedule: that it was trained with.
        n: number of samples.
        reward: of points float32 [m, d] on the device, [m].
        dim: d; None asks the model.
        candidates: M; 1 samples without regard to the reward.
        temperature: 0 takes the best candidate always.
        seed: of everything random. A sample depends on it and its own row number alone.
        num_steps: how many of the T timesteps are visited; None for all.
        batch_size: candidates evaluated at once, bounds the memory.
        device: None takes CUDA where there is one.
        progress: called with the number of samples done so far after each batch.

    Returns:
        The samples [n, d], without a trajectory.

    Raises:
        ValueError: a number is out of range, or the reward has another shape.
    """
    check_at_least("n", n, 1)
    check_at_least("candidates", candidates, 1)
    check_at_least("temperature", temperature, 0)
    check_at_least("batch_size", batch_size, 1)
    device = choose_device(device)
    if dim is None:
        if not isinstance(model, Perceptron):
            raise UserError("dim must be given: the model does not know it")
        dim = model.shape.widths[-1]
    chain = _Chain(fused_copy(model, device), schedule, reward, timesteps(schedule, num_steps))
    parts, size = [], max(1, batch_size // candidates)
    for start in range(0, n, size):
        rows = torch.arange(start, min(start + size, n), device=device)
        x = draw_prior(
            len(rows), dim, seed=child_seed(seed, _PRIOR), first_row=start, device=device
        )[0]
        parts.append(chain.run(x, rows, candidates, temperature, seed))
        if progress is not None:
            progress(start + len(rows))
    x = torch.cat(parts)
    return Samples(x, x.new_empty((0, *x.shape)))


class _Chain:
    def __init__(self, model: Denoiser, schedule: Schedule, reward: Reward, steps: Tensor):
        self.model, self.schedule, self.reward, self.steps = model, schedule, reward, steps
        self.table = reverse_table(schedule, steps)

    def run(self, x: Tensor, rows: Tensor, candidates: int, temperature: float, seed: int):
        """From x_T [n, d] of these global rows [n] to the samples."""
        eps = self.noise(x, 0)
        # Each candidate has a number of its own among those of all samples.
        numbers = (rows[:, None] * candidates + torch.arange(candidates, device=x.device)).flatten()
        noise_seed, choice_seed = child_seed(seed, _NOISE), child_seed(seed, _CHOICE)
        last = len(self.steps) - 1
        for step in range(last):
            z = draw_noise(
                noise_seed, Stream.NOISE, torch.tensor([step], device=x.device), numbers, x.shape[1]
            )[0, 0]
            coefficients = self.table[step].float().to(x.device)
            x, eps = (a.repeat_interleave(candidates, dim=0) for a in (x, eps))
            x = reverse_step(x, eps, coefficients, z=z)  # [n * M, d]
            eps = self.noise(x, step + 1)
            value = self.value(x, eps, step + 1).view(-1, candidates)
            best = _choose(value, temperature, choice_seed, step, numbers.view(-1, candidates))
            chosen = torch.arange(len(best), device=x.device) * candidates + best
            x, eps = x[chosen], eps[chosen]
        return reverse_step(x, eps, self.table[last].float().to(x.device))

    def noise(self, x: Tensor, step: int) -> Tensor:
        """The model's noise prediction [n, d] at a step of the chain."""
        feature = self.schedule.time_features[self.steps[step]].float().to(x.device)
        return self.model(torch.cat((x, feature.expand(len(x), -1)), dim=1))

    def value(self, x: Tensor, eps: Tensor, step: int) -> Tensor:
        """The reward [n] of x0_hat, the posterior mean of the clean point."""
        alpha_bar = self.schedule.alpha_bar[self.steps[step]].item()
        x_0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
        value = self.reward(x_0)
        if value.shape != x.shape[:1]:
            raise UserError(f"reward must return [{len(x)}], got {list(value.shape)}")
        return value


def _choose(value: Tensor, temperature: float, seed: int, step: int, numbers: Tensor) -> Tensor:
    """The chosen candidate int64 [n] of values [n, M], by the Gumbel trick."""
    if temperature == 0:
        return value.argmax(dim=1)
    words = random_words(seed_tensor(seed, value.device), Stream.NOISE, step, numbers.flatten(), 1)[
        0, :, 0
    ].view(value.shape)
    gumbel = -((words.double() + 0.5) / 2**32).log().neg().log()
    return (value.double() / temperature + gumbel).argmax(dim=1)


def class_reward(predict_proba: Callable, label: int) -> Reward:
    """log p(label | x) of a classifier of clean points, with scikit-learn's ``predict_proba``.

    Args:
        predict_proba: takes an array [n, d], returns [n, C].
        label: the class.
    """

    def reward(x: Tensor) -> Tensor:
        p = torch.as_tensor(predict_proba(x.cpu().numpy())[:, label]).double()
        return p.clamp(min=1e-300).log().to(x)  # not -inf, among which there is no best

    return reward
