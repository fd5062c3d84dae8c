"""Draws the figures of docs/gallery.md with the code that users call.

    flashpoint states --seed 0
    python docs/gallery.py runs/states

Training takes long, so the run is made beforehand. The screenshots need Chromium and its driver.
"""

import argparse
import shutil
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from flashpoint.diffusion import DATASETS, Schedule, dataset, plots, states_points
from flashpoint.diffusion.choices import SCHEDULES
from flashpoint.diffusion.report import write_report
from flashpoint.diffusion.viewer import write_view

GALLERY = Path(__file__).parent / "gallery"
FROM_REPORT = ("samples", "density", "conditional", "trajectories", "classifier", "reverse_steps",
               "training_curves")  # fmt: skip
WIDTH = 1400  # largest width of a figure in pixels


def draw_datasets(save_to: Path) -> None:
    """Draws the first coordinates of every named data set: all of three, else two."""
    sets = [dataset(name) for name in DATASETS if name != "digits"]
    columns = -(-len(sets) // 2)
    figure = plt.figure(figsize=(3 * columns, 6.6), layout="constrained")
    for place, points in enumerate(sets, start=1):
        solid = points.dim == 3
        axis = figure.add_subplot(2, columns, place, projection="3d" if solid else None)
        labels = torch.zeros(len(points)).long() if points.labels is None else points.labels
        colors = [plots.COLORS[label % len(plots.COLORS)] for label in labels.tolist()]
        axis.scatter(*points.data[:, :3].T.numpy(), s=1, c=colors, linewidths=0)
        axis.set(title=points.name, xticks=[], yticks=[])
        axis.set_box_aspect((1, 1, 1) if solid else 1)
        if solid:
            axis.set_zticks([])
    figure.savefig(save_to)


def draw_schedules(save_to: Path) -> None:
    """Draws signal and noise of every schedule."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for color, name in zip(plots.COLORS, SCHEDULES, strict=False):
        alpha_bar = Schedule(500, name).alpha_bar
        axis.plot(alpha_bar.sqrt(), color=color, label=name)
        axis.plot((1 - alpha_bar).sqrt(), "--", color=color, linewidth=1)
    axis.set(xlabel="t", title="signal $\\sqrt{\\bar\\alpha_t}$ (solid), noise (dashed)")
    axis.legend(frameon=False)
    figure.savefig(save_to)


def draw_viewer(run: Path) -> None:
    """Takes screenshots of the page that ``flashpoint view`` writes, in Chromium."""
    page = write_view(run, states_points(), say=lambda text: print(text, file=sys.stderr))
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1280,1110",
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
            chrome.save_screenshot(GALLERY / f"{name}.png")


def shrink(path: Path) -> None:
    """Reduces a picture to WIDTH pixels and 256 colours: a tenth of the bytes looks the same."""
    image = Image.open(path).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.LANCZOS)
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="Folder of a run of the STATES data.")
    run = parser.parse_args().run
    GALLERY.mkdir(exist_ok=True)
    draw_datasets(GALLERY / "datasets.png")
    draw_schedules(GALLERY / "schedules.png")
    write_report(run, states_points(), real_draws=2, say=lambda text: print(text, file=sys.stderr))
    for name in FROM_REPORT:
        shutil.copy(run / "figures" / f"{name}.png", GALLERY)
    for path in GALLERY.glob("*.png"):
        shrink(path)
    draw_viewer(run)


if __name__ == "__main__":
    main()
