"""The best model of a sweep, left as the folder of an ordinary run."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import files
from ..errors import UserError
from ..metrics import evaluate
from ..run_folder import RunFolder
from ..run_record import record_of
from ..sampling import sample_many
from ..settings import Settings
from .models import SweepModel
from .results import SweepTable
from .store import SweepFolder


def leave_best(
    folder: SweepFolder,
    table: SweepTable,
    metric: str,
    device: torch.device,
    say: Callable[[str], None] = print,
) -> RunFolder:
    """Writes the best model by a metric as a run, into ``best-<metric>`` in a sweep's folder.

    The run holds the network, the samples that the sweep has measured, drawn again, and every
    metric of an evaluation. Where it holds the same model already, it is left as it is. Samples
    that are guided to classes are left out, since a run keeps those of each class.

    Args:
        folder: the folder of the sweep.
        table: its results.
        metric: name of the metric, see :meth:`.SweepTable.best`.
        device: device on which the samples are drawn.
        say: called with a line of text about the result.

    Returns:
        The folder of the run.

    Raises:
        ValueError: no model has this metric, or the folder cannot be written to.
    """
    best = table.best(metric)
    model = next(one for one in folder.sweep.models if one.number == best.number)
    run = RunFolder(folder.path / f"best-{metric}")
    score = best.metrics[metric]
    among = f"{score.value:.4g}, real data {score.real:.4g} ({score.low:.4g} to {score.high:.4g})"
    say(f"best by {metric}: {model} ({among}), in {run}")
    record = _record(folder, model)
    if run.config_file.exists() and files.load_json(run.config_file) == record:
        return run
    run.check_settings_file()
    run.make()
    run.clear()
    _write_run(run, folder, model, device)
    files.save_json(run.config_file, record)  # last, so that a run that has it is whole
    return run


def _record(folder: SweepFolder, model: SweepModel) -> dict[str, Any]:
    """Returns the settings of the run, and which model of the sweep it is."""
    sweep, task = folder.sweep, model.task(folder.sweep.points)
    settings = Settings(
        seed=model.seed,
        schedule=task.schedule,
        denoiser=task.recipe,
        scale=model.sampling.get("scale"),
        n_samples=sweep.n_samples,
        sampling_steps=model.sampling.get("num_steps"),
        method=model.sampling.get("method", "ddpm"),
        s_churn=model.sampling.get("s_churn"),
        s_noise=model.sampling.get("s_noise"),
        real_draws=sweep.real_draws,
    )
    record = record_of(sweep.points, sweep.source, settings)
    return {**record, "sweep": {"model": str(model), "number": model.number}}


def _write_run(
    run: RunFolder, folder: SweepFolder, model: SweepModel, device: torch.device
) -> None:
    """Writes the network of a model, its samples and their metrics."""
    sweep, points = folder.sweep, folder.sweep.points
    network = folder.load_network(model)
    steps = model.task(points).total_steps
    files.save(run.network_file("denoiser"), network.state_dict())
    files.save_json(run.progress_file, {"denoiser": {"step": steps, "of": steps}})
    config = model.config(network, points, sweep.n_samples)
    if config.label is not None:
        return
    x = sample_many([config], sweep.n_samples, device=device)[0].x.cpu()
    files.save(run.samples_file(), points.in_units(x))
    result = evaluate(x, points, repeats=sweep.real_draws)
    content = {"metrics": {"unconditional": result.to_dict()}, "validation": [], "seconds": {}}
    files.save_json(run.metrics_file, content)


def check_best(metric: str | None, metrics: Sequence[str]) -> None:
    """Raises :class:`UserError` unless the metric of ``--best`` is one that a sweep measures."""
    if metric is not None and metric not in metrics:
        raise UserError(
            f"best must be one of the metrics of the sweep, {', '.join(metrics)}, got {metric!r}"
        )
