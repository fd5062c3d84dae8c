"""Every wrong argument of a benchmark ends in one line that names it, before any work starts."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from flashpoint.bench import datasets, record
from flashpoint.bench.__main__ import COMMANDS, main
from flashpoint.bench.machine import describe

ROUNDS = ("gate", "gate-selftest", "host", "operations", "race", "tune", "works")
BUDGET = ("operations", "race", "speedrun", "tune", "works")
DEVICE = ("calibrate", "gate", "gate-selftest", "host", "operations", "parametrisations", "race",
          "roofline", "speedrun", "study", "tune", "works")  # fmt: skip
RECORD = ("gate", "gate-months", "host", "operations", "parametrisations", "race", "roofline",
          "speedrun", "study", "works")  # fmt: skip
WRONG = [
    *((name, "--rounds", value) for name in ROUNDS for value in ("-1", "1", "nan", "2.5", "x")),
    *((name, "--budget", value) for name in BUDGET for value in ("-1", "nan", "inf", "x")),
    *((name, "--device", value) for name in DEVICE for value in ("gpu", "mps", "cuda:99", "")),
    *((name, "--nonsense", "1") for name in COMMANDS),
    *(("race", option, value) for option in ("--seconds", "--per-comparison")
      for value in ("-1", "nan", "inf", "x")),
    ("race", "--seconds", "0"),
    ("race", "--peers", ""),
    ("race", "--peers", "eager,nosuch"),
    ("works", "--only", "nosuch"),
    ("works", "--until", "nosuch"),
    ("tune", "--most", "0"),
    ("tune", "--only", "nosuch"),
    *((name, "--track", "nosuch") for name in ("calibrate", "speedrun")),
    *((name, "--seeds", value) for name in ("parametrisations", "speedrun")
      for value in ("0", "-3", "1.5", "x")),
    *(("calibrate", "--draws", value) for value in ("0", "1", "-1", "x")),
    *(("calibrate", option, value) for option in ("--repeats", "--long-runs")
      for value in ("-1", "x")),
    ("calibrate", "--repeats", "0"),
    ("calibrate", "--long-runs", "1"),
    *(("gate-selftest", option, value) for option in ("--repeats", "--planted-repeats")
      for value in ("0", "-1", "x")),
    *(("gate-months", "--months", value) for value in ("0", "-1", "x")),
    *(("gate-months", "--noise", value) for value in ("-1", "1", "nan", "x")),
    *(("gate", "--extra-rows", value) for value in ("-0.5", "nan", "inf", "x")),
    *(("datasets", "--recipe", value) for value in ("nosuch", "")),
    *(("datasets", "--seed", value) for value in ("-1", "x", str(2**63))),
    ("datasets", "--device", "gpu"),
    *((name, "--record", "FILE/below") for name in RECORD),
    *((name, "--record", "DAMAGED") for name in RECORD),
    *(("report", option, "FILE/below") for option in ("--records", "--page", "--readme")),
    ("report", "--page", "FILE.txt"),
    ("report", "--readme", "FOLDER"),
    ("gate", "--history", "FILE"),
    ("gate", "--baseline", "FOLDER"),
    *((name, "--calibration", "DAMAGED/record.json") for name in ("calibrate", "speedrun")),
    ("calibrate", "--calibration", "FILE/below"),
    ("visit", "nosuch", "x"),
]  # fmt: skip


@pytest.fixture
def place(tmp_path):
    """Returns a function that puts real paths in the place of the names in the table."""
    (tmp_path / "file").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/record.json").write_text("{")
    paths = {
        "DAMAGED": tmp_path / "damaged",
        "FILE": tmp_path / "file",
        "FOLDER": tmp_path,
    }

    def placed(value):
        for name, path in paths.items():
            if value.startswith(name):
                return value.replace(name, str(path), 1)
        return value

    return placed


@pytest.mark.parametrize(("name", "option", "value"), WRONG)
def test_a_wrong_argument_is_named(place, tmp_path, monkeypatch, name, option, value):
    def never(*_, **__):
        raise AssertionError("work began")

    for work in ("states_problem", "measure", "comparisons", "all_operations"):
        module = sys.modules[main.get_command(None, name).callback.__module__]
        if hasattr(module, work):
            monkeypatch.setattr(module, work, never)
    more = ["--out", str(tmp_path / "out")] if name == "datasets" else []
    more += ["--small"] if name == "tune" and option != "--device" else []
    done = CliRunner().invoke(main, [name, option, place(value), *more])
    assert done.exit_code == 2, (done.output, done.exception)
    lines = done.output.strip().splitlines()
    assert lines[-1].lower().startswith("error: ")
    assert len([line for line in lines if not line.startswith(("Usage: ", "Try ")) and line]) == 1
    given = place(value).removesuffix("/below") or "''"
    assert option in lines[-1] or option.lstrip("-") in lines[-1] or given in lines[-1]


def test_every_command_is_in_the_table():
    assert {name for name, *_ in WRONG} == set(COMMANDS)


@pytest.mark.parametrize(
    ("part", "value"),
    [("machine", []), ("stages", None), ("stages", {"race": 1}), ("machine", {}), (None, [])],
)
def test_a_record_of_another_shape_is_refused(tmp_path, part, value):
    content = {"suite": record.SUITE, "machine": describe(), "stages": {}}
    content = value if part is None else content | {part: value}
    (tmp_path / "record.json").write_text(json.dumps(content))
    done = CliRunner().invoke(main, ["works", "--device", "cpu", "--record", str(tmp_path)])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert f"{tmp_path}/record.json" in done.output


@pytest.mark.parametrize("results", [1, [1], [{}]])
def test_results_of_another_shape_are_refused(tmp_path, results):
    folder = tmp_path / "records/one"
    folder.mkdir(parents=True)
    machine = describe()
    content = {"suite": record.SUITE, "machine": machine, "stages": {"race": {"results": results}}}
    (folder / "record.json").write_text(json.dumps(content))
    (tmp_path / "README.md").write_text("".join(
        f"<!-- {name}: written by python -m flashpoint.bench report -->\n<!-- end of {name} -->\n"
        for name in ("quality", "performance")
    ))  # fmt: skip
    done = CliRunner().invoke(main, [
        "report", "--records", str(tmp_path / "records"), "--page", str(tmp_path / "page.md"),
        "--readme", str(tmp_path / "README.md"),
    ])  # fmt: skip
    assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
    assert not (tmp_path / "page.md").exists()


def test_page_and_readme_are_two_files(tmp_path):
    (tmp_path / "one.md").write_text("kept")
    same = tmp_path / "folder/../one.md"
    (tmp_path / "folder").mkdir()
    done = CliRunner().invoke(
        main, ["report", "--page", str(same), "--readme", str(tmp_path / "one.md")]
    )
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert (tmp_path / "one.md").read_text() == "kept"


def test_measured_data_sets_are_replaced_only_if_asked(tmp_path, monkeypatch):
    class Bench:
        denoiser = classifier = datasets.SCHEDULE

        def __init__(self, *_):
            pass

        def run(self):
            return {}

    monkeypatch.setattr(datasets, "DatasetBench", Bench)
    monkeypatch.setattr(datasets, "table", lambda _: "table")
    arguments = ["datasets", "moons", "--out", str(tmp_path), "--device", "cpu"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    (tmp_path / "moons.json").write_text("{}")
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "has moons.json already" in done.output
    assert (tmp_path / "moons.json").read_text() == "{}"
    assert CliRunner().invoke(main, [*arguments, "--overwrite"]).exit_code == 0
    assert (tmp_path / "moons.json").read_text() != "{}"


@pytest.mark.slow  # starts Python twice
def test_pages_are_read_and_written_in_any_locale(tmp_path):
    variables = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = (
        "from flashpoint.bench.report import ROOT, _read_text; import locale, runpy, sys\n"
        "assert locale.getpreferredencoding(False) not in ('utf-8', 'UTF-8')\n"
        "assert not _read_text(ROOT / 'README.md').isascii()\n"
        "sys.argv = ['pages.py', '--check']\n"
        "runpy.run_path(str(ROOT / 'docs/pages.py'), run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
