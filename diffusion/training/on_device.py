"""The tensors that training keeps on the device from its first step to its last.

Tensors of M networks have a leading axis M, or 1 where all networks share one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...kernels import Course, TrainingData
from ..schedules import Schedule
from .task import Task

_TABLE_SIZE = 2**14  # entries of a table of timesteps
MOST_LOSSES = 100_000  # recorded of one network; of a longer run, evenly spread ones
_MOST_LOG_SIGMA = 50.0  # of a schedule's only timestep, where no data is left
# Mean and standard deviation of log(sigma); that of flow matching is logit(t).
NORMAL_LOG_SIGMA = {"logit-normal": (0.0, 1.0), "log-normal": (-1.2, 1.2)}
# Fields of a recipe that say how often it draws each timestep.
_T_FIELDS = ("low_noise", "t_density", "p_mean", "p_std")


def training_data(tasks: Sequence[Task], device: torch.device) -> TrainingData:
    """Returns the tensors that the rows of all tasks are drawn from; shared ones are there once."""
    first = tasks[0]
    steps = [task.schedule.num_steps for task in tasks]
    tables = _timestep_tables(tasks)
    uneven = len({len(table) for table in tables}) > 1 or len(set(steps)) > 1
    features = {task.schedule: task.schedule.time_features.float() for task in tasks}
    forward = {
        (task.schedule, task.recipe.weighting): task.schedule.forward_table(task.recipe.weighting)
        for task in tasks
    }
    forward = {key: table.float() for key, table in forward.items()}
    class_features = [table for task in tasks if (table := task.class_features()) is not None]
    labels = [task.points.labels for task in tasks if task.points.labels is not None]
    p_uncond = [task.recipe.p_uncond for task in tasks if task.recipe.p_uncond is not None]

    def numbers(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=device)

    return TrainingData(
        points=_stack([task.points.data.float() for task in tasks], device),
        forward_table=_stack(
            [forward[task.schedule, task.recipe.weighting] for task in tasks], device
        ),
        time_features=_stack([features[task.schedule] for task in tasks], device),
        labels=_stack(labels, device) if first.classify or first.conditional else None,
        n_points=numbers([len(task.points) for task in tasks]),
        t_table=_stack(tables, device),
        class_features=_stack(class_features, device) if first.conditional else None,
        p_uncond=numbers([float(p) for p in p_uncond]) if first.conditional else None,
        n_steps=numbers(steps) if uneven else None,
        n_entries=numbers([len(table) for table in tables]) if uneven else None,
    )


def course_of(tasks: Sequence[Task], device: torch.device) -> Course:
    """Returns the learning rates of all tasks, and room for their losses."""
    rates = [task.recipe.rates(task.pairs).float() for task in tasks]
    steps_per_rate = [task.recipe.steps_per_rate(task.pairs) for task in tasks]
    total_steps = [task.total_steps for task in tasks]
    table = pad_sequence(rates, batch_first=True).to(device)
    return Course(
        rates=table,
        every=torch.tensor(steps_per_rate, device=device),
        total=torch.tensor(total_steps, device=device),
        losses=torch.zeros((len(tasks), min(max(total_steps), MOST_LOSSES)), device=device),
        means=torch.zeros_like(table) if tasks[0].recipe.refresh is not None else None,
    )


def timestep_table(
    schedule: Schedule,
    low_noise: float,
    t_density: str = "uniform",
    p_mean: float | None = None,
    p_std: float | None = None,
) -> Tensor:
    """Returns timesteps int64 [K], each as often as a recipe draws it.

    A step draws its timesteps uniformly from the table.

    Args:
        schedule: the forward process.
        low_noise: fraction of the rows whose timestep is drawn uniformly in the logarithm of the
            noise level; see :class:`~flashpoint.diffusion.Recipe`.
        t_density, p_mean, p_std: density of the others; see there.
    """
    if low_noise == 0 and t_density == "uniform":
        return torch.arange(schedule.num_steps)
    log_sigma = _finite_log_sigma(schedule)
    first = (log_sigma[1] - log_sigma[0]) if schedule.num_steps > 1 else 1.0
    weight = log_sigma.diff(prepend=log_sigma[:1] - first)
    weight = low_noise * weight / weight.sum()
    weight += (1 - low_noise) * _density(log_sigma, t_density, p_mean, p_std)
    quantile = (torch.arange(_TABLE_SIZE, dtype=torch.float64) + 0.5) / _TABLE_SIZE
    return torch.searchsorted(weight.cumsum(0), quantile).clamp(max=schedule.num_steps - 1)


def _finite_log_sigma(schedule: Schedule) -> Tensor:
    """Returns log(sigma), float64 [T]; where no data is left, as far on as the step before it."""
    log_sigma = schedule.sigma.log()
    if log_sigma[-1].isinf() and len(log_sigma) > 2:
        log_sigma[-1] = 2 * log_sigma[-2] - log_sigma[-3]
    return log_sigma.clamp(max=_MOST_LOG_SIGMA)


def _density(log_sigma: Tensor, name: str, p_mean: float | None, p_std: float | None) -> Tensor:
    """Returns the shares of the timesteps, float64 [T], that sum to 1."""
    if name == "uniform":
        return torch.full_like(log_sigma, 1 / len(log_sigma))
    mean, std = (
        own if given is None else given
        for own, given in zip(NORMAL_LOG_SIGMA[name], (p_mean, p_std), strict=True)
    )
    middles = (log_sigma[1:] + log_sigma[:-1]) / 2  # a timestep stands for its neighbourhood
    below = torch.special.ndtr((middles - mean) / std)
    return torch.cat((below, below.new_ones(1))).diff(prepend=below.new_zeros(1))


def _timestep_tables(tasks: Sequence[Task]) -> list[Tensor]:
    """Returns the table of timesteps of each task; equal ones are the same tensor."""
    keys = [(task.schedule, *(getattr(task.recipe, name) for name in _T_FIELDS)) for task in tasks]
    tables = {key: timestep_table(*key) for key in dict.fromkeys(keys)}
    return [tables[key] for key in keys]


def _stack(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Returns [M, ...], shorter tensors padded; [1, ...] if all M are the same, without a copy."""
    first = tensors[0]
    if (
        all(tensor.data_ptr() == first.data_ptr() for tensor in tensors)
        and len({tensor.shape for tensor in tensors}) == 1
    ):
        shared = first[None].to(device)
        # Kernels would copy a strided tensor in every step; an expanded one may stay as it is.
        return shared if 0 in first.stride() else shared.contiguous()
    return pad_sequence(list(tensors), batch_first=True).to(device)
