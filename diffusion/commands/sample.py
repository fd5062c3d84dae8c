"""``flashpoint sample``: draws samples from a run, or draws a saved file of samples again."""

from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from .. import plots
from ..checkpoints import Denoiser, load
from ..data import read_content
from ..errors import UserError
from ..reverse_steps import VARIANCES
from ..run_folder import RunFolder
from ..sampling import METHODS
from ..solvers import SOLVERS
from ..spacings import SPACINGS
from . import Count, PathName, device_option, options, out_option, seed_option
from .of_run import check_outputs, data_files_of, files_of_run, say_unfinished
from .sample_files import SAMPLE_FILES, sample_target, write_samples

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
    type=click.Choice(tuple(METHODS)),
    default="ddpm",
    show_default=True,
    help="All but ddpm and edm are deterministic, ddim with --eta 0. "
    f"{', '.join(SOLVERS)} need 10 to 50 --steps.",
)
@click.option("--eta", type=float, default=None, help="Noise of ddim, 0 to 1. Default: 0.")
@click.option(
    "--variance",
    type=click.Choice(VARIANCES),
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
    type=click.Choice(tuple(SPACINGS)),
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
    seed_option,
    device_option,
)
def sample_command(
    run, samples, label, scale, method, eta, variance, num_steps, spacing, timesteps, init, start,
    prior, compare, out, seed, device, **noise,
) -> None:  # fmt: skip
    """Draw samples from the networks of a run's folder, or of a model's file.

    With --prior and the default method every step is deterministic (z = 0), so that the
    checkpoint and the prior alone decide the samples.

    With --init and --from each sample resembles a point of a file: the chain starts from the point
    with the noise of a timestep, between 0, which leaves it as it is, and the last, which leaves
    nothing of it (SDEdit, Meng et al. 2022).
    """
    denoiser = load(run)
    label = None if label is None else denoiser.label(label)
    chosen = {} if label is None else {"label": label}
    if scale is not None:
        if label is None:
            raise UserError("--scale needs a --label")
        chosen["scale"] = scale
    if timesteps is not None:
        chosen["timesteps"] = _timesteps(timesteps)
    chosen |= _start_of(prior, init, start, bool(timesteps))
    count = _count(samples, chosen)
    if prior is not None and method == "ddpm":
        variance = variance or "none"
    expected = None if compare is None else _read(compare)
    inputs = [*files_of_run(run), *data_files_of(run), prior, init, compare]
    replaced = ""
    if out is not None or compare is None:
        out = sample_target(out or _place_of(run, label))
        replaced = check_outputs([out, out.with_suffix(".png")], inputs)
    say_unfinished(run)
    x = denoiser.sample(
        count,
        seed=seed,
        method=method,
        eta=eta,
        variance=variance,
        num_steps=num_steps,
        spacing=spacing,
        device=device,
        **noise,
        **chosen,
    ).x.cpu()
    if expected is not None:
        _compare(x.double(), expected, compare)
    if out is None:
        return
    picture = out.with_suffix(".png")
    write_samples(out, x, _class_of(denoiser, label))
    plots.scatter(x, save_to=picture)
    click.echo(f"{len(x)} samples are in {out}, their picture in {picture}{replaced}")


def _place_of(run: Path, label: int | None) -> Path:
    """Returns the file for the samples where the user names none."""
    name = "samples.pt" if label is None else f"samples_{label}.pt"
    return (RunFolder(run).outputs if run.is_dir() else run.parent) / name


def _timesteps(text: str) -> list[int]:
    try:
        return [int(t) for t in text.split(",")]
    except ValueError as error:
        raise UserError(f"--timesteps must be numbers like 499,300,0, got {text!r}") from error


def _start_of(
    prior: Path | None, init: Path | None, start: int | None, listed: bool
) -> dict[str, Any]:
    """Returns the options of :func:`~flashpoint.diffusion.sample` that say where chains start."""
    if init is not None and prior is not None:
        raise UserError("--init and --prior exclude each other: both are where the chain starts")
    if init is not None and start is None and not listed:
        raise UserError("--init needs --from, the timestep whose noise is added to the points")
    if start is not None and init is None and prior is None:
        raise UserError("--from needs --init or --prior, the points to start from")
    given = {"x_T": prior, "init": init}
    points = {name: _read(path) for name, path in given.items() if path is not None}
    return points if start is None else points | {"start": start}


def _read(path: Path) -> Tensor:
    """Returns the points of a file, float64 [n, d], in its units."""
    return torch.from_numpy(read_content(path).data)


def _class_of(denoiser: Denoiser, label: int | None) -> str | int | None:
    """Returns the name of a class, or its number where classes have no names."""
    return label if label is None or not denoiser.class_names else denoiser.class_names[label]


def _count(samples: int | None, chosen: dict[str, Any]) -> int:
    """Returns the number of samples: one for each point that a chain starts from, if there are."""
    for option, name in (("--prior", "x_T"), ("--init", "init")):
        if name in chosen:
            if samples is not None:
                raise UserError(f"--samples and {option} exclude each other: a sample for each row")
            return len(chosen[name])
    return 5000 if samples is None else samples


def _compare(x: Tensor, saved: Tensor, path: Path) -> None:
    """Raises :class:`UserError` unless the samples are the saved ones, bit for bit."""
    if x.shape != saved.shape:
        raise UserError(f"samples are {list(x.shape)}, those of {path} {list(saved.shape)}")
    if not torch.equal(x, saved):
        rows = (x != saved).any(dim=1).sum().item()
        raise UserError(
            f"samples differ from {path} in {rows} of {len(x)} rows, "
            f"by up to {(x - saved).abs().max().item():.2g}"
        )
    click.echo(f"they equal {path} bit for bit")
