"""``flashpoint interpolate``: the way between two data points through the model's noise."""

from pathlib import Path

import click
import torch

from .. import files, plots
from ..checkpoints import load
from ..errors import UserError
from ..latents import interpolate
from . import data_option, device_option, options, out_option, read_points, seed_option


@click.command(name="interpolate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--pairs", default=8, show_default=True, help="Pairs of data points, at random.")
@click.option(
    "--between",
    type=(int, int),
    default=None,
    help="Instead: the rows of the data of one pair.",
)
@click.option("--count", default=9, show_default=True, help="Points on each way, with both ends.")
@click.option("--steps", type=int, default=None, help="Steps of DDIM. Default: all.")
@options(
    out_option("File for the ways [count, pairs, d], .pt; a figure goes beside it."),
    data_option,
    seed_option,
    device_option,
)
def interpolate_command(
    run, pairs, between, count, steps, out, data, only_class, seed, device
) -> None:
    """Go from one data point to another through the noise they come from.

    Both are taken to their noise by deterministic DDIM, backwards; points on the arc between lead
    to points between (figure 9 of Ho et al. 2020).
    """
    points, denoiser = read_points(data, only_class), load(run)
    if denoiser.model.shape.widths[-1] != points.dim:
        raise UserError(
            f"run {run} was trained on dimension {denoiser.model.shape.widths[-1]}, "
            f"{points.name} has {points.dim}"
        )
    out = files.make_target(out or run / "outputs" / "interpolation.pt", ".pt")
    if between is None:
        if not 1 <= pairs <= len(points) // 2:
            raise UserError(f"pairs must be from 1 to {len(points) // 2}, got {pairs}")
        order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
        rows = order[: 2 * pairs].view(2, -1)
    else:
        rows = torch.tensor(between)[:, None]
        if not 0 <= rows.min() <= rows.max() < len(points):
            raise UserError(f"between must be rows from 0 to {len(points) - 1}, got {between}")
    a, b = points.data[rows[0]], points.data[rows[1]]
    ways = interpolate(
        denoiser.model, denoiser.schedule, a, b, count=count, num_steps=steps, device=device
    ).cpu()
    error = torch.stack((ways[0] - a, ways[-1] - b)).abs().max().item()
    files.save(out, ways)
    plots.interpolation(ways, points, out.with_suffix(".png"))
    click.echo(
        f"{ways.shape[1]} ways are in {out}, their picture in {out.with_suffix('.png')}; "
        f"their ends are {error:.1g} from the data"
    )
