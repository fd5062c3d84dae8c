"""Draws the pictures of the documentation with the code that users call.

    python docs/gallery.py                      from the records in the repository, in a minute
    python docs/gallery.py --check              compares the pictures with what would be drawn
    python docs/gallery.py --run runs/states    records another run of `flashpoint states` first

A record holds what the figures of a run show: samples, paths, losses and numbers. Screenshots of
the viewer need the run itself, Chromium and its driver; they are taken with --run alone.
"""

import argparse
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from PIL import Image

from flashpoint.bench.report import RECORDS, Page, read_records
from flashpoint.diffusion import DATASETS, Schedule, dataset, plots, states_points
from flashpoint.diffusion.chains import scale_in_force
from flashpoint.diffusion.checkpoints import mlp_of_state
from flashpoint.diffusion.files import write_atomically
from flashpoint.diffusion.metrics import kde_band
from flashpoint.diffusion.palette import COLORS
from flashpoint.diffusion.plots.panel import below, draw_points
from flashpoint.diffusion.plots.space import Space
from flashpoint.diffusion.plots.style import PAGE, finish, styled
from flashpoint.diffusion.report import deterministic_paths, step_quality
from flashpoint.diffusion.run_record import VALIDATION_SAMPLES, density_data
from flashpoint.diffusion.saved_run import SavedRun
from flashpoint.diffusion.schedules import SCHEDULES
from flashpoint.diffusion.studies import STUDIES, write_page

DOCS = Path(__file__).parent
RECORD = DOCS / "gallery" / "states.npz"
STUDY_RECORDS = RECORDS / "2026-11-24-studies-cpu"
SCREENSHOTS = ("gallery/viewer.png", "gallery/viewer_dark.png")
# Drawn by `python -m flashpoint.diffusion.studies.few_steps`, which solves for minutes.
SOLVED = ("few_steps.png",)
WIDTH = 1400  # largest width of a picture in pixels
TOLERANCE = 2.0  # root mean square of a picture's difference, of 255: one title makes 5


def write_record(folder: Path) -> None:
    """Writes what the figures of a run show, points in half precision."""
    run = SavedRun(folder, states_points(), torch.device("cpu"), 0)
    history, quality = run.folder.history(), step_quality(run)
    paths, steps = deterministic_paths(run)
    band = kde_band(density_data(run.points, run.config["seed"]), VALIDATION_SAMPLES)
    numbers = {
        "schedule": run.config["schedule"],
        "scale": scale_in_force(run.config["scale"], guided=True),
        "steps": steps,
        "validation": history.validation,
        "band": band,
        "curves": quality.curves,
        "bands": quality.bands,
    }
    arrays = {f"loss {name}": loss for name, loss in history.losses.items()}
    arrays |= {f"classifier {name}": x for name, x in run.classifier.state_dict().items()}
    arrays |= {"samples": run.samples, "guided": torch.stack(run.guided), "paths": paths}
    content = io.BytesIO()
    halves = {name: x.detach().cpu().half().numpy() for name, x in arrays.items()}
    np.savez_compressed(content, numbers=np.array(json.dumps(numbers)), **halves)
    write_atomically(RECORD, content.getvalue())


class Record(NamedTuple):
    """The content of a record."""

    numbers: dict
    arrays: dict[str, torch.Tensor]

    @classmethod
    def read(cls) -> "Record":
        """Reads the record."""
        with np.load(RECORD, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        numbers = json.loads(str(arrays.pop("numbers")))
        return cls(numbers, {name: torch.from_numpy(x).float() for name, x in arrays.items()})

    def part(self, kind: str) -> dict[str, torch.Tensor]:
        """Returns the arrays of one kind, by their own names."""
        return {
            name.removeprefix(f"{kind} "): x
            for name, x in self.arrays.items()
            if name.startswith(f"{kind} ")
        }


def draw_run(folder: Path) -> None:
    """Draws the figures of the recorded run."""
    points, (numbers, arrays) = states_points(), Record.read()
    record = Record(numbers, arrays)
    samples, guided = arrays["samples"], list(arrays["guided"])
    schedule = Schedule(**numbers["schedule"])
    classifier = mlp_of_state(record.part("classifier"))
    parts = [("data", points.data, None), ("samples", samples, None)]
    plots.panels(parts, points, folder / "samples.png")
    plots.density(points, samples, folder / "density.png")
    plots.conditional(guided, points, folder / "conditional.png", scale=numbers["scale"])
    plots.trajectories(arrays["paths"], numbers["steps"], points, folder / "trajectories.png")
    plots.classifier_map(classifier, schedule, points, folder / "classifier.png")
    curves, bands = numbers["curves"], numbers["bands"]
    plots.against_evaluations(curves, bands, folder / "reverse_steps.png")
    losses, validation = record.part("loss"), numbers["validation"]
    plots.training_curves(losses, validation, numbers["band"], folder / "training_curves.png")


@styled
def draw_datasets(save_to: Path) -> None:
    """Draws every named data set; of five dimensions the two principal axes."""
    sets = [dataset(name) for name in DATASETS]
    columns = -(-len(sets) // 2)
    figure = Figure(figsize=(PAGE, 4.2), layout="constrained")
    for place, points in enumerate(sets, start=1):
        space = Space.of(points)
        solid = {"projection": "3d"} if space.dim == 3 else {}
        axis = figure.add_subplot(2, columns, place, **solid)
        title = f"{points.name}, n = {len(points):,}"
        draw_points(axis, points.data, space, title, labels=points.labels)
        if space.dim == 3:
            axis.tick_params(labelsize=5)
    finish(figure, save_to)


@styled
def draw_schedules(save_to: Path) -> None:
    """Draws signal and noise of every schedule."""
    figure = Figure(figsize=(PAGE, 2.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for color, name in zip(COLORS, SCHEDULES, strict=False):
        alpha_bar = Schedule(500, name).alpha_bar
        axes[0].plot(alpha_bar.sqrt(), color=color, label=name)
        axes[1].plot((1 - alpha_bar).sqrt(), color=color)
    axes[0].set(xlabel="timestep t", ylabel="level", title=r"signal $\sqrt{\bar\alpha_t}$")
    axes[1].set(xlabel="timestep t", title=r"noise $\sqrt{1 - \bar\alpha_t}$")
    below(figure, axes[0].get_legend_handles_labels()[0], columns=7)
    finish(figure, save_to)


def draw_all(docs: Path) -> None:
    """Draws every picture that comes from a record, at its place below a folder."""
    gallery = docs / "gallery"
    gallery.mkdir(parents=True, exist_ok=True)
    draw_datasets(gallery / "datasets.png")
    draw_schedules(gallery / "schedules.png")
    draw_run(gallery)
    Page(read_records(RECORDS), docs / "benchmarks.md").write()
    write_page(tuple(STUDIES.values()), STUDY_RECORDS, docs / "studies.md")
    for path in pictures(docs):
        shrink(path)


def pictures(docs: Path) -> list[Path]:
    """Returns the pictures below a folder that :func:`draw_all` draws."""
    others = {docs / name for name in (*SCREENSHOTS, *SOLVED)}
    return sorted(path for path in docs.rglob("*.png") if path not in others)


def shrink(path: Path) -> None:
    """Reduces a picture to WIDTH pixels and 256 colours: a tenth of the bytes looks the same."""
    image = Image.open(path).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.LANCZOS)
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def differences(drawn: Path, kept: Path) -> list[str]:
    """Returns a line for each picture of two folders that is in one alone, or differs.

    Args:
        drawn: folder of what is drawn now.
        kept: folder of the documentation.
    """
    names = {
        path.relative_to(folder).as_posix() for folder in (drawn, kept) for path in pictures(folder)
    }
    found = []
    for name in sorted(names):
        ours, theirs = drawn / name, kept / name
        if not (ours.exists() and theirs.exists()):
            found.append(f"{name} is {'not drawn any more' if theirs.exists() else 'missing'}")
            continue
        copy = drawn / f"{name}.kept.png"
        shutil.copy(theirs, copy)
        try:
            differs = compare_images(str(copy), str(ours), TOLERANCE, in_decorator=True)
        except Exception as error:  # of the comparison, where the sizes differ
            found.append(f"{name}: {error}")
            continue
        finally:
            copy.unlink()
        if differs:
            found.append(f"{name} differs by {differs['rms']:.1f}, more than {TOLERANCE}")
    return found


def draw_viewer(run: Path) -> None:
    """Takes screenshots of the page that ``flashpoint view`` writes, in Chromium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    from flashpoint.diffusion.viewer import write_view

    page = write_view(run, states_points(), say=lambda text: print(text, file=sys.stderr))
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1400,1110",
                 "--force-prefers-reduced-motion"):  # fmt: skip
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver"))) as chrome:
        chrome.get(page.resolve().as_uri())
        WebDriverWait(chrome, 30).until(
            lambda _: chrome.execute_script("return document.documentElement.dataset.ready")
        )
        for name, controls, at in (
            ("viewer", ["Density of the data", "Of the network"], 0.78),
            ("viewer_dark", ["Guided by class", "Hidden", "Classifier's regions"], 0.85),
        ):
            for text in controls:
                chrome.find_element("xpath", f'//label[normalize-space()="{text}"]').click()
            if name == "viewer_dark":
                chrome.find_element("id", "theme").click()
            chrome.execute_script(f"goTo({at} * last)")
            chrome.execute_async_script("requestAnimationFrame(arguments[0])")
            path = DOCS / "gallery" / f"{name}.png"
            chrome.save_screenshot(path)
            shrink(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--check", action="store_true", help="Compare, and write nothing.")
    kind.add_argument("--run", type=Path, help="Folder of a run of the STATES data to record.")
    options = parser.parse_args()
    if options.check:
        with tempfile.TemporaryDirectory() as folder:
            draw_all(Path(folder))
            found = differences(Path(folder), DOCS)
        print("\n".join(found) or "all pictures are as they would be drawn")
        return 1 if found else 0
    if options.run is not None:
        write_record(options.run)
    draw_all(DOCS)
    if options.run is not None:
        draw_viewer(options.run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
