"""``flashpoint export``: a run's networks in the formats of other programs."""

from pathlib import Path

import click

from .. import files
from ..checkpoints import load
from ..choices import EXPORTS
from ..export import export_model
from ..run_folder import RunFolder
from .of_run import check_outputs, data_files_of, files_of_run, place_of, say_unfinished


def export_run(
    *,
    run: Path,
    format_: str,
    out: Path | None,
) -> None:
    """Writes a run's networks in the format of another program, and checks each by running it."""
    denoiser = load(run)
    say_unfinished(run)
    folder = files.make_folder(out or place_of(run) / RunFolder(run).exports.name)
    models = {"denoiser": denoiser.model, "classifier": denoiser.classifier}
    paths = {
        folder / f"{name}{EXPORTS[format_]}": model
        for name, model in models.items()
        if model is not None
    }
    replaced = check_outputs(paths, [*files_of_run(run), *data_files_of(run)])
    for path, model in paths.items():
        difference = export_model(
            model,
            denoiser.schedule,
            format_,
            path,
            standardisation=denoiser.standardisation,
            class_names=denoiser.class_names,
        )
        click.echo(f"{path}{replaced}: differs from the network by {difference:.1e} at most")
