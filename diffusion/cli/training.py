"""The options of the two recipes: a network, the length of its training, rates and optimiser.

Those of the classifier have the name of the denoiser's with ``--classifier-`` before it.
"""

import click

from ..choices import ACTIVATIONS, CLASS_EMBEDDINGS, DECAYS, OPTIMIZERS
from .options import Decorator, options
from .params import Count, CountOrNone, NumberOrNone, OneOf


def _network(prefix: str, whose: str) -> Decorator:
    """Returns the options of a network that both networks have."""
    return options(
        click.option(
            f"--{prefix}hidden-layers",
            default=None,
            metavar="WIDTHS",
            help=f"Widths of the {whose}'s layers: 64,128,128 or 128x3.",
        ),
        click.option(
            f"--{prefix}activation",
            type=OneOf(ACTIVATIONS),
            default=None,
            help=f"One of {', '.join(ACTIVATIONS)}.",
        ),
        click.option(
            f"--{prefix}linear-input/--no-{prefix}linear-input",
            default=None,
            help="No activation after the first layer.",
        ),
    )


def _training(prefix: str) -> Decorator:
    """Returns the options of a training that both trainings have."""
    return options(
        click.option(
            f"--{prefix}chunk-rows",
            type=CountOrNone(),
            default=None,
            help="Rows that go through the network at once; none for as many as are fast.",
        ),
        click.option(
            f"--{prefix}lr",
            type=float,
            default=None,
            help="Learning rate: its peak; of a classic recipe that of the first epoch.",
        ),
        click.option(
            f"--{prefix}warmup",
            type=float,
            default=None,
            help="Part of the steps in which the rate rises. Not of a classic recipe.",
        ),
        click.option(
            f"--{prefix}decay",
            default=None,
            metavar="RULE",
            help="How the rate of a classic recipe falls from epoch to epoch: "
            f"{', '.join(DECAYS)}; with numbers as in step:every=2,factor=0.99.",
        ),
        click.option(
            f"--{prefix}optimizer",
            type=OneOf(OPTIMIZERS),
            default=None,
            help=f"Of a classic recipe: {' or '.join(OPTIMIZERS)}.",
        ),
        click.option(
            f"--{prefix}weight-decay",
            type=float,
            default=None,
            help="Weight decay of the optimiser.",
        ),
        click.option(
            f"--{prefix}ema-decay",
            f"--{prefix}ema",
            type=float,
            default=None,
            help="Decay of the moving average of the weights. Not of a classic recipe.",
        ),
        click.option(
            f"--{prefix}clip-norm",
            type=NumberOrNone(),
            default=None,
            help="Largest norm of the gradient; none does not clip.",
        ),
        click.option(
            f"--{prefix}refresh",
            type=Count(),
            default=None,
            help="Epochs of a classic recipe between two draws of the noise.",
        ),
    )


network_options = options(
    _network("", "denoiser"),
    click.option(
        "--p-uncond",
        type=NumberOrNone(),
        default=None,
        help="Train a conditional denoiser in place of a classifier; the class is withheld from it "
        "with this probability.",
    ),
    click.option(
        "--class-embedding",
        type=OneOf(CLASS_EMBEDDINGS),
        default=None,
        help=f"Form in which it takes the class: {' or '.join(CLASS_EMBEDDINGS)}.",
    ),
)
training_options = options(
    click.option("--steps", type=Count(), default=None, help="Training steps of the denoiser."),
    click.option("--epochs", type=Count(), default=None, help="Epochs of a classic recipe."),
    click.option(
        "--batch-size",
        type=Count(most=10**8),
        default=None,
        help="Rows per training step, of the classifier too.",
    ),
    _training(""),
)
classifier_options = options(
    click.option(
        "--classifier-steps", type=Count(), default=None, help="Training steps of the classifier."
    ),
    click.option(
        "--classifier-epochs",
        type=Count(),
        default=None,
        help="Epochs of the classifier of a classic recipe. Default: --epochs.",
    ),
    _network("classifier-", "classifier"),
    click.option(
        "--classifier-batch-size",
        type=Count(most=10**8),
        default=None,
        help="Rows per training step. Default: --batch-size.",
    ),
    _training("classifier-"),
    click.option(
        "--classifier-low-noise",
        type=float,
        default=None,
        help="As --low-noise.",
    ),
)
