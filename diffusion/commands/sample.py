"""``flashpoint sample``: draws samples from a run, or draws a saved file of samples again."""

from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from ...kernels.workers import rows_for_all
from .. import plots
from ..chains import scale_in_force
from ..checkpoints import Denoiser, load
from ..data import read_content
from ..device import choose_device
from ..errors import UserError
from ..models import ConditionalMLP
from ..run_folder import RunFolder
from .of_run import check_outputs, data_files_of, files_of_run, place_of, say_unfinished
from .sample_files import sample_target, write_samples


def draw_samples(
    *,
    run: Path,
    samples: int | None,
    label: str | None,
    scale: float | None,
    method: str,
    eta: float | None,
    variance: str | None,
    num_steps: int | None,
    spacing: str | None,
    timesteps: str | None,
    init: Path | None,
    start: int | None,
    prior: Path | None,
    compare: Path | None,
    out: Path | None,
    figure_format: str,
    quiet: bool,
    seed: int,
    device: str | None,
    **noise: float | None,
) -> None:
    """Draws samples from the networks of a run, and writes them with a picture beside them."""
    denoiser = load(run)
    number = None if label is None else _number_of(run, denoiser, label)
    chosen: dict[str, Any] = {} if number is None else {"label": number}
    if scale is not None:
        if number is None:
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
        out = sample_target(out or _place_of(run, number))
        replaced = check_outputs([out, out.with_suffix(f".{figure_format}")], inputs)
    say_unfinished(run)
    x = denoiser.sample(
        count,
        seed=seed,
        method=method,
        eta=eta,
        variance=variance,
        num_steps=num_steps,
        spacing=spacing,
        batch_size=_batch_size(device),
        device=device,
        progress=not quiet,
        **noise,
        **chosen,
    ).x.cpu()
    if expected is not None and compare is not None:
        _compare(x.double(), expected, compare)
    if out is None:
        return
    picture = out.with_suffix(f".{figure_format}")
    write_samples(out, x, _class_of(denoiser, number))
    plots.scatter(x, title=_title(denoiser, number, scale), save_to=picture)
    click.echo(f"{len(x)} samples are in {out}, their picture in {picture}{replaced}")


def _number_of(run: Path, denoiser: Denoiser, label: str) -> int:
    """Returns the number of a class by its name or number.

    Raises:
        ValueError: there is no such class, or RUN is the file of a network whose classifier lies
            beside it.
    """
    guided = not isinstance(denoiser.model, ConditionalMLP)
    if guided and not run.is_dir() and run.with_stem("classifier").is_file():
        raise UserError(
            f"--label needs the classifier, and {run} holds the denoiser alone: give "
            f"{place_of(run)}"
        )
    return denoiser.label(label)


def _batch_size(device: str | None) -> int:
    """Returns the rows to sample at once; on a CPU so few that the bar moves every few seconds."""
    return rows_for_all() if choose_device(device).type == "cpu" else 100_000


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


def _title(denoiser: Denoiser, label: int | None, scale: float | None) -> str:
    """Returns class and guidance scale as the title of a figure; nothing for all classes."""
    if label is None:
        return ""
    name = denoiser.class_names[label] if denoiser.class_names else f"class {label}"
    guided = not isinstance(denoiser.model, ConditionalMLP)
    return f"{name}, guidance scale {scale_in_force(scale, guided=guided):g}"


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
