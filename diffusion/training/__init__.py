"""Training: recipes, the networks to train, and the loops that train one or many of them."""

from .many import ManyTrainer, train_many
from .recipes import (
    RECIPES,
    ClassicRecipe,
    CosineDecay,
    PlainRecipe,
    PlateauDecay,
    Recipe,
    StepDecay,
)
from .task import Task
from .trainer import Trainer

__all__ = [
    "RECIPES",
    "ClassicRecipe",
    "CosineDecay",
    "ManyTrainer",
    "PlainRecipe",
    "PlateauDecay",
    "Recipe",
    "StepDecay",
    "Task",
    "Trainer",
    "train_many",
]
