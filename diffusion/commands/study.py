"""``flashpoint study``: a grid of models, each number beside the perfect and the published one."""

from pathlib import Path

import click

from .. import files
from ..errors import UserError, check_choice
from ..studies import STUDIES, StudyRun, write_page, write_report
from . import Count, DataName, PathName, device_option, options, out_option, seed_option
from .of_run import check_outputs, files_of_data


@click.command(name="study")
@click.argument("name", required=False)
@click.option(
    "--quick", is_flag=True, help="Reduce the study to less than five minutes on two CPU cores."
)
@click.option(
    "--data",
    type=DataName(),
    default=None,
    help="Data set in place of the study's: a name, a file of points, or FashionMNIST's folder.",
)
@click.option(
    "--together",
    type=Count(),
    default=None,
    help="Models that train at once. Default: all of one kind on a GPU, one on a CPU.",
)
@click.option(
    "--page",
    type=PathName(),
    default=None,
    help="Markdown file to write about every study in --out.",
)
@options(
    out_option(
        "Folder of all studies; work that it holds is not done again. Default: runs/studies, with "
        "--quick runs/studies-quick."
    ),
    seed_option,
    device_option,
)
def study_command(
    name: str | None,
    quick: bool,
    data: str | None,
    together: int | None,
    page: Path | None,
    out: Path | None,
    seed: int,
    device: str | None,
) -> None:
    """Train, draw and measure a grid of models, in published settings.

    NAME is one of timesteps, betas, schedules, epochs, complexity, guidance, reward, digits,
    predictions. The same command continues an interrupted study.
    """
    if name is None and page is None:
        raise UserError(f"NAME must be one of {', '.join(STUDIES)}, got none")
    if page is not None:
        files.make_target(page, ".md")
    replaced = check_outputs([] if page is None else [page], files_of_data(data or ""))
    out = out or Path("runs") / ("studies-quick" if quick else "studies")
    if name is not None:
        check_choice("NAME", name, STUDIES)
        study = STUDIES[name] if data is None else STUDIES[name].on(data)
        study = study.quick() if quick else study
        run = StudyRun(study, out, seed=seed, device=device, together=together, say=click.echo)
        write_report(run, run.run())
        click.echo((run.folder / "table.md").read_text(encoding="utf-8"))
        click.echo(f"everything is in {run.folder}")
    if page is not None:
        write_page(tuple(STUDIES.values()), out, page)
        click.echo(f"the page of all studies is {page}{replaced}")
