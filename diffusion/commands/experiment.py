"""``flashpoint states`` and ``flashpoint train``: an experiment in a folder, or its training."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .. import files
from ..choices import DATASETS
from ..data import Points
from ..device import choose_device
from ..errors import UserError
from ..experiment import Run, check_measurable
from ..initial import Initial, load_initial
from ..interrupts import exit_code, word_for
from ..logs import check_logs
from ..metrics import summary
from ..progress import note, silence
from ..run_folder import RunFolder
from ..settings import Settings
from ..training import Recipe
from ..training.distributed import join
from .config_file import ConfigFile, read_config
from .data_choice import DataChoice, Remembered
from .of_run import choice_to_go_on, files_of_data, parts_of_data, source_of
from .points import read_points
from .settings import settings_of


def run_states(**options: Any) -> None:
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


def run_train(**options: Any) -> None:
    """Trains a denoiser, and a classifier if the data has labels."""
    run = _start(measures=False, **options)
    with _resumable(run):
        run.train()
    if run.ranks.writes:
        click.echo(f"checkpoints are in {run.folder.checkpoints}")


def _start(
    *, measures, config, data, test_fraction, validation_fraction, init, out, resume, overwrite,
    quiet, checkpoint_every, log, device, quick, figure_format, **options,
) -> Run:  # fmt: skip
    """Makes the run that the options of the command line describe.

    ``measures`` says whether the samples are to be measured, for which data may be too few.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    check_logs(log)
    ranks, device = join(device)
    say = click.echo if ranks.writes and not quiet else silence
    chosen, file = choose_device(device), read_config(config)
    known = _data_of(file, data, test_fraction, validation_fraction)
    settings = settings_of(file, quick=quick, data=known.choice.name, **options)
    if out is not None:  # before a large file is read
        _check_folder(RunFolder(out), known.choice.name, keeps=not (resume or overwrite))
    if resume:
        choice = choice_to_go_on(known.choice, out or _default_folder(known.choice.name))
        known = known._replace(choice=choice)
    initial = _initial(init, file)
    known, whole = _points(known, initial, note if say is click.echo else silence)
    if file.whole and known == file.data() and (init is None or file.has_units_of(whole)):
        file.check_points(parts_of_data(whole, known, file.seed)[0])
    points, validation, _ = parts_of_data(whole, known, settings.seed)
    if measures:
        check_measurable(points)
    folder = out or Path("runs") / points.name.lower()
    _check_apart(folder, initial)
    _check_folder(RunFolder(folder), known.choice.name, keeps=not (resume or overwrite))
    run = Run(
        points,
        settings,
        folder,
        device=chosen,
        validation=validation,
        initial=initial,
        resume=resume,
        overwrite=overwrite,
        source=source_of(*known),
        checkpoint_every=checkpoint_every,
        logs=log,
        say=say,
        quiet=quiet,
        ranks=ranks,
        figure_format=figure_format,
    )
    if ranks.size > 1:
        say(f"{ranks.size} ranks share each batch and the samples")
    if quick:
        say(_quick(settings))
    return run


def _check_apart(folder: Path, initial: Initial | None) -> None:
    """Raises :class:`UserError` if a run is to start from the weights in its own folder."""
    if initial is not None and files.same_file(folder, initial.path):
        raise UserError(f"--init must be another run than that of --out, got {initial.path}")


def _default_folder(data: str) -> Path:
    return Path("runs") / Path(data).stem.lower()


def _data_of(
    file: ConfigFile,
    choice: DataChoice,
    test_fraction: float | None,
    validation_fraction: float | None,
) -> Remembered:
    """Returns the data that the options choose, and what a file says where they leave it open."""
    known = file.data()
    own = known or Remembered(choice)
    if not choice.name and known is None:
        if file.whole:
            raise UserError(f"file {file.path} does not say where its data are: give --data")
        choice = replace(choice, name="states")
    elif not choice.name:
        choice = DataChoice(
            own.choice.name,
            own.choice.only_class if choice.only_class is None else choice.only_class,
            choice.labels or own.choice.labels,
            choice.standardise and own.choice.standardise,
        )
    test = own.test_fraction if test_fraction is None else test_fraction
    validation = own.validation_fraction if validation_fraction is None else validation_fraction
    return Remembered(choice, test, validation)


def _initial(init: Path | None, file: ConfigFile) -> Initial | None:
    """Returns the weights that an option names, or else a file; None where there are none."""
    if init is not None:
        return load_initial(init)
    if file.initial is None:
        return None
    initial = load_initial(file.initial)
    file.check_initial(initial)
    return initial


def _points(
    known: Remembered, initial: Initial | None, say: Callable[[str], None]
) -> tuple[Remembered, Points]:
    """Returns the data, read in the units of the run whose weights are the initial ones, if any."""
    if initial is None:
        return known, read_points(known.choice, say)
    choice, map_, line = known.choice, initial.standardisation, ""
    if map_ is None and choice.name not in DATASETS and choice.standardise:
        line = (
            f"the numbers of {choice.name} are taken as they are, as those of {initial.path} were"
        )
        choice = replace(choice, standardise=False)
    elif map_ is not None and not choice.standardise:
        raise UserError(
            f"--no-standardise must be left out with --init {initial.path}, whose networks know "
            "points standardised"
        )
    elif map_ is not None:
        line = f"the data are mapped as those of {initial.path} were: {map_}"
    points = read_points(choice, say, map_)
    if line:
        say(line)
    return known._replace(choice=choice), points


def _quick(settings: Settings) -> str:
    """Says what a quick run does."""
    steps, classifier_steps = (
        recipe.steps
        for recipe in (settings.denoiser, settings.classifier)
        if isinstance(recipe, Recipe)
    )
    return (
        f"quick: {steps} training steps, {classifier_steps} of the classifier, "
        f"{settings.sampling_steps} of {settings.schedule.num_steps} reverse steps\n"
        "quick: too short a training for fine outlines, which blur; leave out --quick for them"
    )


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
