"""Diffusion models of point clouds: data, schedules, models, training, sampling, metrics."""

from .datasets import DATASETS, dataset, fashion_mnist
from .denoiser import Denoiser, load
from .errors import UserError
from .export import export_model
from .metrics import (
    GaussianMixture,
    PointMasses,
    emd,
    emd_by_class,
    evaluate,
    excess_loss,
    kde_nll,
    kernel_nll,
    memorisation,
    mmd,
    nearest_distances,
    nearest_neighbour_test,
    occupancy,
    sliced_wasserstein,
)
from .models import MLP, BlockMLP, ConditionalMLP, class_table
from .points import Points, load_points
from .recipes import RECIPES, ClassicRecipe, Recipe
from .sampling import SampleConfig, Samples, reverse_table, sample, sample_many
from .schedulers import DDIMScheduler, DDPMScheduler
from .schedules import Schedule, sinusoidal_embedding
from .states import STATE_NAMES, States, states_points
from .training import Trainer

__all__ = [
    "DATASETS",
    "MLP",
    "RECIPES",
    "STATE_NAMES",
    "BlockMLP",
    "ClassicRecipe",
    "ConditionalMLP",
    "DDIMScheduler",
    "DDPMScheduler",
    "Denoiser",
    "GaussianMixture",
    "PointMasses",
    "Points",
    "Recipe",
    "SampleConfig",
    "Samples",
    "Schedule",
    "States",
    "Trainer",
    "UserError",
    "class_table",
    "dataset",
    "emd",
    "emd_by_class",
    "evaluate",
    "excess_loss",
    "export_model",
    "fashion_mnist",
    "kde_nll",
    "kernel_nll",
    "load",
    "load_points",
    "memorisation",
    "mmd",
    "nearest_distances",
    "nearest_neighbour_test",
    "occupancy",
    "reverse_table",
    "sample",
    "sample_many",
    "sinusoidal_embedding",
    "sliced_wasserstein",
    "states_points",
]
