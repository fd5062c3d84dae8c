"""Records become a page and the README's table; what no record holds is marked."""

import json

import pytest
from click.testing import CliRunner

from flashpoint.bench.__main__ import main
from flashpoint.bench.history import BEGIN, END, NOT_MEASURED, put_between_markers, read_records
from flashpoint.bench.record import SUITE, Record

README = f"before\n{BEGIN}\nold\n{END}\nafter\n"


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
    monkeypatch.setattr("flashpoint.bench.history.CALIBRATION", path)


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
    assert readme.count(NOT_MEASURED) == 9
    assert readme.startswith(f"before\n{BEGIN}\n\nOn a GPU, against all:")
    assert readme.endswith(f"{END}\nafter\n")


def test_a_cpu_record_leaves_the_gpu_rows_marked(tmp_path):
    write(tmp_path / "one", None, "2026-01-01")
    page, readme = report(tmp_path)
    assert readme.count(NOT_MEASURED) == 9 + 7 + 1  # the GPU's rows; unmeasured; sampling's peer
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
        assert "| sampling, 5,000 rows | wrong: error 1 | | |" in text
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
    with pytest.raises(ValueError, match=r"^record bad/record.json cannot be read \("):
        read_records(tmp_path)
    (folder / "record.json").write_text('{"suite": 1, "machine": {"gpu": null}, "stages": {}}')
    with pytest.raises(ValueError, match=r"^record bad/record.json lacks date$"):
        read_records(tmp_path)
    with pytest.raises(ValueError, match=r"none is no folder$"):
        read_records(tmp_path / "none")
    with pytest.raises(ValueError, match="README must hold the lines"):
        put_between_markers("nothing here", "table")
