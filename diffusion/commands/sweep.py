"""``flashpoint sweep``: all combinations of some values, each metric beside real data's."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from .. import files
from ..device import choose_device, own_device
from ..errors import UserError
from ..interrupts import exit_code, word_for
from ..metrics.bands import MOST_DRAWS
from ..progress import silence
from ..sweeps import Sweep, SweepRun, read_grid, settings_of
from ..sweeps.best import check_best
from ..sweeps.groups import part_of, trainings_of
from ..sweeps.plan import plan_of
from ..sweeps.shards import this_part
from ..sweeps.store import SweepFolder
from . import (
    Count,
    DataChoice,
    PathName,
    data_option,
    device_option,
    note,
    options,
    out_option,
    read_points,
)
from .of_run import files_of_data, source_of


@click.command(name="sweep")
@data_option
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE,VALUE",
    help="Values of a key, to be combined with those of all others: lr=1e-3,3e-3, hidden=64x3,"
    "128-128, prediction=eps,v,flow, seed=0..9.",
)
@click.option(
    "--file", "grid", type=PathName(), default=None, help="File of TOML with a table [set]."
)
@click.option(
    "--samples",
    type=Count(2, 10**8),
    default=2000,
    show_default=True,
    help="Samples that each model is measured by.",
)
@click.option(
    "--metrics",
    default=None,
    help="Metrics by name, with commas, as in kde_nll,mmd,emd. Default: those of every evaluation "
    "and the likelihood.",
)
@click.option(
    "--real-draws",
    type=Count(2, MOST_DRAWS),
    default=40,
    show_default=True,
    help="Real draws behind each metric's band.",
)
@click.option(
    "--together",
    type=Count(),
    default=None,
    help="Networks that train at once. Default: as many as memory, or a CPU's cache, holds.",
)
@click.option(
    "--best",
    default=None,
    metavar="METRIC",
    help="Leave the best model by a metric, the one nearest to real data, as the run "
    "best-<metric> in the folder.",
)
@click.option(
    "--shard",
    default=None,
    metavar="K/N",
    help="Do the K-th of N parts, as 3/16; all parts take the same --out. torchrun shares out the "
    "models over its ranks in the same way.",
)
@click.option("--dry-run", is_flag=True, help="Say what the sweep will take, and do nothing.")
@click.option("--resume", is_flag=True, help="Continue an interrupted sweep, or add values to it.")
@click.option(
    "--overwrite", is_flag=True, help="Delete the sweep that the folder holds, and start anew."
)
@click.option("--quiet", is_flag=True, help="Show no progress, only what comes of it.")
@options(out_option("Folder of the sweep. Default: runs/sweep-<name of the data>."), device_option)
def sweep_command(
    data: DataChoice,
    settings: tuple[str, ...],
    grid: Path | None,
    samples: int,
    metrics: str | None,
    real_draws: int,
    together: int | None,
    best: str | None,
    shard: str | None,
    dry_run: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    out: Path | None,
    device: str | None,
) -> None:
    """Train and measure all combinations of some values.

    A key is a setting of the training (lr, steps, hidden, batch_size, weighting ...), of the
    schedule (schedule, timesteps, prediction, beta_end ...) or of the sampling (method,
    sampling_steps ...), the recipe, or the seed. Networks of one shape train in the same launches.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    factors = ({} if grid is None else read_grid(grid)) | settings_of(settings)
    if not factors:
        raise UserError("--set must be given at least once, as in --set lr=1e-3,3e-3, or --file")
    part, chosen = this_part(shard), choose_device(own_device(device))
    quiet = quiet or int(os.environ.get("RANK", "0")) > 0  # of torchrun's ranks the first one talks
    say = silence if quiet else click.echo
    points = read_points(data, silence if quiet else note)
    names = None if metrics is None else [name.strip() for name in metrics.split(",")]
    sweep = Sweep(
        points, factors, samples, names, real_draws, source_of(data, None), progress=not quiet
    )
    check_best(best, sweep.metrics or ())
    out = out or Path("runs") / f"sweep-{points.name.lower()}"
    folder = SweepFolder(out, sweep)
    for path in (*folder.own_files(), folder.config_file):
        files.check_apart(path, grid, *files_of_data(data.name))
    if dry_run:
        trainings = part_of(trainings_of(sweep), *part)
        click.echo(plan_of(sweep, trainings, chosen, together, progress=not quiet).to_markdown())
        return
    run = SweepRun(
        sweep, out, device=chosen, together=together, resume=resume, overwrite=overwrite,
        part=part, best=best, say=say, quiet=quiet,
    )  # fmt: skip
    with _resumable(run):
        table = run.run()
    if len(table) < len(sweep.models):
        return  # what another part has yet to do
    click.echo(table.to_markdown())
    if points.unit_of_distances:
        click.echo(points.unit_of_distances)
    click.echo(f"everything is in {out}")


@contextmanager
def _resumable(run: SweepRun) -> Iterator[None]:
    """Says how a sweep that is told to stop goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        done = sum(map(run.folder.has_result, run.models))
        click.echo(
            f"\n{word_for(stop)} with {done} of {len(run.models)} models finished; the same "
            "command with --resume goes on",
            err=True,
        )
        sys.exit(exit_code(stop))
