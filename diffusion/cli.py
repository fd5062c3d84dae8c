"""The ``flashpoint`` command."""

import sys
from dataclasses import replace
from pathlib import Path

import click

from . import files
from .checkpoints import load
from .commands import (
    Commands,
    data_option,
    device_option,
    network_of,
    network_options,
    options,
    read_points,
    seed_option,
)
from .commands.classify import classify_command
from .commands.data import data_command
from .commands.evaluate import evaluate_command
from .commands.info import info_command
from .commands.interpolate import interpolate_command
from .commands.sample import sample_command
from .commands.study import study_command
from .device import choose_device
from .errors import UserError, check_choice
from .experiment import Run, Settings
from .export import SUFFIXES, export_model
from .metrics import summary
from .report import write_report
from .run_folder import RunFolder
from .schedules import SCHEDULES, Schedule
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
        type=click.Path(path_type=Path),
        default=None,
        help="Folder of the run. Default: runs/<name of the data>.",
    ),
    click.option(
        "--quick", is_flag=True, help="Reduce the run to about a minute on two CPU cores."
    ),
    click.option("--resume", is_flag=True, help="Continue an interrupted run."),
    click.option(
        "--recipe",
        default="fast",
        show_default=True,
        help=f"Recipe of the training: {', '.join(RECIPES)}. The classic ones visit each pair of "
        "point and timestep once an epoch and take hours on a CPU.",
    ),
    click.option("--epochs", type=int, default=None, help="Epochs of a classic recipe."),
    click.option("--steps", type=int, default=None, help="Training steps of the denoiser."),
    click.option(
        "--classifier-steps", type=int, default=None, help="Training steps of the classifier."
    ),
    click.option("--batch-size", type=int, default=None, help="Rows per training step."),
    click.option(
        "--samples",
        type=int,
        default=None,
        help="Samples without guidance, and samples of each class.",
    ),
    click.option("--timesteps", default=500, show_default=True, help="T of the forward process."),
    click.option(
        "--schedule", default="linear", show_default=True, help=f"One of {', '.join(SCHEDULES)}."
    ),
    click.option("--beta-start", default=1e-4, show_default=True, help="Smallest variance beta."),
    click.option("--beta-end", default=0.02, show_default=True, help="Largest variance beta."),
    click.option(
        "--scale", type=float, default=None, help="Guidance scale of the samples of each class."
    ),
    network_options,
    click.option(
        "--checkpoint-every",
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
    run = _start(**options)
    run.check_measurable()
    _train(run)
    samples = run.generate()
    if not run.ranks.writes:
        return
    click.echo("measuring the samples against real draws of the data ...")
    results = run.measure(samples)
    run.draw(samples)
    click.echo(summary(results))
    click.echo(f"{sum(run.seconds.values()):.0f} s; everything is in {run.folder}")


@main.command()
@_run_options
def train(**options) -> None:
    """Train a denoiser, and a classifier if the data has labels."""
    run = _start(**options)
    _train(run)
    run.say(f"checkpoints are in {run.folder.checkpoints}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--real-draws", default=20, show_default=True, help="Real draws behind each metric's band."
)
@options(data_option, seed_option, device_option)
def report(run, real_draws, data, seed, device) -> None:
    """Write report.md and report.html, with every figure and metric, into a run's folder."""
    points = read_points(data)
    targets = write_report(
        run, points, real_draws=real_draws, seed=seed, device=device, say=click.echo
    )
    click.echo(f"the report is {' and '.join(map(str, targets))}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-n", "--samples", default=1500, show_default=True, help="Samples without guidance.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="File of the page. Default: view.html in the run's folder.",
)
@options(data_option, seed_option, device_option)
def view(run, samples, out, data, seed, device) -> None:
    """Write a page that shows the reverse process of a run, one file for any browser."""
    points = read_points(data)
    path = write_view(
        run, points, samples=samples, seed=seed, device=device, save_to=out, say=click.echo
    )
    click.echo(f"the page is {path}: open it in a browser")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", default="safetensors", show_default=True, help=", ".join(SUFFIXES)
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder for the files. Default: exports/ in the run's folder.",
)
def export(run, format_, out) -> None:
    """Write a run's networks as safetensors, ONNX or torch.export, and check each by running it.

    A network takes points and timesteps; the schedule is in the file's metadata.
    """
    check_choice("format", format_, SUFFIXES)
    denoiser = load(run)
    folder = files.make_folder(out or RunFolder(run).exports)
    for name, model in (("denoiser", denoiser.model), ("classifier", denoiser.classifier)):
        if model is not None:
            path = folder / f"{name}{SUFFIXES[format_]}"
            difference = export_model(model, denoiser.schedule, format_, path)
            click.echo(f"{path}: differs from the network by {difference:.1e} at most")


for command in (
    classify_command, data_command, evaluate_command, info_command, interpolate_command,
    sample_command, study_command,
):  # fmt: skip
    main.add_command(command)


def _start(data, out, resume, checkpoint_every, device, quick, **options) -> Run:
    """Makes the run that the options of the command line describe."""
    ranks, device = join(device)
    say = click.echo if ranks.writes else _silence
    chosen = choose_device(device)
    points = read_points(data)
    settings = _settings(quick=quick, **options)
    run = Run(
        points,
        settings,
        out or Path("runs") / points.name.lower(),
        device=chosen,
        resume=resume,
        checkpoint_every=checkpoint_every,
        say=say,
        ranks=ranks,
    )
    say(f"{points.name}: {len(points)} points in {points.dim} dimensions, on {chosen}")
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


def _settings(
    *, quick, recipe, epochs, steps, classifier_steps, batch_size, samples, timesteps, schedule,
    beta_start, beta_end, scale, time_feature, seed, **network,
) -> Settings:  # fmt: skip
    """Returns the settings that the options of the command line describe."""
    check_choice("recipe", recipe, RECIPES)
    settings = Settings(
        seed=seed,
        schedule=Schedule(timesteps, schedule, beta_start, beta_end, time_feature),
        denoiser=RECIPES[recipe][0],
        classifier=RECIPES[recipe][1],
    )
    if quick and recipe != "fast":
        raise UserError("--quick is for the fast recipe; cut a classic one with --epochs")
    if quick:
        settings = settings.quick()
    length, classifier_length = _lengths(settings.denoiser, epochs, steps, classifier_steps)
    settings = replace(
        settings,
        denoiser=_with(settings.denoiser, batch_size=batch_size, **length, **network_of(**network)),
        classifier=_with(settings.classifier, batch_size=batch_size, **classifier_length),
    )
    return _with(settings, n_samples=samples, scale=scale)


def _lengths(
    recipe: Recipe | ClassicRecipe,
    epochs: int | None,
    steps: int | None,
    classifier_steps: int | None,
) -> tuple[dict[str, int | None], dict[str, int | None]]:
    """Returns the fields of both recipes that say how long the training is."""
    if isinstance(recipe, Recipe):
        if epochs is not None:
            raise UserError("--epochs is for the classic recipes; the fast one takes --steps")
        return {"steps": steps}, {"steps": classifier_steps}
    if steps is not None or classifier_steps is not None:
        raise UserError("--steps is for the fast recipe; a classic one takes --epochs")
    return {"epochs": epochs}, {"epochs": epochs}


def _silence(line: str) -> None:
    """Prints nothing: only the first rank speaks."""


def _with(settings, **changes):
    """Returns a copy with the changes that are not None."""
    return replace(settings, **{name: to for name, to in changes.items() if to is not None})


def _train(run: Run) -> None:
    try:
        run.train()
    except KeyboardInterrupt:
        click.echo(
            f"\ninterrupted at step {run.denoiser.step}; the same command with --resume goes on",
            err=True,
        )
        sys.exit(130)
