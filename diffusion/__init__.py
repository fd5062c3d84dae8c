"""Diffusion models of point clouds: data, schedules, models, training, sampling, metrics."""

from .errors import UserError
from .metrics import evaluate, kde_nll, nearest_distances, sliced_wasserstein
from .models import MLP
from .points import Points, load_points
from .recipes import RECIPES, ClassicRecipe, Recipe
from .sampling import Samples, recommended_guidance, reverse_table, sample
from .schedules import Schedule, sinusoidal_embedding
from .states import STATE_NAMES, States, states_points
from .training import Trainer

__all__ = [
    "MLP",
    "RECIPES",
    "STATE_NAMES",
    "ClassicRecipe",
    "Points",
    "Recipe",
    "Samples",
    "Schedule",
    "States",
    "Trainer",
    "UserError",
    "evaluate",
    "kde_nll",
    "load_points",
    "nearest_distances",
    "recommended_guidance",
    "reverse_table",
    "sample",
    "sinusoidal_embedding",
    "sliced_wasserstein",
    "states_points",
]
