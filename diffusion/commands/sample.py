"""``flashpoint sample``: draws samples from a run, or draws a saved file of samples again."""

from pathlib import Path

import click
import torch
from torch import Tensor

from .. import files, plots
from ..checkpoints import load
from ..data import load_points, read_content
from ..errors import UserError
from ..reverse_steps import VARIANCES
from ..run_folder import RunFolder
from ..sampling import METHODS
from ..solvers import SOLVERS
from . import Count, device_option, options, out_option, seed_option
from .of_run import check_outputs, files_of_run, say_unfinished


@click.command(name="sample")
@click.argument("run", type=click.Path(path_type=Path))
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
    help="All but ddpm are deterministic, ddim with --eta 0. "
    f"{', '.join(SOLVERS)} need 10 to 50 --steps.",
)
@click.option("--eta", default=0.0, show_default=True, help="Noise of ddim, 0 to 1.")
@click.option(
    "--variance",
    type=click.Choice(VARIANCES),
    default=None,
    help="Noise of ddpm. Default: posterior, but none with --prior.",
)
@click.option("--steps", type=Count(), default=None, help="Reverse steps. Default: all.")
@click.option(
    "--prior",
    type=click.Path(path_type=Path),
    default=None,
    help="File with the noise x_T to start from, .pt, .npy, .npz or .csv.",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    default=None,
    help="File of samples that must come out again, bit for bit. Without --out none are written.",
)
@options(
    out_option("File for the samples, .pt; a figure is written beside it."),
    seed_option,
    device_option,
)
def sample_command(
    run, samples, label, scale, method, eta, variance, steps, prior, compare, out, seed, device
) -> None:
    """Draw samples from the networks of a run's folder, or of a model's file.

    With --prior and the default method every step is deterministic (z = 0), so that the
    checkpoint and the prior alone decide the samples.
    """
    denoiser = load(run)
    label = None if label is None else denoiser.label(label)
    chosen = {} if label is None else {"label": label}
    if scale is not None:
        if label is None:
            raise UserError("--scale needs a --label")
        chosen["scale"] = scale
    if prior is not None:
        if samples is not None:
            raise UserError("--samples and --prior exclude each other: a sample for each row")
        chosen["x_T"] = load_points(prior, say=lambda _: None).data
        samples = len(chosen["x_T"])
    expected = None if compare is None else torch.from_numpy(read_content(compare).data)
    out = _target(run, label, out, [*files_of_run(run), prior, compare], checks=compare is not None)
    say_unfinished(run)
    x = denoiser.sample(
        5000 if samples is None else samples,
        seed=seed,
        method=method,
        eta=eta,
        variance=variance or ("posterior" if prior is None else "none"),
        num_steps=steps,
        device=device,
        **chosen,
    ).x.cpu()
    if expected is not None:
        _compare(x.double(), expected, compare)
    if out is None:
        return
    picture = out.with_suffix(".png")
    replaced = " (in place of what was there)" if out.exists() else ""
    files.save(out, x)
    plots.scatter(x, save_to=picture)
    click.echo(f"{len(x)} samples are in {out}, their picture in {picture}{replaced}")


def _target(
    run: Path, label: int | None, out: Path | None, inputs: list[Path | None], *, checks: bool
) -> Path | None:
    """Returns the file for the samples; None where they are only compared with others."""
    if out is None and checks:
        return None
    name = "samples.pt" if label is None else f"samples_{label}.pt"
    out = out or (RunFolder(run).outputs if run.is_dir() else run.parent) / name
    files.make_target(out, ".pt")
    check_outputs([out, out.with_suffix(".png")], inputs)
    return out


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
