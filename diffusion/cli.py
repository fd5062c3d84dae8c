"""The ``flashpoint`` command."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from . import files
from .chains import METHODS
from .checkpoints import load
from .commands import (
    Commands,
    Count,
    PathName,
    data_option,
    device_option,
    network_of,
    network_options,
    note,
    options,
    read_points,
    seed_option,
)
from .commands.classify import classify_command
from .commands.data import data_command
from .commands.evaluate import evaluate_command
from .commands.info import info_command
from .commands.interpolate import interpolate_command
from .commands.of_run import (
    check_outputs,
    check_run,
    choice_to_go_on,
    data_files_of,
    files_of_data,
    files_of_run,
    place_of,
    points_of_run,
    run_data_option,
    say_unfinished,
    source_of,
)
from .commands.process import chooses_schedule, objective_of, process_options, schedule_of
from .commands.sample import sample_command
from .commands.study import study_command
from .commands.sweep import sweep_command
from .device import choose_device
from .errors import UserError, check_choice, check_integer
from .experiment import Run, Settings, check_measurable
from .export import SUFFIXES, export_model
from .interrupts import exit_code, word_for
from .metrics import summary
from .metrics.bands import MOST_DRAWS
from .progress import silence
from .report import write_report
from .run_folder import RunFolder
from .training import RECIPES, ClassicRecipe, Recipe
from .training.distributed import join
from .viewer import write_view


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flashpoint")
def main() -> None:
    """Train and sample small diffusion models of point clouds.

    Start with:  flashpoint states --quick
    """


_run_options = options(
    data_option,
    click.option(
        "--out",
        type=PathName(),
        default=None,
        help="Folder of the run. Default: runs/<name of the data>.",
    ),
    click.option(
        "--quick", is_flag=True, help="Reduce the run to about a minute on two CPU cores."
    ),
    click.option("--resume", is_flag=True, help="Continue an interrupted run."),
    click.option(
        "--overwrite", is_flag=True, help="Delete the run that the folder holds, and start anew."
    ),
    click.option("--quiet", is_flag=True, help="Show no progress, only what comes of it."),
    click.option(
        "--test-fraction",
        type=float,
        default=None,
        help="Part of the data that is held out of the training, at random.",
    ),
    click.option(
        "--recipe",
        default=None,
        help=f"Recipe of the training: {', '.join(RECIPES)}. The classic ones visit each pair of "
        "point and timestep once an epoch and take hours on a CPU. Default: states for the data "
        "set states, unless another schedule or prediction is chosen; else fast.",
    ),
    click.option("--epochs", type=Count(), default=None, help="Epochs of a classic recipe."),
    click.option("--steps", type=Count(), default=None, help="Training steps of the denoiser."),
    click.option(
        "--classifier-steps", type=Count(), default=None, help="Training steps of the classifier."
    ),
    click.option(
        "--batch-size", type=Count(most=10**8), default=None, help="Rows per training step."
    ),
    click.option(
        "--samples",
        type=Count(2, 10**8),
        default=None,
        help="Samples without guidance, and samples of each class.",
    ),
    process_options,
    click.option(
        "--method",
        default=None,
        help=f"How samples are drawn: {', '.join(METHODS)}. ddim is deterministic. Default: that "
        "of the recipe, edm in 50 steps for states, else ddpm.",
    ),
    click.option(
        "--reverse-steps",
        type=Count(),
        default=None,
        help="Steps of a sample. Default: those of the recipe with its own method, else all T.",
    ),
    click.option(
        "--scale", type=float, default=None, help="Guidance scale of the samples of each class."
    ),
    network_options,
    click.option(
        "--checkpoint-every",
        type=Count(),
        default=500,
        show_default=True,
        help="Training steps between two checkpoints.",
    ),
    seed_option,
    device_option,
)


@main.command()
@_run_options
def states(**options) -> None:
    """Run the whole experiment: train, sample, measure, draw.

    Trains a denoiser and a classifier, draws samples without guidance and guided to every class,
    measures them against the data and writes numbers, files and figures into the run's folder.
    """
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


@main.command()
@_run_options
def train(**options) -> None:
    """Train a denoiser, and a classifier if the data has labels."""
    run = _start(measures=False, **options)
    with _resumable(run):
        run.train()
    if run.ranks.writes:
        click.echo(f"checkpoints are in {run.folder.checkpoints}")


@main.command()
@click.argument("run", type=PathName())
@click.option(
    "--real-draws",
    type=Count(2, MOST_DRAWS),
    default=20,
    show_default=True,
    help="Real draws behind each metric's band.",
)
@options(run_data_option, seed_option, device_option)
def report(run, real_draws, data, other_data, seed, device) -> None:
    """Write report.md and report.html, with every figure and metric, into a run's folder."""
    check_run(run)
    points = points_of_run(run, data, other_data)
    folder = RunFolder(run)
    replaced = check_outputs([folder.report_markdown, folder.report_page], data_files_of(run, data))
    say_unfinished(run)
    targets = write_report(
        run, points, real_draws=real_draws, seed=seed, device=device, other_data=other_data,
        say=click.echo,
    )  # fmt: skip
    click.echo(f"the report is {' and '.join(map(str, targets))}{replaced}")


@main.command()
@click.argument("run", type=PathName())
@click.option(
    "-n",
    "--samples",
    type=Count(3, 10**6),
    default=1500,
    show_default=True,
    help="Samples without guidance.",
)
@click.option(
    "--out",
    type=PathName(),
    default=None,
    help="File of the page. Default: view.html in the run's folder.",
)
@options(run_data_option, seed_option, device_option)
def view(run, samples, out, data, other_data, seed, device) -> None:
    """Write a page that shows the reverse process of a run, one file for any browser."""
    check_run(run)
    points = points_of_run(run, data, other_data)
    page = out or RunFolder(run).view_page
    replaced = check_outputs([page], [*files_of_run(run), *data_files_of(run, data)])
    say_unfinished(run)
    path = write_view(
        run, points, samples=samples, seed=seed, device=device, save_to=page,
        other_data=other_data, say=click.echo,
    )  # fmt: skip
    click.echo(f"the page is {path}{replaced}: open it in a browser")


@main.command()
@click.argument("run", type=PathName())
@click.option(
    "--format", "format_", default="safetensors", show_default=True, help=", ".join(SUFFIXES)
)
@click.option(
    "--out",
    type=PathName(),
    default=None,
    help="Folder for the files. Default: exports/ in the run's folder.",
)
def export(run, format_, out) -> None:
    """Write a run's networks as safetensors, ONNX or torch.export, and check each by running it.

    A network takes points and timesteps; the schedule, what it predicts, and the map between the
    data's units and those of the network are in the file's metadata.
    """
    check_choice("format", format_, SUFFIXES)
    denoiser = load(run)
    say_unfinished(run)
    folder = files.make_folder(out or place_of(run) / RunFolder(run).exports.name)
    models = {"denoiser": denoiser.model, "classifier": denoiser.classifier}
    paths = {
        folder / f"{name}{SUFFIXES[format_]}": model
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


for command in (
    classify_command, data_command, evaluate_command, info_command, interpolate_command,
    sample_command, study_command, sweep_command,
):  # fmt: skip
    main.add_command(command)


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
    settings = _settings(quick=quick, data=data.name, **options)
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


def _settings(
    *, quick, data, recipe, epochs, steps, classifier_steps, batch_size, samples, method,
    reverse_steps, scale, seed, hidden_layers, activation, linear_input, p_uncond, class_embedding,
    weighting, t_density, p_mean, p_std, low_noise, **process,
) -> Settings:  # fmt: skip
    """Returns the settings that the options of the command line describe."""
    own_schedule = not chooses_schedule(process)
    if recipe is None:
        recipe = "states" if data == "states" and own_schedule else "fast"
    if quick and recipe not in ("fast", "states"):
        raise UserError(
            "--quick is for the recipes fast and states; cut a classic one with --epochs, others "
            "with --steps"
        )
    settings = Settings.of_recipe(recipe, seed, quick=quick)
    schedule = schedule_of(settings.schedule, weighting=weighting, **process)
    if reverse_steps is not None:
        check_integer("reverse_steps", reverse_steps, 1, schedule.num_steps)
    own = own_schedule and method in (None, settings.method)
    sampler = _sampler(settings, schedule.num_steps, method, own=own, quick=quick)
    settings = replace(settings, schedule=schedule, **sampler)
    length, classifier_length = _lengths(settings.denoiser, epochs, steps, classifier_steps)
    network = network_of(hidden_layers, activation, linear_input, p_uncond, class_embedding)
    objective = objective_of(
        settings.denoiser, weighting=weighting, t_density=t_density, p_mean=p_mean, p_std=p_std,
        low_noise=low_noise,
    )  # fmt: skip
    settings = replace(
        settings,
        denoiser=replace(
            _with(settings.denoiser, batch_size=batch_size, **length, **network), **objective
        ),
        classifier=_with(settings.classifier, batch_size=batch_size, **classifier_length),
    )
    return _with(settings, n_samples=samples, scale=scale, sampling_steps=reverse_steps)


def _sampler(
    settings: Settings, timesteps: int, method: str | None, *, own: bool, quick: bool
) -> dict[str, Any]:
    """Returns the fields of a recipe's settings that say how samples are drawn.

    Args:
        settings: those of the recipe.
        timesteps: number T of timesteps.
        method: what the user chose; None is nothing.
        own: whether schedule and method are those of the recipe, which its sampler is made for.
        quick: whether the run is a quick one.
    """
    steps = settings.sampling_steps if own else 50 if quick else None
    sampler = {"sampling_steps": steps and min(steps, timesteps)}
    if own:
        return sampler
    return sampler | {"method": method or "ddpm", "s_churn": None, "s_noise": None}


def _lengths(
    recipe: Recipe | ClassicRecipe,
    epochs: int | None,
    steps: int | None,
    classifier_steps: int | None,
) -> tuple[dict[str, int | None], dict[str, int | None]]:
    """Returns the fields of both recipes that say how long the training is."""
    if isinstance(recipe, Recipe):
        if epochs is not None:
            raise UserError("--epochs is for the classic recipes; the others take --steps")
        return {"steps": steps}, {"steps": classifier_steps}
    if steps is not None or classifier_steps is not None:
        raise UserError("--steps is not for a classic recipe, which takes --epochs")
    return {"epochs": epochs}, {"epochs": epochs}


def _with(settings, **changes):
    """Returns a copy with the changes that are not None."""
    return replace(settings, **{name: to for name, to in changes.items() if to is not None})


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
