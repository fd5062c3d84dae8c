"""A run as one document: what was trained, what came out, and how good it is.

``report.md`` shows the figures of the run's folder; ``report.html`` holds them inside and needs
neither other files nor a network.
"""

import base64
import html
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from ..kernels.philox import child_seed
from . import files, plots
from .checkpoints import load
from .data import Points
from .device import choose_device
from .errors import UserError, check_at_least
from .metrics import (
    METRICS,
    Evaluation,
    PointMasses,
    emd_by_class,
    evaluate,
    excess_loss,
    kde_nll,
    real_pairs,
    score,
    sliced_wasserstein,
)
from .models import Perceptron
from .sampling import sample, timesteps
from .schedules import Schedule

# Parts of a report that draw random numbers of their own.
_BATTERY, _PATHS, _FRAMES, _STEPS, _REAL, _EXCESS = range(6)

_STEP_COUNTS = (5, 10, 20, 50, 100, 250, 500)
_SAMPLES_PER_COUNT = 1000
_PATHS_SHOWN, _PATH_STEPS = 40, 100
_FRAMES_SHOWN, _FRAME_SAMPLES = 40, 1500
_TRUE_POINTS, _NOISE_LEVELS = 10_000, 16  # behind the excess loss

_UNDEFINED = "not defined"
_SCORES = ("sample_to_data", "data_to_sample", "sliced_wasserstein")
_MEASURES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "kde_nll": kde_nll,
    "sliced_wasserstein": sliced_wasserstein,
}
_SAMPLERS: dict[str, dict[str, str]] = {
    "DDPM": {"method": "ddpm", "variance": "posterior"},
    "DDIM": {"method": "ddim"},
    "DPM-Solver++(2M)": {"method": "dpm++2m"},
    "Heun": {"method": "heun"},
}


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """An image file and what it shows."""

    path: Path
    caption: str


Part = Heading | Paragraph | Table | Picture


class Material:
    """What a run's folder holds, and the data that it was made from.

    Args:
        folder: of the run.
        points: the data that it was trained on.
        device: where samples are drawn.
        seed: of everything that is drawn for the report.

    Attributes:
        config: what was asked for. metrics: what was measured, or empty.
        denoiser, classifier: the networks; None for a classifier that there is not.
        flat: the points in at most two dimensions, for figures.

    Raises:
        ValueError: the folder holds no run, or one of other data.
    """

    def __init__(self, folder: Path, points: Points, device: torch.device, seed: int):
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is no folder of a run: it has no config.json")
        self.folder, self.points, self.device, self.seed = folder, points, device, seed
        loaded = load(folder)  # which refuses a damaged config.json
        self.config = json.loads((folder / "config.json").read_text())
        if self.config["data"] != points.name:
            raise UserError(
                f"run {folder} was trained on {self.config['data']}, not on {points.name}; "
                "name its file with --data"
            )
        self.schedule, self.denoiser = loaded.schedule, loaded.model
        self.classifier = loaded.classifier
        if self.denoiser.shape.widths[-1] != points.dim:
            raise UserError(
                f"run {folder} was trained on points of dimension "
                f"{self.denoiser.shape.widths[-1]}, not {points.dim}"
            )
        self.metrics = {}
        if (folder / "metrics.json").is_file():
            self.metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
        self.figures = files.make_folder(folder / "figures")

    @cached_property
    def samples(self) -> Tensor:
        """The run's unconditional samples [n, d], or new ones where it has none."""
        path = self.folder / "outputs" / "uncond_gen_samples.pt"
        if path.is_file():
            return files.load(path)
        return self.sample(_FRAME_SAMPLES, _BATTERY, num_steps=self.config["sampling_steps"])

    @cached_property
    def guided(self) -> list[Tensor]:
        """The run's samples [n, d] of each class; empty where it has none."""
        outputs = self.folder / "outputs"
        paths = [outputs / f"cond_gen_samples_{c}.pt" for c in range(self.points.num_classes)]
        return [files.load(path) for path in paths if path.is_file()]

    def sample(self, n: int, part: int, **options: Any) -> Tensor:
        """New samples [n, d]."""
        seed = child_seed(self.seed, part)
        made = sample(self.denoiser, self.schedule, n, seed=seed, device=self.device, **options)
        return made.x.cpu()

    def paths(self, n: int, part: int, most: int, **options: Any) -> tuple[Tensor, list[int]]:
        """The way of new samples from noise to data, [K, n, d], and the timesteps K it visits."""
        count = min(most, self.schedule.num_steps)
        made = sample(
            self.denoiser,
            self.schedule,
            n,
            seed=child_seed(self.seed, part),
            num_steps=count,
            keep_every=1,
            device=self.device,
            **options,
        )
        steps = timesteps(self.schedule, count).tolist()
        return self.flatten(made.trajectory.cpu()), [*steps, 0]

    @cached_property
    def flat(self) -> Points:
        """The points, along their two principal axes where they have more than two dimensions."""
        flat = self.flatten(self.points.data)
        return replace(self.points, data=flat, redraw=None, image_shape=None)

    def flatten(self, x: Tensor) -> Tensor:
        """Points [..., d] along the data's two principal axes; as they are if d is 1 or 2."""
        return x if self.points.dim <= 2 else (x.float() - self._centre) @ self._axes

    @cached_property
    def _centre(self) -> Tensor:
        return self.points.data.mean(dim=0)

    @cached_property
    def _axes(self) -> Tensor:
        return torch.linalg.svd(self.points.data - self._centre, full_matrices=False).Vh[:2].T


def write_report(
    folder: str | Path,
    points: Points,
    *,
    real_draws: int = 20,
    seed: int = 0,
    device: str | torch.device | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Path, Path]:
    """Writes ``report.md`` and ``report.html`` into a run's folder, the figures into its figures.

    Args:
        folder: of the run.
        points: the data that it was trained on.
        real_draws: draws of real data behind the bands of the metrics.
        seed: of everything that is drawn for the report.
        device: where samples are drawn; None takes CUDA where there is one.
        say: takes a line of text about what is going on.

    Returns:
        The two files.

    Raises:
        ValueError: the folder holds no run, or one of other data, or there are fewer than 2 draws.
    """
    check_at_least("real_draws", real_draws, 2)
    material = Material(Path(folder), points, choose_device(device), seed)
    parts: list[Part] = []
    for section in (_about, _samples, _training, _guided, _paths, _step_counts, _excess):
        say(f"report: {(section.__doc__ or '').splitlines()[0].rstrip('.').lower()} ...")
        parts += section(material)
    say("report: every metric ...")
    parts += _battery(material, real_draws)
    title = f"{points.name}: {material.folder.resolve().name}"
    targets = material.folder / "report.md", material.folder / "report.html"
    files.write_atomically(targets[0], markdown(title, parts, material.folder).encode())
    files.write_atomically(targets[1], page(title, parts).encode())
    return targets


def _about(material: Material) -> list[Part]:
    """What was trained on what."""
    points, schedule, denoiser = material.points, material.schedule, material.denoiser
    rows = [
        ("data", f"{points.name}: {len(points)} points in {points.dim} dimensions"),
        ("classes", ", ".join(map(points.class_name, range(points.num_classes))) or "none"),
        ("schedule", f"{schedule.name}, {schedule.num_steps} timesteps"),
        ("denoiser", _network(denoiser)),
        ("classifier", _network(material.classifier) if material.classifier else "none"),
        ("reverse steps", f"{material.config['sampling_steps'] or schedule.num_steps}"),
        ("seed", f"{material.config['seed']}"),
    ]
    return [Table(("", ""), rows)]


def _network(model: Perceptron) -> str:
    widths = " - ".join(map(str, model.shape.widths))
    return f"{widths}, {model.shape.num_parameters:,} parameters"


def _samples(material: Material) -> list[Part]:
    """Data and samples."""
    flat, figures = material.flat, material.figures
    x = material.flatten(material.samples)
    parts: list[Part] = [Heading("Data and samples")]
    if material.points.dim > 2:
        parts.append(Paragraph("Figures show the data's two principal axes."))
    plots.scatter(flat.data, flat.labels, flat, flat.name, figures / "data.png")
    plots.panels([("data", flat.data, None), ("samples", x, None)], flat, figures / "samples.png")
    plots.density(flat, x, figures / "density.png")
    outlines = " The lines are the true outlines." if flat.outlines else ""
    colours = ", a colour for each class" if flat.labels is not None else ""
    return [
        *parts,
        Picture(figures / "data.png", f"The data{colours}.{outlines}"),
        Picture(figures / "samples.png", f"Data, and {len(x)} samples without guidance.{outlines}"),
        Picture(figures / "density.png", "Density of data and samples on one scale."),
    ]


def _training(material: Material) -> list[Part]:
    """Training and validation curves."""
    path = material.folder / "checkpoints" / "training.pt"
    if not path.is_file():
        return []
    state = files.load(path)
    names = [name for name in ("denoiser", "classifier") if name in state]
    losses = {name: _recorded(state[name]["losses"]) for name in names}
    data, figure = material.points.data, material.figures / "training_curves.png"
    validated = bool(state["validation"])
    nll_data = kde_nll(data, data) if validated else None
    plots.training_curves(losses, state["validation"], nll_data, figure)
    caption = "Training loss"
    if validated:
        caption += ", and the NLL of a few samples during training beside the data's own"
    return [Heading("Training"), Picture(figure, f"{caption}.")]


def _recorded(losses: Tensor) -> Tensor:
    """The losses up to the last step done; those of later steps are 0."""
    return losses[: int(losses.nonzero().max()) + 1] if losses.any() else losses[:1]


def _guided(material: Material) -> list[Part]:
    """Samples guided to each class."""
    points, flat, figures = material.points, material.flat, material.figures
    parts: list[Part] = []
    if len(material.guided) == points.num_classes > 0:
        x = [material.flatten(each) for each in material.guided]
        plots.conditional(x, flat, figures / "conditional.png")
        parts.append(Picture(figures / "conditional.png", "Samples guided to each class."))
        parts += _class_scores(material)
    if material.classifier is not None and points.dim == 2:
        last = material.schedule.num_steps
        steps = sorted({0, last // 5, last // 2})
        path = figures / "classifier.png"
        plots.classifier_map(material.classifier, material.schedule, points, steps, path)
        caption = "The classifier's answer over the plane, paler where it is less sure."
        parts.append(Picture(path, caption))
    return [Heading("Classes"), *parts] if parts else []


def _class_scores(material: Material) -> list[Part]:
    """What was measured of the guided samples, and their EMD."""
    points = material.points
    header = (
        "class",
        "NLL",
        "data's own",
        "in the class",
        *(f"{METRICS[name].title} (99% of real draws)" for name in _SCORES),
    )
    rows = [
        (
            name,
            *(_number(entry[key]) for key in ("nll", "nll_data")),
            f"{entry['purity']:.2%}",
            *(_beside(entry[score]) if score in entry else _UNDEFINED for score in _SCORES),
        )
        for name, entry in material.metrics.items()
        if entry["purity"] is not None
    ]
    classes = [points.of_class(label) for label in range(points.num_classes)]
    found, real = (emd_by_class(each, points) for each in (material.guided, classes))
    text = f"EMD by class: {found:.1f}; data against data scores {real:.1f}."
    return [*([Table(header, rows)] if rows else []), Paragraph(text)]


def _number(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{value:.3f}"


def _beside(score: dict) -> str:
    return f"{score['value']:.4f} ({score['low']:.4f} to {score['high']:.4f})"


def _paths(material: Material) -> list[Part]:
    """The reverse process."""
    flat, figures = material.flat, material.figures
    paths, steps = material.paths(_PATHS_SHOWN, _PATHS, _PATH_STEPS, method="ddim")
    plots.trajectories(paths, steps, flat, figures / "trajectories.png")
    frames, steps = material.paths(_FRAME_SAMPLES, _FRAMES, _PATH_STEPS, variance="posterior")
    # Most frames show the end of the way, where the shapes appear.
    way = 1 - torch.linspace(1, 0, _FRAMES_SHOWN).square()
    shown = (way * (len(frames) - 1)).round().long().unique().tolist()
    plots.animation(frames[shown], [steps[k] for k in shown], flat, figures / "reverse.gif")
    return [
        Heading("From noise to data"),
        Picture(figures / "trajectories.png", "Paths of some samples (DDIM, deterministic)."),
        Picture(figures / "reverse.gif", f"{_FRAME_SAMPLES} samples on their way (DDPM)."),
    ]


def _step_counts(material: Material) -> list[Part]:
    """Quality against the number of reverse steps."""
    counts = [count for count in _STEP_COUNTS if count <= material.schedule.num_steps]
    seed = child_seed(material.seed, _REAL)
    pairs = real_pairs(material.points, None, _SAMPLES_PER_COUNT, 20, seed)
    n, data = len(pairs[0][0]), pairs[0][1]
    measures = {name: measure for name, measure in _MEASURES.items() if _defined(measure, pairs)}
    curves: dict[str, dict[str, list[float]]] = {
        METRICS[name].title: {sampler: [] for sampler in _SAMPLERS} for name in measures
    }
    for sampler, options in _SAMPLERS.items():
        for count in counts:
            x = material.sample(n, _STEPS, num_steps=count, **options)
            for name, measure in measures.items():
                curves[METRICS[name].title][sampler].append(measure(x, data))
    bands = {}
    for name, measure in measures.items():
        drawn = score(name, 0.0, [measure(*pair) for pair in pairs])
        bands[METRICS[name].title] = (drawn.low, drawn.high)
    figure = material.figures / "reverse_steps.png"
    plots.against_steps(counts, curves, bands, figure)
    header = ["reverse steps", *(f"{title}, {s}" for title in curves for s in _SAMPLERS)]
    columns = [values for samplers in curves.values() for values in samplers.values()]
    rows = [
        [str(count), *(f"{values[row]:.4f}" for values in columns)]
        for row, count in enumerate(counts)
    ]
    real = [f"{low:.4f} to {high:.4f}" for low, high in bands.values() for _ in _SAMPLERS]
    return [
        Heading("Quality against the number of reverse steps"),
        Picture(figure, f"Of {n} samples each, without guidance."),
        Table(header, [*rows, ["99% of real draws", *real]]),
    ]


def _defined(measure: Callable[[Tensor, Tensor], float], pairs: list) -> bool:
    try:
        return all(math.isfinite(measure(*pair)) for pair in pairs)
    except UserError:
        return False


def _excess(material: Material) -> list[Part]:
    """Excess loss."""
    points, schedule = material.points, material.schedule
    if points.redraw is None:
        return []
    seed = child_seed(material.seed, _EXCESS)
    truth, other = (points.redraw(_TRUE_POINTS, child_seed(seed, k))[0] for k in range(2))
    last = math.log10(schedule.num_steps)
    steps = (torch.logspace(0, last, _NOISE_LEVELS).round().long() - 1).unique().tolist()
    denoisers: dict[str, Callable[[Tensor], Tensor]] = {
        "this denoiser": material.denoiser,
        f"the best for the {len(points)} training points": _best_for(points.data, schedule),
        f"the best for {_TRUE_POINTS} other points": _best_for(other, schedule),
    }
    curves = {
        name: excess_loss(denoiser, schedule, PointMasses(truth), steps=steps, n=300, seed=seed)
        for name, denoiser in denoisers.items()
    }
    figure = material.figures / "excess_loss.png"
    plots.against_noise((1 - schedule.alpha_bar[steps]).sqrt(), curves, figure)
    caption = (
        f"How far the denoiser is from the best one for {_TRUE_POINTS} fresh points of the data's "
        "distribution. A denoiser that memorised the training points would score the second "
        "curve; the third is what the best one for as many other fresh points scores, and as low "
        "as this figure can see."
    )
    return [Heading("Excess loss"), Picture(figure, caption)]


def _best_for(data: Tensor, schedule: Schedule) -> Callable[[Tensor], Tensor]:
    """The denoiser of least loss for these points, with the inputs of a network."""
    best, dim = PointMasses(data), data.shape[1]

    def denoiser(inputs: Tensor) -> Tensor:
        t = (schedule.time_features - inputs[0, dim:]).abs().sum(dim=1).argmin()
        return best.optimal_noise(inputs[:, :dim], schedule.alpha_bar[t].item())

    return denoiser


def _battery(material: Material, real_draws: int) -> list[Part]:
    """Every metric, beside what real data scores."""
    result: Evaluation = evaluate(
        material.samples,
        material.points,
        repeats=real_draws,
        seed=child_seed(material.seed, _BATTERY),
        full=True,
    )
    rows = [
        [
            METRICS[name].title,
            f"{one.value:.4g}",
            f"{one.real:.4g}",
            f"{one.low:.4g} to {one.high:.4g}",
            "as real data" if one.passed else "differs",
        ]
        for name, one in (result.scores | result.battery).items()
    ]
    rows += [
        [METRICS[name].title, _UNDEFINED, "", "", reason]
        for name, reason in result.left_out.items()
    ]
    header = ["metric", "samples", "perfect score", "99% of real draws", ""]
    text = (
        f"{len(material.samples)} samples without guidance. The perfect score is what real data "
        f"scores, the mean of {real_draws} draws; a lower one is not better. Of ten metrics of a "
        "perfect sampler, one is outside its band in one of ten cases."
    )
    return [Heading("Metrics"), Paragraph(text), Table(header, rows)]


def markdown(title: str, parts: Sequence[Part], folder: Path) -> str:
    """The document in Markdown, its pictures where they lie under the folder."""
    blocks = [f"# {_plain(title)}"]
    for part in parts:
        if isinstance(part, Heading):
            blocks.append(f"## {_plain(part.text)}")
        elif isinstance(part, Paragraph):
            blocks.append(_plain(part.text))
        elif isinstance(part, Picture):
            path = quote(part.path.relative_to(folder).as_posix())
            blocks.append(f"![{_plain(part.caption)}]({path})\n\n{_plain(part.caption)}")
        else:
            lines = [part.header, ["---"] * len(part.header), *part.rows]
            cells = [[_plain(cell) if cell != "---" else cell for cell in line] for line in lines]
            blocks.append("\n".join(f"| {' | '.join(line)} |" for line in cells))
    return "\n\n".join(blocks) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


def page(title: str, parts: Sequence[Part]) -> str:
    """The document as one page of HTML that holds its pictures."""
    body = [f"<h1>{html.escape(title)}</h1>", *map(_element, parts)]
    return _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(body))


def _element(part: Part) -> str:
    if isinstance(part, Heading):
        return f"<h2>{html.escape(part.text)}</h2>"
    if isinstance(part, Paragraph):
        return f"<p>{html.escape(part.text)}</p>"
    if isinstance(part, Picture):
        kind, content = part.path.suffix[1:], base64.b64encode(part.path.read_bytes()).decode()
        caption = html.escape(part.caption)
        image = f'<img alt="{caption}" src="data:image/{kind};base64,{content}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    rows = [_row("th", part.header), *(_row("td", row) for row in part.rows)]
    return f"<table>{''.join(rows)}</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff; }
img { max-width: 100%; }
figure { margin: 1.5em 0; }
figcaption { color: #555; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3em 0.8em; text-align: left; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
