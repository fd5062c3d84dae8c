"""Every hot operation of diffusion on point clouds, with a plain PyTorch reference for each.

All of them take a leading axis M, for M independent models in the same launches; M is usually 1.
"""

from . import layers
from .accelerate import Acceleration, accelerate, decelerate
from .adamw import AdamWState, Course, Shadow, adamw_, adamw_state, shadow_of
from .mlp import ACTIVATIONS, MLPParameters, MLPShape, mlp
from .modules import FusedMLP
from .overflow import detect_overflow
from .q_sample import Draw, eps_table, q_sample, q_sample_batch
from .reduce_grad import ReducedGradient, reduce_grad
from .reverse_step import reverse_step
from .sample_chain import Condition, Guide, Network, draw_prior, sample_chain
from .train_step import TrainingData, Workspace, train_step, training_sums, workspace_of

__all__ = [
    "ACTIVATIONS",
    "Acceleration",
    "AdamWState",
    "Condition",
    "Course",
    "Draw",
    "FusedMLP",
    "Guide",
    "MLPParameters",
    "MLPShape",
    "Network",
    "ReducedGradient",
    "Shadow",
    "TrainingData",
    "Workspace",
    "accelerate",
    "adamw_",
    "adamw_state",
    "decelerate",
    "detect_overflow",
    "draw_prior",
    "eps_table",
    "layers",
    "mlp",
    "q_sample",
    "q_sample_batch",
    "reduce_grad",
    "reverse_step",
    "sample_chain",
    "shadow_of",
    "train_step",
    "training_sums",
    "workspace_of",
]
