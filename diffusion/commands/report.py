"""``flashpoint report``: all figures and metrics of a run in two files."""

from pathlib import Path

import click

from ..progress import silence
from ..report import write_report
from ..run_folder import RunFolder
from .data_choice import DataChoice
from .of_run import check_outputs, check_run, data_files_of, points_of_run, say_unfinished


def report_run(
    *,
    run: Path,
    real_draws: int,
    figure_format: str,
    data: DataChoice,
    other_data: bool,
    quiet: bool,
    seed: int,
    device: str | None,
) -> None:
    """Writes a run's report."""
    check_run(run)
    points = points_of_run(run, data, other_data)
    folder = RunFolder(run)
    replaced = check_outputs([folder.report_markdown, folder.report_page], data_files_of(run, data))
    say_unfinished(run)
    targets = write_report(
        run, points, real_draws=real_draws, seed=seed, device=device, other_data=other_data,
        figure_format=figure_format, say=silence if quiet else click.echo,
    )  # fmt: skip
    click.echo(f"the report is {' and '.join(map(str, targets))}{replaced}")
