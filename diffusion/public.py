"""The public names of the package: importing this module imports all of them, and PyTorch."""

from .checkpoints import Denoiser, load
from .classification import DiffusionClassifier
from .compat import (
    BlockMLP,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    States,
)
from .data import (
    DATASETS,
    STATE_NAMES,
    Points,
    Standardisation,
    dataset,
    fashion_mnist,
    load_points,
    states_points,
)
from .errors import UserError
from .export import export_model
from .latents import interpolate, invert, slerp
from .logs import Callback, CSVLog, JSONLog, TensorBoardLog
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
from .models import MLP, ConditionalMLP, class_table
from .reverse_steps import reverse_table
from .rewards import class_reward, sample_with_reward
from .sampling import SampleConfig, Samples, sample, sample_many
from .schedules import Schedule, sinusoidal_embedding
from .sweeps import SweepTable, sweep
from .time_embedding import TimeEmbedding
from .training import RECIPES, ClassicRecipe, ManyTrainer, Recipe, Task, Trainer, train_many

__all__ = [
    "DATASETS",
    "MLP",
    "RECIPES",
    "STATE_NAMES",
    "BlockMLP",
    "CSVLog",
    "Callback",
    "ClassicRecipe",
    "ConditionalMLP",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "Denoiser",
    "DiffusionClassifier",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "GaussianMixture",
    "HeunDiscreteScheduler",
    "JSONLog",
    "ManyTrainer",
    "PointMasses",
    "Points",
    "Recipe",
    "SampleConfig",
    "Samples",
    "Schedule",
    "Standardisation",
    "States",
    "SweepTable",
    "Task",
    "TensorBoardLog",
    "TimeEmbedding",
    "Trainer",
    "UserError",
    "class_reward",
    "class_table",
    "dataset",
    "emd",
    "emd_by_class",
    "evaluate",
    "excess_loss",
    "export_model",
    "fashion_mnist",
    "interpolate",
    "invert",
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
    "sample_with_reward",
    "sinusoidal_embedding",
    "slerp",
    "sliced_wasserstein",
    "states_points",
    "sweep",
    "train_many",
]
