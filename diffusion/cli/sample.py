"""``flashpoint sample``: draws samples from a run, or draws a saved file of samples again."""

import click

from ..choices import METHODS, SAMPLE_FILES, SOLVERS, SPACINGS, VARIANCES
from .group import loading
from .options import (
    device_option,
    format_option,
    options,
    out_option,
    quiet_option,
    seed_option,
)
from .params import Count, OneOf, PathName

_NOISE_OF_EDM = {
    "s_churn": "Noise of edm: each of S steps raises sigma by 1 + min(this / S, 0.41). Default: 5",
    "s_tmin": "Lowest sigma that edm raises. Default: 0",
    "s_tmax": "Highest sigma that edm raises. Default: any",
    "s_noise": "Standard deviation of the noise of edm. Default: 1",
}


@click.command(name="sample")
@click.argument("run", type=PathName())
@click.option(
    "-n",
    "--samples",
    type=Count(most=10**8),
    default=None,
    help="Number of samples. Default: 5000.",
)
@click.option(
    "--label",
    default=None,
    metavar="CLASS",
    help="Class of the samples, a name or a number. Default: all classes.",
)
@click.option("--scale", type=float, default=None, help="Guidance scale, with --label.")
@click.option(
    "--method",
    type=OneOf(METHODS),
    default="ddpm",
    show_default=True,
    help="All but ddpm and edm are deterministic, ddim with --eta 0. "
    f"{', '.join(SOLVERS)} need 10 to 50 --steps.",
)
@click.option("--eta", type=float, default=None, help="Noise of ddim, 0 to 1. Default: 0.")
@click.option(
    "--variance",
    type=OneOf(VARIANCES),
    default=None,
    help="Noise of ddpm. Default: posterior, but none with --prior.",
)
@options(
    *(
        click.option(f"--{name.replace('_', '-')}", type=float, default=None, help=f"{text}.")
        for name, text in _NOISE_OF_EDM.items()
    )
)
@click.option(
    "--steps", "num_steps", type=Count(), default=None, help="Reverse steps. Default: all."
)
@click.option(
    "--spacing",
    type=OneOf(SPACINGS),
    default=None,
    help="Which timesteps the --steps are. Default: evenly spaced for ddpm and ddim, and as of "
    "karras for the others, from where x_t is not noise in all but name.",
)
@click.option(
    "--timesteps",
    default=None,
    metavar="T,T,...",
    help="The timesteps themselves, such as 499,300,100,0, in place of --steps, --spacing and "
    "--from.",
)
@click.option(
    "--init",
    type=PathName(),
    default=None,
    help="File of points that the samples shall resemble (SDEdit), with --from: noise is added to "
    "them, and taken away again.",
)
@click.option(
    "--from",
    "start",
    type=Count(0),
    default=None,
    help="Timestep to start from, with --init or --prior; of --init, more is left with less.",
)
@click.option(
    "--prior",
    type=PathName(),
    default=None,
    help="File with the noise x_T to start from, .pt, .npy, .npz or .csv.",
)
@click.option(
    "--compare",
    type=PathName(),
    default=None,
    help="File of samples that must come out again, bit for bit. Without --out none are written.",
)
@options(
    out_option(f"File for the samples, {', '.join(SAMPLE_FILES)}; a figure is written beside it."),
    quiet_option,
    format_option,
    seed_option,
    device_option,
)
def sample(**chosen) -> None:
    """Draw samples from the networks of a run's folder, or of a model's file.

    With --prior and the default method every step is deterministic (z = 0), so that the
    checkpoint and the prior alone decide the samples.

    With --init and --from each sample resembles a point of a file: the chain starts from the point
    with the noise of a timestep, between 0, which leaves it as it is, and the last, which leaves
    nothing of it (SDEdit, Meng et al. 2022).
    """
    with loading():
        from ..commands.sample import draw_samples
    draw_samples(**chosen)
