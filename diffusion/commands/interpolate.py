"""``flashpoint interpolate``: points between two data points, through the model's noise."""

from pathlib import Path

import click
import torch
from torch import Tensor

from .. import files, plots
from ..checkpoints import load
from ..data import Points
from ..errors import UserError
from ..latents import interpolate
from ..run_folder import RunFolder
from .data_choice import DataChoice
from .of_run import (
    check_outputs,
    data_files_of,
    files_of_run,
    place_of,
    points_of_run,
    say_unfinished,
)


def interpolate_data(
    *,
    run: Path,
    pairs: int,
    between: tuple[int, int] | None,
    count: int,
    steps: int | None,
    out: Path | None,
    figure_format: str,
    data: DataChoice,
    other_data: bool,
    seed: int,
    quiet: bool,
    device: str | None,
) -> None:
    """Writes ways between data points, and their picture."""
    points = points_of_run(run, data, other_data)
    denoiser = load(run)
    if denoiser.model.shape.widths[-1] != points.dim:
        raise UserError(
            f"run {run} was trained on dimension {denoiser.model.shape.widths[-1]}, "
            f"{points.name} has {points.dim}"
        )
    outputs = place_of(run) / RunFolder(run).outputs.name
    out = files.make_target(out or outputs / "interpolation.pt", ".pt")
    picture = out.with_suffix(f".{figure_format}")
    replaced = check_outputs([out, picture], [*files_of_run(run), *data_files_of(run, data)])
    say_unfinished(run)
    rows = _rows(points, pairs, between, seed)
    a, b = points.data[rows[0]], points.data[rows[1]]
    ways = interpolate(
        denoiser.model, denoiser.schedule, a, b, count=count, num_steps=steps, device=device,
        progress=not quiet,
    ).cpu()  # fmt: skip
    error = torch.stack((ways[0] - a, ways[-1] - b)).abs().max().item()
    files.save(out, points.in_units(ways))
    plots.interpolation(ways, points, picture)
    click.echo(
        f"{ways.shape[1]} ways are in {out}, their picture in {picture}{replaced}; "
        f"their ends are {error:.1g} from the data"
    )


def _rows(points: Points, pairs: int, between: tuple[int, int] | None, seed: int) -> Tensor:
    """Returns the rows of the data at both ends of each way, int64 [2, pairs]."""
    if between is not None:
        if not 0 <= min(between) <= max(between) < len(points):
            raise UserError(f"between must be rows from 0 to {len(points) - 1}, got {between}")
        return torch.tensor(between)[:, None]
    if not 1 <= pairs <= len(points) // 2:
        raise UserError(f"pairs must be from 1 to {len(points) // 2}, got {pairs}")
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    return order[: 2 * pairs].view(2, -1)
