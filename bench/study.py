"""Times the training of the study of timesteps, thirty models at once.

    python -m flashpoint.bench study [--device cuda] [--record FOLDER]

All models of ``flashpoint study timesteps`` that have the same shape train in the same launches. A
short training before the clock starts compiles and captures everything; its time is the cold start.
Then the study samples from the models and measures. If an EMD is far above the published one, the
time does not count.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import torch

from ..diffusion.studies import STUDIES, Study, StudyRun, train
from ..diffusion.studies.study import OUR_BEST, Model
from .machine import free_device
from .record import Record, record_option

_LIMIT = 1.25  # times the published EMD; ours is up to 1.2 times at T = 10, else up to 1.15
_WARM_FACTOR = 100  # the training of the cold start is shorter by this factor


def published_models(small: bool = False) -> Study:
    """Returns the study without the column of our own setting; ``small`` is a toy."""
    study = STUDIES["timesteps"]
    (grid,) = study.grids
    columns = {label: one for label, one in grid.columns.items() if label != OUR_BEST}
    grid = replace(grid, columns=columns)
    if small:
        columns = {label: columns[label].shortened(100) for label in ("10", "50")}
        grid = replace(grid, columns=columns, rows=("moons",))
    return replace(study, grids=(grid,))


def shortened(models: list[Model]) -> list[Model]:
    """Returns the same models with little training."""
    return [model._replace(variant=model.variant.shortened(_WARM_FACTOR)) for model in models]


def wrong(results: dict) -> list[str]:
    """Returns a line about each cell whose samples are bad."""
    return [
        f"{cell['data']}, T = {cell['column']}: EMD {emd:.1f}, published {published:g}"
        for cell in results["grids"][0]["cells"]
        if not (emd := cell["scores"]["EMD"]["value"])
        <= _LIMIT * (published := cell["published"]["EMD"])
    ]


def measure(study: Study, folder: Path, device: torch.device) -> dict:
    """Trains all models, those of one shape together, then samples from them and measures."""
    run = StudyRun(study, folder, device=device, together=10**6, say=lambda _: None)
    groups = [list(models) for models in run.groups(list(study.cells()))]
    start = time.perf_counter()
    for models in groups:
        train(shortened(models), 0, device)
    cold_start, seconds = time.perf_counter() - start, []
    for models in groups:
        start = time.perf_counter()
        networks = train(models, 0, device)  # on the CPU, so the device is done
        seconds.append(time.perf_counter() - start)
        for model, network in zip(models, networks, strict=True):
            run.store.save_model(model, network, seconds[-1] / len(models))
    return {
        "models": [len(models) for models in groups],
        "seconds": seconds,
        "cold_start_seconds": cold_start,
        "wrong": wrong(run.run()),
    }


@click.command()
@click.option("--small", is_flag=True, help="A toy whose EMD is not checked, to test the command.")
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@record_option
def main(small: bool, device: str | None, busy: bool, folder: Path | None) -> None:
    """Time the training of the study of timesteps, thirty models."""
    device, record = free_device(device, busy), Record(folder)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(published_models(small), Path(scratch), device)
    if found["wrong"] and not small:
        record.put("study", unavailable=found["wrong"])
        click.echo("no number: " + "; ".join(found["wrong"]), err=True)
        raise SystemExit(1)
    record.put("study", results=[found])
    click.echo(describe(found))


def describe(found: dict) -> str:
    """Returns the outcome in one line."""
    return (
        f"{sum(found['models'])} models: {sum(found['seconds']):.3g} s of training, "
        f"cold start {found['cold_start_seconds']:.3g} s"
    )
