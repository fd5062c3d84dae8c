"""Records become a page and the README's tables; numbers that no record holds are marked."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from flashpoint.bench.__main__ import main
from flashpoint.bench.machine import describe
from flashpoint.bench.record import SUITE, Record
from flashpoint.bench.report import Page, put_between_markers, read_records, readme_of
from flashpoint.bench.tables import NOT_MEASURED

ROOT = Path(__file__).parents[2]
BEGIN = {
    name: f"<!-- {name}: written by python -m flashpoint.bench report -->"
    for name in ("quality", "performance")
}
END = {name: f"<!-- end of {name} -->" for name in BEGIN}
README = "".join(f"before\n{BEGIN[name]}\nold\n{END[name]}\nafter\n" for name in BEGIN)


def entry(peer, us, timing=None, unavailable=None, **changes):
    return {
        "work": "training step", "rows": 2048, "steps": 1, "full_steps": 1, "peer": peer,
        "precision": "fp32", "floor_us": 10.0, "flops": 1e9, "bytes": 1e6, "error": 1e-7,
        "timing": timing, "us": us, "memory_mib": None, "unavailable": unavailable, **changes,
    }  # fmt: skip


def timing(speedup):
    return {"ours_us": 2000.0, "peer_us": 2000 * speedup, "speedup": speedup,
            "low": speedup - 0.1, "high": speedup + 0.1, "rounds": 30}  # fmt: skip


RACE = [
    entry("ours", 2000.0),
    entry("eager", 6000.0, timing(3.0)),
    entry("jax", 5000.0, timing(2.5)),
    entry("compile", None, unavailable="wrong: error 1.0e-01, allowed 0.0001"),
    entry("ours", 9e6, work="sampling", rows=5000, steps=50, full_steps=500),
]
ROOFLINE = [
    {"name": "train_step", "rows": 64, "precision": "fp32", "flops": 1e8, "bytes": 1e6,
     "floor_us": 10.0, "bound": "matmul", "us": 20.0, "low": 19.0, "high": 21.0, "fraction": 0.5},
]  # fmt: skip
SPEEDRUN = [
    {"track": "mixture", "pass_rate": [0.5, 0.01, 0.99], "median_seconds": [3.0, 2.0, 4.0],
     "p95_seconds": [4.0, 3.0, 4.0], "cold_start_seconds": 9.0,
     "seeds": [{"seed": 0, "seconds": 2.0, "passed": True, "failed": []},
               {"seed": 1, "seconds": 4.0, "passed": False, "failed": ["log density 0"]}]},
]  # fmt: skip
STUDY = [{"models": [24, 6], "seconds": [4.0, 1.5], "cold_start_seconds": 20.0, "wrong": []}]
SELFTEST = [
    {"extra_rows": 0.05, "runs": 20, "alarms": 19, "invalid": 1, "low": 0.751, "high": 0.999},
]


def write(folder, gpu, date):
    record = Record(folder)
    record.content["machine"].update(gpu=gpu, date=date)
    record.put("race", results=RACE, left_out=["training step, 1,000,000 rows: too long"])
    rates = {"matmul": {"fp32": 1e11}, "memory": 1e10, "cache": 1e11}
    record.put("roofline", rates=rates, results=ROOFLINE)
    record.put("speedrun", results=SPEEDRUN)
    record.put("study", results=STUDY)
    record.put("gate-selftest", results=SELFTEST)


@pytest.fixture(autouse=True)
def calibration(tmp_path, monkeypatch):
    battery = {"repeats": 200, "passed": 199, "tests": 20, "definition": "five Gaussians"}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"mixture": {"battery": battery, "tau": 0.00077}}))
    monkeypatch.setattr("flashpoint.bench.report.CALIBRATION", path)


def report(folder):
    (folder / "README.md").write_text(README)
    done = CliRunner().invoke(main, [
        "report", "--records", str(folder), "--page", str(folder / "docs/benchmarks.md"),
        "--readme", str(folder / "README.md"),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    return (folder / "docs/benchmarks.md").read_text(), (folder / "README.md").read_text()


def test_without_records_every_row_is_marked(tmp_path):
    page, readme = report(tmp_path)
    assert "## Race: on a GPU\n\n**not measured**" in page
    quality, performance = readme.split("after\n", maxsplit=1)
    assert quality.startswith(f"before\n{BEGIN['quality']}\n\nQuality of samples: {NOT_MEASURED}.")
    assert performance.startswith(
        f"before\n{BEGIN['performance']}\n\nOn a GPU, against all other libraries:\n\n| work |"
    )
    assert performance.count(NOT_MEASURED) == 9
    assert performance.endswith(f"{END['performance']}\nafter\n")


def test_a_cpu_record_leaves_the_gpu_rows_marked(tmp_path):
    write(tmp_path / "one", None, "2026-01-01")
    page, readme = report(tmp_path)
    # The quality, the GPU's rows, the unmeasured works, and the peer of sampling.
    assert readme.count(NOT_MEASURED) == 1 + 9 + 7 + 1
    assert "| training step, 2,048 rows | 2 ms | jax, fp32 | 2.50 (2.40 to 2.60) | 3.00 (" in readme
    assert "| sampling, 5,000 rows (50 of 500 steps) | 9 s |" in readme
    assert "wrong: error 1.0e-01, allowed 0.0001" in page
    assert "Left out:\n\n* training step, 1,000,000 rows: too long" in page
    assert "| train_step | 64 | 1e+08 | 1e+06 | 10.00 | matmul | 20.0 | 50.0% |" in page
    assert "| mixture | 2 | 50% (1% to 99%) | 3 (2 to 4) |" in page
    assert "mixture: 199 of 200 repeats with real draws in place of samples pass all 20" in page
    assert "(95% 97.2% to 100.0%); five Gaussians." in page
    assert "five Gaussians. The excess loss must be at most tau = 0.00077." in page
    assert "\n\n* mixture, seed 1 fails: log density 0\n\n" in page
    assert "states: **not measured**" in page
    assert "| 24 and 6 | 4 and 1.5 | 5.5 | 20 |" in page
    assert "| 5% more rows | 19 | 20 | 95% (75% to 100%) | 1 |" in page
    for kind in ("speedups", "roofline", "speedrun"):
        assert (tmp_path / f"docs/benchmarks-{kind}-one.png").stat().st_size > 1000


def seed(nll, purity, passed=True):
    score = {"value": 0.2, "real": 0.1, "low": 0.0, "high": 0.3, "passed": True}
    found = {
        "nll": nll, "nll_data": 2.0, "delta_nll": nll - 2.0, "purity": purity,
        "sample_to_data": {**score, "passed": passed}, "data_to_sample": score,
        "sliced_wasserstein": score,
    }  # fmt: skip
    return json.dumps({"metrics": {"Ohio": found}})


def test_quality_is_the_mean_over_the_seeds_of_the_newest_runs(tmp_path):
    for name, content in {
        "2026-01-01/seed-0": seed(9.0, 0.1), "2026-01-02/seed-0": seed(2.5, 0.75, passed=False),
        "2026-01-02/seed-10": seed(2.0, 0.25), "2026-01-02/seed-9": seed(1.5, 0.5),
        "2026-01-02/ddim-4": seed(3.0, 0.125),
    }.items():  # fmt: skip
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    _, readme = report(tmp_path)
    assert "seeds 0, 9 and 10 ([record](bench/records/2026-01-02)):" in readme
    assert (
        "| Ohio | 2.000 | 0.000 (0.500, -0.500, 0.000) | 50.00% "
        "| 0.2000 (0.0000 to 0.3000) ✗ | 0.2000 (0.0000 to 0.3000) | 0.2000 (0.3000) |" in readme
    )
    assert "`flashpoint states --recipe fast --method ddim`, seed 4:" in readme
    assert "| Ohio | 2.000 | 1.000 (1.000) | 12.50% | 0.2000 (0.0000 to 0.3000) |" in readme


def test_readme_and_page_are_those_of_the_records(tmp_path, monkeypatch):
    monkeypatch.undo()  # the calibration of the repository
    records = read_records(ROOT / "bench/records")
    readme = (ROOT / "README.md").read_text()
    assert readme_of(readme, ROOT / "bench/records", records) == readme
    Page(records, tmp_path / "benchmarks.md").write()
    page = (ROOT / "docs/benchmarks.md").read_text()
    assert (tmp_path / "benchmarks.md").read_text() == page


def test_works_of_a_gpu_are_shown_although_it_raced_nothing(tmp_path):
    write(tmp_path / "one", "H100", "2026-01-01")
    path = tmp_path / "one/record.json"
    content = json.loads(path.read_text())
    timing = {"ours_us": 60.0, "peer_us": 2400.0, "speedup": 40.0, "low": 39.0, "high": 41.0}
    content["stages"] = {"works": {"results": [
        {"work": "training step, 2,048 rows", "eager": "tf32", "timing": timing},
        {"work": "sampling, 5,000 rows", "timing": None, "unavailable": "wrong: error 1"},
    ]}}  # fmt: skip
    path.write_text(json.dumps(content))
    for text in report(tmp_path):
        assert (
            "| training step, 2,048 rows | 60 us | 2.4 ms, tf32 | 40.00 (39.00 to 41.00) |" in text
        )
        assert "| sampling, 5,000 rows | wrong: error 1 |  |  |" in text
        assert NOT_MEASURED in text


def test_the_latest_record_of_each_gpu_counts_and_trends_show_all(tmp_path):
    for name, gpu, date in (("b", "H100", "2026-02-01"), ("a", "H100", "2026-03-01"),
                            ("c", "A100", "2026-01-01")):  # fmt: skip
        write(tmp_path / name, gpu, date)
    page, readme = report(tmp_path)
    assert "H100 ([record](bench/records/a))" in readme
    assert "A100 ([record](bench/records/c))" in readme
    assert "records/b)" not in readme
    assert "## Trends\n\n![trends](benchmarks-trends.png)" in page
    assert (tmp_path / "docs/benchmarks-trends.png").exists()


def test_records_of_another_suite_version_are_left_out(tmp_path, capsys):
    write(tmp_path / "old", None, "2026-01-01")
    path = tmp_path / "old/record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"suite": SUITE - 1}))
    assert read_records(tmp_path) == []
    assert capsys.readouterr().out == f"left out old, of suite {SUITE - 1}; this is {SUITE}\n"


@pytest.mark.parametrize(("name", "value"), [("suite", 0), ("gpu", "NVIDIA B200")])
def test_nothing_is_added_to_a_record_of_something_else(tmp_path, name, value):
    content = Record(tmp_path).content
    (content if name == "suite" else content["machine"])[name] = value
    (tmp_path / "record.json").write_text(json.dumps(content))
    done = CliRunner().invoke(main, ["race", "--device", "cpu", "--record", str(tmp_path)])
    assert done.exit_code == 2
    assert done.output.startswith(f"error: record {tmp_path.name}/record.json was made with ")
    assert f" {value}, here it is " in done.output
    assert done.output.count("\n") == 1


def test_a_damaged_record_and_missing_markers_are_one_line(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "record.json").write_text("{")
    with pytest.raises(ValueError, match=r"^record .*bad/record.json cannot be read"):
        read_records(tmp_path)
    content = {"suite": 1, "machine": describe(), "stages": {}}
    del content["machine"]["date"]
    (folder / "record.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^record .*bad/record.json lacks date$"):
        read_records(tmp_path)
    with pytest.raises(ValueError, match=r"none is not a folder$"):
        read_records(tmp_path / "none")
    with pytest.raises(ValueError, match="README must hold the lines"):
        put_between_markers("nothing here", "quality", "table")
    with pytest.raises(ValueError, match="README must hold the lines"):
        put_between_markers(f"{END['quality']}\n{BEGIN['quality']}", "quality", "table")
