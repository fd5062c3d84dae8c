"""``flashpoint study``: a grid of models, each number beside the perfect and the published one."""

from pathlib import Path

import click

from .. import files
from ..errors import UserError
from ..progress import silence
from ..studies import STUDIES, StudyRun, write_page, write_report
from .of_run import check_outputs, files_of_data


def run_study(
    *,
    name: str | None,
    quick: bool,
    data: str | None,
    together: int | None,
    page: Path | None,
    out: Path | None,
    figure_format: str,
    quiet: bool,
    seed: int,
    device: str | None,
) -> None:
    """Trains, draws and measures a grid of models, and writes its report."""
    if name is None and page is None:
        raise UserError(f"NAME must be one of {', '.join(STUDIES)}, got none")
    if page is not None:
        files.make_target(page, ".md")
    replaced = check_outputs([] if page is None else [page], files_of_data(data or ""))
    out = out or Path("runs") / ("studies-quick" if quick else "studies")
    if name is not None:
        study = STUDIES[name] if data is None else STUDIES[name].on(data)
        study = study.quick() if quick else study
        run = StudyRun(
            study, out, seed=seed, device=device, together=together,
            say=silence if quiet else click.echo, quiet=quiet,
        )  # fmt: skip
        write_report(run, run.run(), figure_format)
        click.echo((run.folder / "table.md").read_text(encoding="utf-8"))
        click.echo(f"everything is in {run.folder}")
    if page is not None:
        write_page(tuple(STUDIES.values()), out, page)
        click.echo(f"the page of all studies is {page}{replaced}")
