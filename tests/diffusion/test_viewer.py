"""The viewer's page: what it holds, that the numbers in it are right, and wrong input."""

import base64
import json
import re
import shutil
import subprocess
import zlib
from importlib.resources import files as resources

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from flashpoint.diffusion import (
    ConditionalMLP,
    Points,
    Schedule,
    UserError,
    class_table,
    sample,
    states_points,
)
from flashpoint.diffusion.data import DATASETS
from flashpoint.diffusion.reverse_steps import timesteps
from flashpoint.diffusion.saved_run import SavedRun
from flashpoint.diffusion.viewer import payload as payloads
from flashpoint.diffusion.viewer import write_view
from flashpoint.kernels.philox import child_seed

from .helpers import flashpoint


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(payloads, "_GRID", 20)
    monkeypatch.setattr(payloads, "_ARROWS", 6)
    monkeypatch.setattr(payloads, "_FIELDS", 4)


def view(run, tmp_path, **options):
    folder, points = run
    page = write_view(folder, points, save_to=tmp_path / "view.html", say=lambda _: None, **options)
    text = page.read_text()
    return text, json.loads(re.search(r'id="payload">(.*?)</script>', text, re.S)[1])


def unpack(packed):
    content = zlib.decompress(base64.b64decode(packed["content"]))
    whole = np.frombuffer(content, "<i2" if packed["bits"] == 16 else "i1")
    return whole.reshape(packed["shape"]) * packed["scale"]


def test_the_page_is_whole_and_needs_nothing_else(states_run, tmp_path):
    text, payload = view(states_run, tmp_path, samples=30)
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", text)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "states &amp; &lt;more&gt;" in text
    assert "& <more>" not in text
    assert "$title" not in text
    assert "$payload" not in text
    assert payload["steps"][0] == 30
    assert payload["steps"][-1] == 0


def test_packing_keeps_numbers_to_half_a_step():
    x = torch.randn(7, 3, 2)
    for levels in (127, 32767):
        packed = payloads.pack(x, levels)
        assert np.abs(unpack(packed) - x.numpy()).max() <= packed["scale"] * 0.500001
        assert packed["shape"] == [7, 3, 2]


def test_a_chain_ends_with_samples_that_the_seed_decides(states_run, tmp_path):
    _, first = view(states_run, tmp_path, samples=30, seed=3)
    _, again = view(states_run, tmp_path, samples=30, seed=3)
    _, other = view(states_run, tmp_path, samples=30, seed=4)
    assert first == again
    assert first["chains"][0]["x"] != other["chains"][0]["x"]
    ddim, ddpm, guided = (unpack(chain["x"]) for chain in first["chains"])
    assert ddim.shape == ddpm.shape == (len(first["steps"]), 30, 2)
    assert guided.shape[1] == 50
    assert first["chains"][2]["labels"] == [*range(5)] * 10
    assert abs(ddpm[0].std() - 1) < 0.25  # noise


def test_a_noised_density_is_the_mixture_it_says():
    x_0, at = torch.randn(5, 2), torch.randn(40, 2)
    signal, noise, cell = 0.7, 0.4, 0.3
    covariance = (noise**2 + cell**2 / 12) * np.eye(2)
    means = signal * x_0.numpy()
    expected = np.mean([multivariate_normal(m, covariance).pdf(at.numpy()) for m in means], axis=0)
    found = payloads.noised_density(x_0, (signal, noise), at, cell)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_maps_have_the_grid_s_layout(states_run, tmp_path):
    """Rows go from the top down: the densest cell is where the data are."""
    _, payload = view(states_run, tmp_path, samples=30)
    fields, reach = payload["fields"], payload["reach"]
    share = unpack(fields["maps"]["data"])[-1].reshape(20, 20) ** 2
    x = states_run[1].data.numpy()
    counts, *_ = np.histogram2d(-x[:, 1], x[:, 0], 20, [[-reach, reach]] * 2)
    assert np.corrcoef(share.flatten(), counts.flatten())[0, 1] > 0.9
    assert fields["steps"] == sorted(fields["steps"], reverse=True)
    assert fields["steps"][-1] == 1


def test_the_exact_score_points_to_the_data_s_mean_in_noise(states_run, tmp_path):
    _, payload = view(states_run, tmp_path, samples=30)
    fields = payload["fields"]
    score = unpack(fields["scores"]["exact"])[0]  # [arrows, 2] at t = T
    ends = ((np.arange(6) + 0.5) / 6 * 2 - 1) * payload["reach"]
    places = np.stack(np.meshgrid(ends, -ends), axis=-1).reshape(-1, 2)
    cosine = -(score * places).sum(1) / np.linalg.norm(score, axis=1)
    assert (cosine / np.linalg.norm(places, axis=1) > 0.9).all()


def test_a_flow_is_drawn_at_its_own_levels(flow_run, tmp_path):
    text, payload = view(flow_run, tmp_path, samples=9)
    assert "flow schedule, T = 20" in text
    assert "predicts flow velocity" in text
    t = np.arange(21) / 20
    np.testing.assert_allclose(payload["noise"], t / np.hypot(1 - t, t), atol=1e-6)
    fields, reach = payload["fields"], payload["reach"]
    assert (fields["steps"][0], fields["steps"][-1]) == (20, 1)
    assert payload["steps"][0] == 20
    # x_t = (1 - t) x_0 + t eps and v = eps - x_0, so that eps = x_t + (1 - t) v.
    run = SavedRun(*flow_run, torch.device("cpu"), 0)
    places = payloads.Frame.of(run.points.data).grid(6)
    for field, step in enumerate(fields["steps"]):
        x_t = places * np.hypot(1 - step / 20, step / 20)
        with torch.no_grad():
            v = run.denoiser(run.schedule.inputs(x_t, step - 1))
        eps = x_t + (1 - step / 20) * v
        length = eps.norm(dim=1, keepdim=True)
        want = -eps / length * (length / 2).tanh()
        found = unpack(fields["scores"]["network"])[field]
        np.testing.assert_allclose(found, want, atol=fields["scores"]["network"]["scale"])
    # Where no data is left both scores are -x_t, the error is 0 and the density that of noise.
    scores = [unpack(fields["scores"][name])[0] for name in ("network", "exact")]
    np.testing.assert_allclose(*scores, atol=2 * fields["scores"]["network"]["scale"])
    assert unpack(fields["maps"]["excess"])[0].max() == 0
    variance = 1 + (2 * reach / 20) ** 2 / 12
    top = 1 / (2 * np.pi * variance) * np.exp(-((reach / 20) ** 2) / variance)
    assert fields["maps"]["data"]["top"][0] == pytest.approx(top, rel=1e-3)


def test_the_data_stay_in_place_while_the_noise_falls(make_run, tmp_path):
    """With a small sigma_data the points of little noise, as the network sees them, are large."""
    schedule = Schedule(20, "edm", sigma_data=0.25)
    folder = make_run(tmp_path / "run", states_points(250), schedule)
    run = SavedRun(*folder, torch.device("cpu"), 0)
    way = run.trajectory(6, 1, 20, method="ddim")
    chain = sample(
        run.denoiser, schedule, 6, seed=child_seed(0, 1), method="ddim", num_steps=20,
        keep_every=1, device="cpu",
    )  # fmt: skip
    assert torch.equal(way[-1], chain.x)
    steps = timesteps(schedule, 20, method="ddim")
    size = (schedule.signal.square() + schedule.noise.square()).sqrt().float()[steps]
    assert size[-1].item() == pytest.approx(4, rel=0.01)
    torch.testing.assert_close(way[:-1] * size[:, None, None], chain.trajectory[:-1])
    _, payload = view(folder, tmp_path, samples=30)
    share = unpack(payload["fields"]["maps"]["data"])[-1].reshape(20, 20) ** 2
    x, reach = folder[1].data.numpy(), payload["reach"]
    counts, *_ = np.histogram2d(-x[:, 1], x[:, 0], 20, [[-reach, reach]] * 2)
    assert np.corrcoef(share.flatten(), counts.flatten())[0, 1] > 0.9


@pytest.mark.parametrize("dim", [1, 3, 5])
def test_other_dimensions(dim, solid_run, make_run, tmp_path):
    run = solid_run
    if dim != 3:
        run = make_run(tmp_path / "run", Points(torch.randn(60, dim), name="cloud"))
    _, payload = view(run, tmp_path, samples=10)
    assert payload["dim"] == dim
    assert "fields" not in payload
    assert [chain["title"] for chain in payload["chains"]] == [
        "Deterministic (DDIM)",
        "Ancestral (DDPM)",
    ]
    assert payload["chains"][0]["x"]["shape"][2] == (2 if dim == 1 else 3)


def test_a_conditional_denoiser_takes_the_class(states_run, tmp_path):
    folder = shutil.copytree(states_run[0], tmp_path / "conditional")
    model = ConditionalMLP(3, 2, (8,), class_features=class_table(5))
    torch.save(model.state_dict(), folder / "checkpoints" / "denoiser.pt")
    config = json.loads((folder / "config.json").read_text())
    config["denoiser"]["hidden_layers"] = [8]
    (folder / "config.json").write_text(json.dumps(config))
    _, payload = view((folder, states_run[1]), tmp_path, samples=30)
    by_class = payload["chains"][2]
    assert (by_class["title"], by_class["labels"]) == ("Conditioned on class", [*range(5)] * 10)
    expected = sample(
        model,
        Schedule(num_steps=30, beta_end=0.3),
        50,
        label=torch.tensor(by_class["labels"]),
        seed=child_seed(0, payloads._BY_CLASS),
    ).x
    np.testing.assert_allclose(unpack(by_class["x"])[-1], expected, atol=2 * by_class["x"]["scale"])


def test_a_metric_without_a_value_is_left_blank(states_run, tmp_path):
    folder = shutil.copytree(states_run[0], tmp_path / "flat")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["metrics"]["unconditional"]["nll"] = None
    del metrics["metrics"]["unconditional"]["sliced_wasserstein"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    text, _ = view((folder, states_run[1]), tmp_path, samples=9)
    row = re.search(r"<tr><th[^>]*>unconditional</th>(.*?)</tr>", text)[1]
    assert "<td>not defined</td>" in row
    assert row.count("<td></td>") == 2  # no class, no distance


def test_metrics_are_in_the_page(states_run, tmp_path):
    text, _ = view(states_run, tmp_path, samples=30)
    metrics = json.loads((states_run[0] / "metrics.json").read_text())["metrics"]
    for name, entry in metrics.items():
        assert f'<th scope="row">{name}</th>' in text
        assert f"<td>{entry['nll']:.3f}</td>" in text
    passed = [entry[k]["passed"] for entry in metrics.values() for k in entry
              if isinstance(entry[k], dict) and "passed" in entry[k]]  # fmt: skip
    for kind, value in (("same", True), ("differs", False), ("undecided", None)):
        assert text.count(f'<td class="{kind}"') == passed.count(value)
    assert None in passed  # of fewer than ten real draws


def test_the_command_and_wrong_input(states_run, solid_run, tmp_path, monkeypatch):
    folder, points = states_run
    monkeypatch.setitem(DATASETS, "states", lambda: points)
    page = tmp_path / "page.html"
    arguments = ["view", str(folder), "-n", "9", "--out", str(page), "--device", "cpu"]
    assert flashpoint(*arguments).exit_code == 0
    assert page.stat().st_size > 10_000
    for wrong, message in (
        (["view", str(tmp_path / "none")], "none does not exist"),
        (["view", str(tmp_path)], "is no folder of a run"),
        (["view", str(solid_run[0])], "does not say what data it was trained on: give --data"),
        (["view", str(solid_run[0]), "--data", "states"], "was trained on cloud, not on STATES"),
        (["view", str(folder), "-n", "2"], "samples must be at least 3, got 2"),
    ):
        result = flashpoint(*wrong)
        assert result.exit_code == 2
        assert message in result.output
        assert result.output.count("\n") == 1
    with pytest.raises(UserError, match="cannot be written"):
        write_view(folder, points, samples=9, save_to=folder / "outputs", say=lambda _: None)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_samples_outside_the_picture_are_counted():
    script = (resources("flashpoint.diffusion.viewer") / "drawing.js").read_text(encoding="utf-8")
    begin, end = map(script.index, ("function drawSamples", "/** Returns the radius of a dot"))
    around = f"""
        const places = [[10, 10], [500, 10], [-1, 5], [NaN, 3], [100, 100]];
        const canvas = {{width: 100, height: 100}}, pen = {{}}, view = {{at: 0}}, inks = {{}};
        const solid = false, placeAt = (_, n) => [...places[n], 0], shown = () => true;
        const inkOf = () => "", disc = () => 0, dot = () => 1;
        {script[begin:end]}
        console.log(drawSamples({{x: {{shape: [1, 5, 2]}}, labels: []}}).join());
    """
    done = subprocess.run(["node", "-e", around], capture_output=True, text=True, check=True)
    assert done.stdout == "5,3\n"


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_noise_level_is_that_of_the_schedule():
    """The fields, the curve over the slider and the words follow it."""
    script = (resources("flashpoint.diffusion.viewer") / "drawing.js").read_text(encoding="utf-8")
    parts = (
        ("function fieldAt", "/** Draws the samples; returns"),
        ("function drawNoise", "/** Describes the canvas"),
        ("function report", "function note"),
    )
    code = "".join(script[script.index(begin) : script.index(end)] for begin, end in parts)
    around = f"""
        const run = {{noise: [0, 0.1, 0.2, 0.7, 1], steps: [4, 2, 0], total: 4,
                      fields: {{steps: [4, 2, 1]}}}};
        const last = 2, devicePixelRatio = 1, inks = {{}}, view = {{followed: new Set()}};
        const canvas = {{dataset: {{}}, setAttribute: () => 0}}, lines = [], elements = {{}};
        const pen = {{beginPath() {{}}, fill() {{}}, stroke() {{}},
                      lineTo: (x, y) => lines.push(y)}};
        const element = {{clientWidth: 116, clientHeight: 110, getContext: () => pen,
                          setAttribute: () => 0}};
        const $ = (id) => (elements[id] ??= {{...element}}), note = () => "";
        {code}
        drawNoise();
        report(3, {{title: "a"}}, 5, 0);
        console.log(JSON.stringify([[4, 3, 1, 0].map(fieldAt), lines.slice(-3),
                                    elements.reading.innerHTML]));
    """
    done = subprocess.run(["node", "-e", around], capture_output=True, text=True, check=True)
    fields, heights, words = json.loads(done.stdout)
    assert fields == [0, 0, 2, 2]
    assert heights == pytest.approx([4, 84, 104])  # 104 is 0, 4 is 1
    assert words == "<b>t = 3</b><span>noise level 0.700</span>"
