"""``flashpoint states`` and ``flashpoint train``: an experiment in a folder, or its training."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from .. import files
from ..device import choose_device
from ..errors import UserError
from ..experiment import Run, check_measurable
from ..interrupts import exit_code, word_for
from ..metrics import summary
from ..progress import note, silence
from ..run_folder import RunFolder
from ..training import Recipe
from ..training.distributed import join
from .of_run import choice_to_go_on, files_of_data, source_of
from .points import read_points
from .settings import settings_of


def run_states(**options) -> None:
    """Trains, draws samples, measures them and draws the figures."""
    run = _start(measures=True, **options)
    with _resumable(run):
        run.train()
        samples = run.generate()
        if not run.ranks.writes:
            return
        run.say("measuring the samples against real draws of the data ...")
        results = run.measure(samples)
        run.draw(samples)
    click.echo(summary(results))
    if run.points.unit_of_distances:
        click.echo(run.points.unit_of_distances)
    click.echo(f"{sum(run.seconds.values()):.0f} s; everything is in {run.folder}")


def run_train(**options) -> None:
    """Trains a denoiser, and a classifier if the data has labels."""
    run = _start(measures=False, **options)
    with _resumable(run):
        run.train()
    if run.ranks.writes:
        click.echo(f"checkpoints are in {run.folder.checkpoints}")


def _start(
    *, measures, data, test_fraction, out, resume, overwrite, quiet, checkpoint_every, device,
    quick, **options,
) -> Run:  # fmt: skip
    """Makes the run that the options of the command line describe.

    ``measures`` says whether the samples are to be measured, for which data may be too few.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    ranks, device = join(device)
    say = click.echo if ranks.writes and not quiet else silence
    chosen = choose_device(device)
    settings = settings_of(quick=quick, data=data.name, **options)
    if out is not None:  # before a large file is read
        _check_folder(RunFolder(out), data.name, keeps=not (resume or overwrite))
    if resume:
        data = choice_to_go_on(data, out or Path("runs") / Path(data.name).stem.lower())
    points = read_points(data, note if ranks.writes and not quiet else silence)
    if test_fraction is not None:
        points = points.split(test_fraction, settings.seed)[0]
    if measures:
        check_measurable(points)
    folder = out or Path("runs") / points.name.lower()
    _check_folder(RunFolder(folder), data.name, keeps=not (resume or overwrite))
    run = Run(
        points,
        settings,
        folder,
        device=chosen,
        resume=resume,
        overwrite=overwrite,
        source=source_of(data, test_fraction),
        checkpoint_every=checkpoint_every,
        say=say,
        quiet=quiet,
        ranks=ranks,
    )
    if ranks.size > 1:
        say(f"{ranks.size} ranks share each batch and the samples")
    if quick:
        steps, classifier_steps = (
            recipe.steps
            for recipe in (settings.denoiser, settings.classifier)
            if isinstance(recipe, Recipe)
        )
        say(
            f"quick: {steps} training steps, {classifier_steps} of the classifier, "
            f"{settings.sampling_steps} of {settings.schedule.num_steps} reverse steps"
        )
    return run


def _check_folder(folder: RunFolder, data: str, *, keeps: bool) -> None:
    """Raises :class:`UserError` if a run there is to be kept, or a file there is of the user."""
    folder.check_settings_file()
    if keeps:
        folder.check_unused()
    for path in folder.own_files():
        files.check_apart(path, *files_of_data(data))


@contextmanager
def _resumable(run: Run) -> Iterator[None]:
    """Says how a run that is told to stop goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if run.ranks.writes:
            line = f"\n{word_for(stop)} {run.stage}; the same command with --resume goes on"
            click.echo(line, err=True)
        sys.exit(exit_code(stop))
