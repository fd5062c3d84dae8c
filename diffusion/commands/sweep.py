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
from ..progress import note, silence
from ..sweeps import Sweep, SweepRun, read_grid, settings_of
from ..sweeps.best import check_best
from ..sweeps.groups import part_of, trainings_of
from ..sweeps.plan import plan_of
from ..sweeps.shards import this_part
from ..sweeps.store import SweepFolder
from .data_choice import DataChoice
from .of_run import files_of_data, source_of
from .points import read_points


def run_sweep(
    *,
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
    figure_format: str,
    device: str | None,
) -> None:
    """Trains and measures all combinations of some values, and prints their table."""
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
    sweep = Sweep(points, factors, samples, names, real_draws, source_of(data), progress=not quiet)
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
        part=part, best=best, figure_format=figure_format, say=say, quiet=quiet,
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
