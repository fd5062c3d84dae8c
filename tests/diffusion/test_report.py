"""The report of a run: its files, its numbers, its figures, and wrong input."""

import json
import platform
import re
import shutil
from html.parser import HTMLParser
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from flashpoint.diffusion import (
    PointMasses,
    Points,
    Schedule,
    UserError,
    document,
    evaluate,
    excess_loss,
    made_with,
    plots,
    report,
    saved_run,
)
from flashpoint.diffusion.run_folder import RunFolder
from flashpoint.kernels.philox import child_seed

from .helpers import STATES, flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

SMALL = ["--quick", "--steps", "30", "--classifier-steps", "10", "--batch-size", "128",
         "--samples", "60", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "first & <best>"
    assert flashpoint("states", *SMALL, "--out", folder).exit_code == 0
    result = flashpoint("report", folder, "--real-draws", 3, "--device", "cpu")
    assert result.exit_code == 0, result.output
    return folder


class Page(HTMLParser):
    """The pictures, texts and table cells of a page, and whether its tags close."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.links, self.cells, self.open, self.text = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.sources.append(attributes["src"])
        self.links += [attributes[name] for name in ("href", "action") if name in attributes]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def read(folder):
    page = Page((folder / "report.html").read_text())
    assert page.open == []
    return (folder / "report.md").read_text(), page


FIGURES = [
    "data.png", "samples.png", "density.png", "training_curves.png", "conditional.png",
    "classifier.png", "trajectories.png", "reverse.gif", "reverse_steps.png", "excess_loss.png",
]  # fmt: skip


def test_both_files_show_every_figure(run):
    text, page = read(run)
    assert re.findall(r"\]\(figures/(.*?)\)", text) == FIGURES
    assert len(page.sources) == len(FIGURES)
    for name in FIGURES:
        Image.open(run / "figures" / name).verify()


def test_the_page_needs_nothing_else(run):
    _, page = read(run)
    assert all(re.match(r"data:image/(png|gif);base64,", source) for source in page.sources)
    assert page.links == []
    assert not re.search(r"https?:|url\(|@import|<script|<link", (run / "report.html").read_text())


PDF = pytest.param("pdf", marks=pytest.mark.slow)  # each figure holds its fonts


@pytest.mark.parametrize("suffix", ["svg", PDF])
def test_figures_in_the_formats_of_papers(run, tmp_path, suffix):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "figures")
    result = flashpoint("report", copy, "--real-draws", 2, "--device", "cpu", "--format", suffix)
    assert result.exit_code == 0, result.output
    names = [name.replace("png", suffix) for name in FIGURES]
    starts = {"svg": b"<?xml", "pdf": b"%PDF", "gif": b"GIF"}
    for name in names:
        assert (copy / "figures" / name).read_bytes().startswith(starts[name[-3:]])
    # No browser shows a PDF in a page.
    text, page = read(copy)
    assert re.findall(r"\]\(figures/(.*?)\)", text) == (names if suffix == "svg" else FIGURES)
    kind = "svg[+]xml" if suffix == "svg" else "png"
    assert all(re.match(f"data:image/({kind}|gif);base64,", one) for one in page.sources)


def test_a_wrong_format_is_one_line(run):
    result = flashpoint("report", run, "--format", "bmp")
    assert result.exit_code == 2
    assert "--format must be" in result.stderr
    with pytest.raises(UserError, match="figure_format must be"):
        report.write_report(run, STATES, figure_format="bmp", say=lambda _: None)


def test_names_are_escaped(run):
    text, page = read(run)
    assert "STATES: first & <best>" in page.text
    assert "first &amp; &lt;best&gt;" in (run / "report.html").read_text()
    assert text.startswith(r"# STATES: first & \<best\>")


def test_the_metrics_are_those_of_evaluate(run):
    text, page = read(run)
    samples = torch.load(run / "outputs/uncond_gen_samples.pt", weights_only=True)
    seed = child_seed(0, report._BATTERY)
    result = evaluate(samples, STATES, repeats=3, seed=seed, full=True)
    scores = result.scores | result.battery
    assert len(scores) == 13
    for score in scores.values():
        numbers = [
            f"{score.value:.4g}",
            f"{score.real:.4g}",
            f"{score.low:.4g} to {score.high:.4g}",
        ]
        assert f"| {' | '.join(numbers)} |" in text
        assert set(numbers) < set(page.cells)
    entry = json.loads((run / "metrics.json").read_text())["metrics"]["Ohio"]
    assert f"| Ohio | {entry['nll']:.3f} | {entry['nll_data']:.3f} |" in text


def test_the_table_tells_how_the_run_was_made(run):
    cells = read(run)[1].cells
    rows = dict(pairwise(cells))  # the first table has two columns
    assert rows["recipe"] == "states, steps 30, batch_size 128, ema_decay 0.99"
    assert rows["timesteps are drawn"] == (
        "log-normal, 0.35 of the rows by noise level, p_mean -3.2, p_std 0.8"
    )
    assert rows["sampler"] == "EDM, stochastic, s_churn 20, s_noise 1.015"
    assert rows["guidance scale"] == "1"
    spent = json.loads((run / "metrics.json").read_text())["seconds"]
    assert rows["time"].startswith(f"{sum(spent.values()):.0f} s: train denoiser ")
    assert set(re.findall(r"(?:: |, )(.*?) \d+ s", rows["time"])) == spent.keys()
    assert rows["device"] == f"cpu, {torch.get_num_threads()} threads"
    assert f"torch {version('torch')}, " in rows["versions"]
    assert (
        f"python {platform.python_version()}, flashpoint {version('flashpoint')}"
        in (rows["versions"])
    )


def test_a_run_of_an_older_version_says_what_it_does_not_know():
    rows = dict(made_with.told({"denoiser": {"p_uncond": 0.1}, "method": "ddim"}, {}, {}))
    assert rows["time"] == rows["versions"] == rows["device"]
    assert "older version" in rows["time"]


@pytest.mark.parametrize(
    ("config", "guided", "scale"),
    [
        ({}, True, ["1"]),
        ({"scale": 2.5}, True, ["2.5"]),
        ({"denoiser": {"p_uncond": 0.1}}, False, ["0"]),
        ({"denoiser": {"p_uncond": None}, "scale": 2.5}, False, []),
    ],
)
def test_the_guidance_scale_is_told_where_there_is_guidance(config, guided, scale):
    assert [value for _, value in report._guidance(config, guided=guided)] == scale


def test_step_counts_beyond_the_schedule_are_left_out(run):
    text, _ = read(run)
    rows = [line for line in text.splitlines() if re.match(r"\| (2|5|900) \|", line)]
    assert [row.split()[1] for row in rows] == ["2", "5"]
    assert "| 99% of real draws | " in text


def test_the_animation_goes_from_noise_to_samples(run):
    with Image.open(run / "figures/reverse.gif") as image:
        assert image.n_frames == 4
        assert image.info["loop"] == 0
        frames = []
        for frame in range(4):
            image.seek(frame)
            frames.append(np.asarray(image.convert("RGB")))
    assert not np.array_equal(frames[0], frames[-1])
    assert (run / "figures/reverse.gif").stat().st_size < 3e6


def test_a_report_can_be_repeated(run, tmp_path):
    before = read(run)[0]
    shutil.copytree(run, tmp_path / run.name)
    report.write_report(tmp_path / run.name, STATES, real_draws=3, device="cpu", say=lambda _: None)
    assert (tmp_path / run.name / "report.md").read_text() == before


@pytest.mark.parametrize(("dim", "labels"), [(1, True), (3, False), (64, False)])
def test_own_data_of_any_dimension(tmp_path, dim, labels):
    content = {"data": np.random.default_rng(0).normal(size=(200, dim))}
    if labels:
        content["labels"] = np.arange(200) % 2
    data, folder = tmp_path / "own <data> | 1.npz", tmp_path / "run"
    np.savez(data, **content)
    narrow = (*SMALL, "--hidden-layers", "8,8", "--classifier-hidden-layers", "8")
    assert flashpoint("states", *narrow, "--data", data, "--out", folder).exit_code == 0
    result = flashpoint("report", folder, "--data", data, "--real-draws", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    text, page = read(folder)
    without = {"classifier.png", "excess_loss.png", *(() if labels else ("conditional.png",))}
    shown = re.findall(r"\]\(figures/(.*?)\)", text)
    assert shown == [name for name in FIGURES if name not in without]
    assert ("principal axes" in text) == (dim > 3)
    assert ("| guidance scale | 1 |" in text) == labels
    assert r"own \<data\> \| 1: 200 points" in text
    assert f"own <data> | 1: 200 points in {dim} dimensions" in page.cells


def test_a_run_that_was_trained_alone(tmp_path):
    assert flashpoint("train", *SMALL, "--out", tmp_path).exit_code == 0
    report.write_report(tmp_path, STATES, real_draws=2, device="cpu", say=lambda _: None)
    text, _ = read(tmp_path)
    assert "50 samples without guidance" in text
    assert "classifier.png" in text
    assert "conditional.png" not in text


def test_wrong_input_is_one_line_and_exit_code_2(run, tmp_path):
    np.save(tmp_path / "STATES.npy", np.random.default_rng(0).normal(size=(50, 3)))
    np.save(tmp_path / "other.npy", np.random.default_rng(0).normal(size=(50, 2)))
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "checkpoints/denoiser.pt").write_bytes(b"hello")
    empty = tmp_path / "empty"
    shutil.copytree(run, empty)
    (empty / "config.json").write_text("{}")
    for arguments, message in [
        ([tmp_path], "it has no config.json"),
        ([run, "--data", tmp_path / "other.npy"], "was trained on STATES, not on other"),
        ([run, "--data", tmp_path / "STATES.npy"], "the data STATES are not those that run"),
        ([broken], "is no checkpoint, or damaged"),
        ([empty], "config.json does not hold the settings of a run"),
        ([run, "--real-draws", 1], "--real-draws must be at least 2, got 1"),
        ([run, "--device", "gpu"], "device must be cpu"),
    ]:
        result = flashpoint("report", *arguments)
        assert result.exit_code == 2, (arguments, result.output)
        last = result.output.splitlines()[-1]
        assert last.startswith("error: "), result.output
        assert message in last


def test_markdown_and_page_of_every_kind_of_part(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a b.png")
    parts = [
        document.Heading("A & <b>"),
        document.Paragraph("x*y | z"),
        document.Table(["h|1", ""], [["<1>", "2"]]),
        document.Picture(tmp_path / "a b.png", 'say "a"'),
    ]
    assert document.markdown("T", parts, tmp_path) == (
        "# T\n\n## A & \\<b\\>\n\nx\\*y \\| z\n\n| h\\|1 |  |\n| --- | --- |\n| \\<1\\> | 2 |\n\n"
        '![say "a"](a%20b.png)\n\nsay "a"\n'
    )
    page = document.page("T", parts)
    assert "<h2>A &amp; &lt;b&gt;</h2>" in page
    assert '<img alt="say &quot;a&quot;" src="data:image/png;base64,' in page
    assert Page(page).cells == ["h|1", "<1>", "2"]


@pytest.mark.parametrize("feature", ["linspace", "centered"])
def test_the_best_denoiser_for_points_has_no_excess_loss(feature):
    schedule, data = Schedule(50, time_feature=feature), STATES.data[:100]
    excess = excess_loss(report._best_for(data, schedule), schedule, PointMasses(data), n=50)
    assert excess.tolist() == [0] * 50


@pytest.mark.parametrize(
    "options",
    [
        {"name": "flow"},
        {"name": "edm"},
        {"name": "edm", "prediction": "x0"},
        {"name": "cosine", "prediction": "v"},
    ],
)
def test_the_best_denoiser_for_points_has_the_output_of_its_prediction(options):
    schedule, data = Schedule(50, **options), STATES.data[:100]
    model, steps = report._best_for(data, schedule), [0, 20, 48]
    assert excess_loss(model, schedule, PointMasses(data), steps=steps, n=50).max() < 1e-12


def test_a_report_tells_the_prediction_and_leaves_out_noise_alone(flow_run, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        plots, "against_noise", lambda *given: shown.update(given=given) or Figure()
    )
    run = saved_run.SavedRun(*flow_run, torch.device("cpu"), 0)
    run.folder.figures.mkdir(exist_ok=True)
    rows = dict(report._about(run)[0].rows)
    assert rows["schedule"] == "flow, 20 timesteps, no data left at the last"
    assert (rows["prediction"], rows["weighting"]) == ("flow velocity", "uniform")
    report._excess(run)
    levels, curves = shown["given"]
    t = torch.tensor([1, 2, 19]) / 20  # the first two levels, and the last that holds data
    want = t / (t.square() + (1 - t).square()).sqrt()
    torch.testing.assert_close(levels[[0, 1, -1]], want.double())
    for losses in curves.values():
        assert losses.shape == levels.shape
        assert losses.min() > 1e-8


@pytest.mark.parametrize("dim", [1, 2])
def test_density_counts_every_point(dim):
    x = torch.randn(500, dim, generator=torch.Generator().manual_seed(0))
    far = torch.cat((x, x + 100))  # half of them outside the frame
    figure = plots.density(Points(x), far)
    cell = (1.2 * (x.amax(0) - x.amin(0)) / 22).prod().item()  # the frame is wider by a fifth
    if dim == 1:
        densities = [patch.get_data().values for patch in figure.axes[0].patches]
    else:
        densities = [axis.collections[0].get_array().filled(0) for axis in figure.axes[:2]]
    assert [density.sum() * cell for density in densities] == pytest.approx([1, 0.5])


def test_curves_hold_their_numbers():
    curves = {"NLL": {"DDPM": ([5, 50], [3.0, 2.0]), "Heun": ([9, 99], [4.0, 2.5])}}
    figure = plots.against_evaluations(curves, {"NLL": (1.5, 1.8)})
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"DDPM": [[5, 3], [50, 2]], "Heun": [[9, 4], [99, 2.5]]}
    figure = plots.against_noise(torch.tensor([0.1, 1.0]), {"a": torch.tensor([2.0, 3.0])})
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [2, 3])


def test_trajectories_start_at_the_noise_and_end_at_the_samples():
    paths = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    axis = plots.trajectories(paths, [3, 2, 1, 0], STATES).axes[0]
    start, end = (c.get_offsets() for c in axis.collections if c.get_label() in ("noise", "sample"))
    np.testing.assert_allclose(start, paths[0])
    np.testing.assert_allclose(end, paths[-1])


def test_a_report_needs_the_data_the_run_was_made_from(run):
    with pytest.raises(UserError, match="was trained on STATES"):
        report.write_report(run, Points(torch.randn(9, 2)), device="cpu")


def test_losses_of_both_forms_are_read_up_to_the_last_step_done(tmp_path):
    folder = RunFolder(tmp_path)
    folder.make()
    losses = torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0])
    for kept in (losses, losses[None]):
        state = {"denoiser": {"losses": kept}, "validation": [(3, 1.5)]}
        torch.save(state, folder.training_file)
        history = folder.history()
        assert {name: x.tolist() for name, x in history.losses.items()} == {"denoiser": [3, 2, 1]}
        assert history.validation == [(3, 1.5)]
    assert RunFolder(tmp_path / "none").history() is None
