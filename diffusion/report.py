"""The report of a run: its networks, its samples and their metrics in one document.

``report.md`` shows the figures of the run's folder; ``report.html`` contains them and needs neither
other files nor a network.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..kernels.default_state import in_default_state
from ..kernels.philox import child_seed
from . import files, plots
from .chains import scale_in_force
from .choices import FIGURES, MOST_DRAWS
from .data import Points
from .device import choose_device
from .document import Heading, Paragraph, Part, Picture, Table, markdown, page
from .errors import check_choice, check_integer
from .made_with import told
from .metrics import (
    METRICS,
    Comparison,
    Metric,
    PointMasses,
    RealDraws,
    emd_by_class,
    evaluate,
    excess_loss,
    kde_band,
    real_draws,
    standard_metrics,
)
from .metrics.excess_loss import best_noise
from .metrics.table import band_cells, beside_band, number
from .models import Perceptron
from .predictions import PREDICTIONS
from .reverse_steps import timesteps
from .run_record import VALIDATION_SAMPLES, density_data
from .sampling import METHODS
from .saved_run import SavedRun
from .schedules import Schedule
from .solvers import SOLVERS, evaluations_of

# Streams of random numbers, one for each part of a report that draws some.
_BATTERY, _PATHS, _FRAMES, _STEPS, _REAL, _EXCESS = range(6)

_STEP_COUNTS = (5, 10, 20, 50, 100, 250, 500)
_SAMPLES_PER_COUNT = 1000
_PATHS_SHOWN, _PATH_STEPS = 40, 100
_FRAMES_SHOWN, _FRAME_SAMPLES = 40, 1500
_TRUE_POINTS, _NOISE_LEVELS = 10_000, 16  # behind the excess loss


@in_default_state
def write_report(
    folder: str | Path,
    points: Points,
    *,
    real_draws: int = 20,
    seed: int = 0,
    device: str | torch.device | None = None,
    other_data: bool = False,
    figure_format: str = "png",
    say: Callable[[str], None] = print,
) -> tuple[Path, Path]:
    """Writes ``report.md`` and ``report.html`` into a run's folder, and figures into ``figures/``.

    Args:
        folder: folder of the run.
        points: the data that it was trained on.
        real_draws: number of draws of real data behind the bands of the metrics.
        seed: seed of everything that is drawn for the report.
        device: device on which samples are drawn; None takes CUDA where there is one.
        other_data: takes other data than those that it was trained on, of the same dimension.
        figure_format: format of the figures: png, svg or pdf. Both files show PNG in place of PDF.
        say: called with a line of text about the progress.

    Returns:
        The two files.

    Raises:
        ValueError: the folder holds no run, or a run of other data, or ``real_draws`` is below 2.
    """
    check_integer("real_draws", real_draws, 2, MOST_DRAWS)
    check_choice("figure_format", figure_format, FIGURES)
    run = SavedRun(
        Path(folder), points, choose_device(device), seed, other_data=other_data,
        figure_format=figure_format,
    )  # fmt: skip
    run.check_files()
    files.make_folder(run.folder.figures)
    parts: list[Part] = []
    for title, section in _SECTIONS.items():
        say(f"report: {title} ...")
        parts += section(run)
    say("report: every metric ...")
    parts += _battery(run, real_draws)
    targets = run.folder.report_markdown, run.folder.report_page
    files.write_atomically(targets[0], markdown(run.title, parts, run.folder.path).encode())
    files.write_atomically(targets[1], page(run.title, parts).encode())
    return targets


def _about(run: SavedRun) -> list[Part]:
    """Describes data, networks and settings."""
    points, schedule = run.points, run.schedule
    rows = [
        ("data", f"{points.name}: {len(points)} points in {points.dim} dimensions"),
        ("standardised", str(points.standardisation or "no")),
        ("classes", ", ".join(map(points.class_name, range(points.num_classes))) or "none"),
        ("schedule", _schedule(schedule)),
        ("prediction", PREDICTIONS[str(schedule.prediction)].title),
        ("weighting", run.config.get("denoiser", {}).get("weighting", "uniform")),
        ("denoiser", _network(run.denoiser)),
        ("classifier", _network(run.classifier) if run.classifier else "none"),
        ("reverse steps", f"{run.config['sampling_steps'] or schedule.num_steps}"),
        ("seed", f"{run.config['seed']}"),
        *_guidance(run.config, guided=run.classifier is not None),
        *told(run.config, *run.folder.circumstances()),
        *_held_out_and_initial(run.config),
    ]
    return [Table(("", ""), rows)]


def _guidance(config: dict[str, Any], *, guided: bool) -> list[tuple[str, str]]:
    """Returns the guidance scale of samples by class; nothing of a run that knows no classes."""
    conditional = config.get("denoiser", {}).get("p_uncond") is not None
    if not (guided or conditional):
        return []
    return [("guidance scale", f"{scale_in_force(config.get('scale'), guided=guided):g}")]


def _held_out_and_initial(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns what only some runs have: points held out, and weights to start from."""
    source, init = config.get("source") or {}, config.get("init")
    rows = [
        (f"{part} fraction", f"{source[key]:g} of the points held out")
        for part in ("validation", "test")
        if source.get(key := f"{part}_fraction") is not None
    ]
    return [*rows, ("initial weights", str(init["path"]))] if init else rows


def _schedule(schedule: Schedule) -> str:
    text = f"{schedule.name}, {schedule.num_steps} timesteps"
    if schedule.name == "edm":
        text += f", sigma from {schedule.sigma_min:g} to {schedule.sigma_max:g}"
    return text + (", no data left at the last" if schedule.signal[-1] == 0 else "")


def _network(model: Perceptron) -> str:
    widths = " - ".join(map(str, model.shape.widths))
    return f"{widths}, {model.shape.num_parameters:,} parameters"


def _picture(run: SavedRun, name: str, figure: Figure, caption: str) -> Picture:
    """Writes a figure into the run's folder, and as PNG too where documents cannot show it."""
    path = run.folder.figures / f"{name}.{run.figure_format}"
    plots.save(figure, path)
    if run.figure_format == "pdf":
        path = path.with_suffix(".png")
        plots.save(figure, path)
    return Picture(path, caption)


def _samples(run: SavedRun) -> list[Part]:
    """Shows data and samples."""
    points, x = run.points, run.samples
    parts: list[Part] = [Heading("Data and samples")]
    if points.dim > 3:
        images = "" if points.image_shape is None else ", unless they show images"
        parts.append(Paragraph(f"Figures show the data's two principal axes{images}."))
    outlines = " The lines are the true outlines." if points.outlines else ""
    colours = ", a colour for each class" if points.labels is not None else ""
    data = plots.scatter(points.data, points.labels, points, points.name)
    beside = plots.panels([("data", points.data, None), ("samples", x, None)], points)
    both = f"Data, and {len(x)} samples without guidance.{outlines}"
    on_one_scale = "Density of data and samples on one scale."
    return [
        *parts,
        _picture(run, "data", data, f"The data{colours}.{outlines}"),
        _picture(run, "samples", beside, both),
        _picture(run, "density", plots.density(points, x), on_one_scale),
    ]


def _training(run: SavedRun) -> list[Part]:
    """Shows the loss and the validation during the training."""
    history = run.folder.history()
    if history is None:
        return []
    data = density_data(run.points, run.config["seed"])
    band = kde_band(data, VALIDATION_SAMPLES) if history.validation else None
    held_out = history.validation_losses
    figure = plots.training_curves(history.losses, history.validation, band, held_out=held_out)
    caption = "Training loss"
    if held_out:
        caption += ", the loss of points that were held out of the training"
    if history.validation:
        caption += (
            ", and the NLL of a few samples during training; inside the band of real draws a lower "
            "one is not better"
        )
    return [Heading("Training"), _picture(run, "training_curves", figure, f"{caption}.")]


def _guided(run: SavedRun) -> list[Part]:
    """Shows the samples guided to each class."""
    points = run.points
    parts: list[Part] = []
    if len(run.guided) == points.num_classes > 0:
        scale = scale_in_force(run.config.get("scale"), guided=run.classifier is not None)
        figure = plots.conditional(run.guided, points, scale=scale)
        parts.append(_picture(run, "conditional", figure, "Samples guided to each class."))
        parts += _class_scores(run)
    if run.classifier is not None and points.dim == 2:
        figure = plots.classifier_map(run.classifier, run.schedule, points)
        caption = (
            "The classifier's answer over the plane, paler where it is less sure, and the data "
            "with the noise of each timestep."
        )
        parts.append(_picture(run, "classifier", figure, caption))
    return [Heading("Classes"), *parts] if parts else []


def _class_scores(run: SavedRun) -> list[Part]:
    """Returns the metrics of the guided samples as a table, and their EMD."""
    points, metrics = run.points, standard_metrics()
    header = [
        "class",
        "NLL",
        "data's own",
        "in the class",
        *(f"{metric.title} (99% of real draws)" for metric in metrics.values()),
    ]
    rows = [
        [
            name,
            *(number(entry[key], ".3f") for key in ("nll", "nll_data")),
            f"{entry['purity']:.2%}",
            *(_beside(entry.get(name)) for name in metrics),
        ]
        for name, entry in run.metrics.items()
        if entry["purity"] is not None
    ]
    classes = [points.of_class(label) for label in range(points.num_classes)]
    found, real = (emd_by_class(each, points) for each in (run.guided, classes))
    text = f"EMD by class: {found:.1f}; data against data scores {real:.1f}."
    return [*([Table(header, rows)] if rows else []), Paragraph(text)]


def _beside(entry: dict | None) -> str:
    """Returns a score of metrics.json with its band; None is a metric that is not defined."""
    return (
        number(None) if entry is None else beside_band(entry["value"], entry["low"], entry["high"])
    )


def deterministic_paths(run: SavedRun) -> tuple[Tensor, list[int]]:
    """Returns the paths [K, n, d] of some samples from noise to data, and their timesteps [K]."""
    count = min(_PATH_STEPS, run.schedule.num_steps)
    steps = timesteps(run.schedule, count, method="ddim").tolist()
    paths = run.trajectory(_PATHS_SHOWN, _PATHS, len(steps), method="ddim").cpu()
    return paths, [*steps, 0]


def _paths(run: SavedRun) -> list[Part]:
    """Shows samples on their way from noise to data."""
    points, (paths, steps) = run.points, deterministic_paths(run)
    count = len(steps) - 1  # both methods can visit these
    figure = plots.trajectories(paths, steps, points)
    frames = run.trajectory(_FRAME_SAMPLES, _FRAMES, count, variance="posterior").cpu()
    # Most frames show the end of the way, where the shapes appear.
    way = 1 - torch.linspace(1, 0, _FRAMES_SHOWN).square()
    shown = (way * (len(frames) - 1)).round().long().unique().tolist()
    moving = run.folder.figures / "reverse.gif"
    plots.animation(frames[shown], [steps[k] for k in shown], points, moving)
    return [
        Heading("From noise to data"),
        _picture(run, "trajectories", figure, "Paths of some samples (DDIM, deterministic)."),
        Picture(moving, f"{_FRAME_SAMPLES} samples on their way (DDPM)."),
    ]


def _step_counts(run: SavedRun) -> list[Part]:
    """Compares samplers with few and with many reverse steps."""
    cost, bands, counts, size = step_quality(run)
    figure = plots.against_evaluations(cost, bands)
    caption = (
        f"Of {size} samples each, without guidance. In S steps {_twice()} evaluate the "
        "network 2 S - 1 times, the others S times."
    )
    header = ["reverse steps", *(f"{title}, {s}" for title in cost for s in METHODS.values())]
    columns = [values for samplers in cost.values() for _, values in samplers.values()]
    rows = [
        [str(count), *(f"{values[row]:.4f}" for values in columns)]
        for row, count in enumerate(counts)
    ]
    real_row = [f"{low:.4f} to {high:.4f}" for low, high in bands.values() for _ in METHODS]
    return [
        Heading("Quality against the cost of sampling"),
        _picture(run, "reverse_steps", figure, caption),
        Table(header, [*rows, ["99% of real draws", *real_row]]),
    ]


class StepQuality(NamedTuple):
    """What samplers score in few and in many steps."""

    curves: dict[str, dict[str, tuple[list[int], list[float]]]]  # evaluations and metric [S]
    bands: dict[str, tuple[float, float]]  # of real draws, by metric
    counts: list[int]  # numbers of steps, [S]
    size: int  # samples behind each number


def step_quality(run: SavedRun) -> StepQuality:
    """Measures each sampler in few and in many reverse steps, beside real draws."""
    counts = [count for count in _STEP_COUNTS if count <= run.schedule.num_steps]
    draws = real_draws(run.points, None, _SAMPLES_PER_COUNT, 20, child_seed(run.seed, _REAL))
    comparisons = [Comparison(x, draws.data, draws.points) for x in draws.draws]
    metrics, bands = [], {}
    for metric in METRICS.values():
        if not (metric.by_steps and metric.applies(comparisons[0])):
            continue
        real = list(map(metric.function, comparisons))
        if all(map(math.isfinite, real)):
            metrics.append(metric)
            bands[metric.title] = metric.band(real, draws)
    curves = _curves(run, metrics, counts, draws)
    cost = {
        title: {
            METHODS[method]: ([evaluations_of(method, count) for count in counts], values)
            for method, values in zip(METHODS, samplers.values(), strict=True)
        }
        for title, samplers in curves.items()
    }
    return StepQuality(cost, bands, counts, draws.size)


def _twice() -> str:
    """Returns the names of the samplers that evaluate the network twice a step."""
    titles = [METHODS[name] for name, solver in SOLVERS.items() if solver.rows_per_step > 1]
    return " and ".join(titles)


def _curves(
    run: SavedRun, metrics: list[Metric], counts: list[int], draws: RealDraws
) -> dict[str, dict[str, list[float]]]:
    """Returns each metric at each number of reverse steps, by title and sampler.

    There are as many samples as points in a real draw.
    """
    curves: dict[str, dict[str, list[float]]] = {
        metric.title: {sampler: [] for sampler in METHODS.values()} for metric in metrics
    }
    for method, sampler in METHODS.items():
        for count in counts:
            x = run.sample(draws.size, _STEPS, num_steps=count, method=method)
            for metric in metrics:
                value = metric.function(Comparison(x, draws.data, draws.points))
                curves[metric.title][sampler].append(value)
    return curves


def _excess(run: SavedRun) -> list[Part]:
    """Compares the denoiser with the best one at each noise level."""
    points, schedule = run.points, run.schedule
    levels = int((schedule.signal > 0).sum())  # without data there is nothing to know
    if points.redraw is None or not levels:
        return []
    seed = child_seed(run.seed, _EXCESS)
    truth, other = (points.redraw(_TRUE_POINTS, child_seed(seed, k))[0] for k in range(2))
    last = math.log10(levels)
    steps = (torch.logspace(0, last, _NOISE_LEVELS).round().long() - 1).unique().tolist()
    denoisers: dict[str, Callable[[Tensor], Tensor]] = {
        "this denoiser": run.denoiser,
        f"the best for the {len(points)} training points": _best_for(points.data, schedule),
        f"the best for {_TRUE_POINTS} other points": _best_for(other, schedule),
    }
    curves = {
        name: excess_loss(denoiser, schedule, PointMasses(truth), steps=steps, n=300, seed=seed)
        for name, denoiser in denoisers.items()
    }
    figure = plots.against_noise((1 - schedule.alpha_bar[steps]).sqrt(), curves)
    caption = (
        "Distance of the noise that the denoiser predicts from what the best one does, for "
        f"{_TRUE_POINTS} fresh points of the data's distribution. A denoiser that memorised the "
        "training points would score the second curve. The third curve is the score of the best "
        "denoiser for as many other fresh points; the figure cannot show anything lower."
    )
    return [Heading("Excess loss"), _picture(run, "excess_loss", figure, caption)]


def _best_for(data: Tensor, schedule: Schedule) -> Callable[[Tensor], Tensor]:
    """Returns the denoiser of least loss for these points, at timesteps that hold some of them.

    Its inputs are those of a network, its output is what the schedule's ``prediction`` says.
    """
    best, dim = PointMasses(data), data.shape[1]

    def denoiser(inputs: Tensor) -> Tensor:
        t = (schedule.time_features - inputs[0, dim:]).abs().sum(dim=1).argmin()
        x_t = inputs[:, :dim].double()
        eps = best_noise(best, schedule, x_t, int(t))
        return schedule.target_of((x_t - schedule.noise[t] * eps) / schedule.signal[t], eps, t)

    return denoiser


_SECTIONS: dict[str, Callable[[SavedRun], list[Part]]] = {
    "data and networks": _about,
    "data and samples": _samples,
    "training and validation curves": _training,
    "samples guided to each class": _guided,
    "the reverse process": _paths,
    "quality against the number of reverse steps": _step_counts,
    "excess loss": _excess,
}


def _battery(run: SavedRun, real_draws: int) -> list[Part]:
    """Returns every metric beside the score of real data."""
    seed = child_seed(run.seed, _BATTERY)
    result = evaluate(run.samples, run.points, repeats=real_draws, seed=seed, full=True)
    rows = [
        [METRICS[name].title, *band_cells(one), one.verdict]
        for name, one in (result.scores | result.battery).items()
    ]
    rows += [
        [METRICS[name].title, number(None), "", "", reason]
        for name, reason in result.left_out.items()
    ]
    header = ["metric", "samples", "perfect score", "99% of real draws", ""]
    text = (
        f"{len(run.samples)} samples without guidance. The perfect score is what real data "
        f"scores, the mean of {real_draws} draws; a lower one is not better. Of ten metrics of a "
        "perfect sampler, one is outside its band in one of ten cases."
        + f" {run.points.unit_of_distances}".rstrip()
    )
    return [Heading("Metrics"), Paragraph(text), Table(header, rows)]
