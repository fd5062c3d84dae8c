"""``flashpoint view``: the reverse process of a run as a page."""

from pathlib import Path

import click

from ..progress import silence
from ..run_folder import RunFolder
from ..viewer import write_view
from .data_choice import DataChoice
from .of_run import (
    check_outputs,
    check_run,
    data_files_of,
    files_of_run,
    points_of_run,
    say_unfinished,
)


def view_run(
    *,
    run: Path,
    samples: int,
    out: Path | None,
    data: DataChoice,
    other_data: bool,
    quiet: bool,
    seed: int,
    device: str | None,
) -> None:
    """Writes the page that shows a run's reverse process."""
    check_run(run)
    points = points_of_run(run, data, other_data)
    page = out or RunFolder(run).view_page
    replaced = check_outputs([page], [*files_of_run(run), *data_files_of(run, data)])
    say_unfinished(run)
    path = write_view(
        run, points, samples=samples, seed=seed, device=device, save_to=page,
        other_data=other_data, say=silence if quiet else click.echo,
    )  # fmt: skip
    click.echo(f"the page is {path}{replaced}: open it in a browser")
