"""Data and networks for tests of training, and a comparison of their results."""

import torch

from flashpoint.kernels import TrainingData

KINDS = ("denoiser", "classifier", "conditional")
CLASSES, CLASS_WIDTH = 4, 3


def make_data(
    device, kind, models=1, *, points=30, steps=9, dim=2, features=1, classes=CLASSES,
    class_width=CLASS_WIDTH, uneven=False,
):  # fmt: skip
    """Data of networks of one of the kinds.

    Uneven models have numbers of points, of timesteps and of entries of their own.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(models, points, dim, generator=generator).cumsum(dim=1)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    ramp = torch.linspace(-1, 1, steps).view(1, -1, 1)
    data = TrainingData(
        points=x,
        forward_table=make_forward_table(steps, models),
        time_features=ramp / (1 + torch.arange(models * features).view(models, 1, features)),
        labels=torch.randint(0, classes, (models, points), generator=generator),
        n_points=torch.full((models,), points),
        t_table=torch.arange(steps).repeat(models, 1),
        class_features=torch.randn(models, classes + 1, class_width, generator=generator),
        p_uncond=torch.linspace(0.3, 0.6, models),
    )
    if uneven:
        data = data._replace(
            n_points=torch.randint(points // 5, points, (models,), generator=generator),
            n_steps=torch.randint(steps // 3, steps, (models,), generator=generator),
            t_table=torch.randint(0, steps, (models, 2 * steps), generator=generator),
            n_entries=torch.randint(steps // 2, 2 * steps, (models,), generator=generator),
        )
    if kind == "denoiser":
        data = data._replace(labels=None)
    if kind != "conditional":
        data = data._replace(class_features=None, p_uncond=None)
    return TrainingData(*(None if part is None else part.to(device) for part in data))


def make_forward_table(steps, models):
    """A forward table [M, T, 5] whose numbers all differ, so that none can stand for another."""
    signal = (torch.linspace(0.99, 0.02, steps) ** torch.linspace(1, 2, models)[:, None]).sqrt()
    noise = 1.1 - signal
    t = torch.arange(steps) + 0.3 * torch.arange(models)[:, None]
    return torch.stack((signal, noise, -0.8 * t.cos(), 1 + 0.2 * t.sin(), 0.5 + t / steps), dim=2)


def one_model(data, model):
    """The data of one of the models."""
    return TrainingData(*(None if part is None else part[model : model + 1] for part in data))


def make_parameters(shape, models, device):
    """Flat parameters [M, P], weights as PyTorch initialises linear layers."""
    generator = torch.Generator().manual_seed(1)
    flat = torch.rand(models, shape.num_parameters, generator=generator) * 2 - 1
    for weight in shape.unpack(flat).weights:
        weight *= weight.shape[2] ** -0.5
    return flat.to(device)


def relative_difference(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()
