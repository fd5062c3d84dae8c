"""The files of the gate: one line for each damage, and nothing that overwrites another."""

import json
import math
from dataclasses import asdict
from datetime import UTC, datetime

import pytest
import torch
from click.testing import CliRunner

from flashpoint.bench import gate
from flashpoint.bench.__main__ import main
from flashpoint.bench.baseline import setup
from flashpoint.bench.machine import describe
from flashpoint.bench.nights import Night, read_night, read_nights, write_night
from flashpoint.bench.timing import Timing
from flashpoint.diffusion import UserError

STEP = asdict(Timing(50.0, 100.0, 2.0, 1.9, 2.1, 40))
HERE = setup(torch.device("cpu"), small=False)
BASELINE = {**HERE, "machine": {}, "works": {"step": STEP}}
NIGHT = {
    **BASELINE, "format": 1, "date": "2026-01-31T02:17:00+00:00", "verdict": "as fast as before",
    "accepted": [], "update": False, "works": {"step": STEP | {"verdict": "as before"}},
}  # fmt: skip


def with_number(content, key, value):
    return content | {"works": {"step": content["works"]["step"] | {key: value}}}


NO_JSON = "cannot be read: empty, cut short or no JSON"
DAMAGED = {
    "empty": (lambda _: "", NO_JSON),
    "cut short": (lambda content: json.dumps(content)[:-20], NO_JSON),
    "no text": (lambda _: b"\xff\xfe\x00", NO_JSON),
    "deep": (lambda _: "[" * 100_000, NO_JSON),
    "a list": (lambda _: "[]", "must hold a JSON object, got list"),
    "null": (lambda _: "null", "must hold a JSON object, got NoneType"),
    **{
        f"{key} {str(value)[:5]}": (
            lambda content, key=key, value=value: with_number(content, key, value),
            "the numbers of 'step' must be finite, above 0",
        )
        for key, value in (
            ("speedup", math.nan), ("speedup", 0), ("speedup", -2.0), ("high", math.inf),
            ("peer_us", 0.0), ("ours_us", math.nan), ("low", 3.0), ("rounds", 0),
            ("rounds", 10**400),
        )
    },
    **{
        f"a number {value!r}": (
            lambda content, value=value: with_number(content, "speedup", value),
            f"speedup of 'step' must be a number, got {value!r}",
        )
        for value in (None, "2.0", True, [2.0])
    },
    "works a list": (lambda content: content | {"works": [1]}, "works must be"),
    "no numbers": (lambda content: content | {"works": {"step": 1}}, "works must be"),
    "no works": (
        lambda content: {key: content[key] for key in content if key != "works"}, "lacks works"
    ),
    "no sizes": (
        lambda content: {key: content[key] for key in content if key != "sizes"}, "lacks sizes"
    ),
}  # fmt: skip


def written(path, damage, content):
    damaged = damage(content)
    if isinstance(damaged, dict):
        damaged = json.dumps(damaged)
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())


@pytest.fixture
def never_measures(monkeypatch):
    def measure(*_):
        raise AssertionError("it was measured")

    monkeypatch.setattr(gate, "ending_of", measure)


def refused(*options):
    done = CliRunner().invoke(main, ["gate", "--device", "cpu", *map(str, options)])
    assert done.exit_code == 2, done.output
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1
    return done.output


@pytest.mark.usefixtures("never_measures")
@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_in_one_line(tmp_path, damage, message):
    (tmp_path / "history").mkdir()
    written(tmp_path / "base.json", damage, BASELINE)
    written(tmp_path / "history/night.json", damage, NIGHT)
    before = (tmp_path / "base.json").read_bytes()
    for update in ((), ("--update",)):  # what is no baseline is not replaced either
        line = refused("--baseline", tmp_path / "base.json", *update)
        assert f"baseline {tmp_path / 'base.json'}" in line
        assert message.split(", got")[0] in line
        assert (tmp_path / "base.json").read_bytes() == before
    line = refused("--history", tmp_path / "history")
    assert "night.json" in line
    assert message.split(" of 'step'")[0].split(", got")[0] in line


@pytest.mark.usefixtures("never_measures")
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "has format 2, known is 1"),
        ("date", "yesterday", "date must be like"),
        ("date", None, "date must be like"),
        ("date", "2026-01-31T02:17:00", "date must have a time zone"),
        ("machine", None, "machine must be a dict"),
        ("accepted", "step", "accepted must be a list"),
        ("update", 1, "update must be a bool"),
        ("works", {"step": STEP | {"verdict": "fine"}}, "verdict must be of slower,"),
        ("works", {"step": STEP}, "verdict must be of slower,"),
    ],
)
def test_a_night_with_another_schema_is_refused(tmp_path, key, value, message):
    (tmp_path / "night.json").write_text(json.dumps(NIGHT | {key: value}))
    line = refused("--history", tmp_path)
    assert message in line
    assert line.endswith("restore the file, or take it out of the history\n")


@pytest.mark.usefixtures("never_measures")
@pytest.mark.parametrize(
    ("name", "value"),
    [("device", "h200"), ("suite", 0), ("reference work", "0"), ("sizes", "small")],
)
def test_a_baseline_of_something_else_is_refused(tmp_path, name, value):
    (tmp_path / "base.json").write_text(json.dumps(BASELINE | {name: value}))
    line = refused("--baseline", tmp_path / "base.json")
    assert f"was made with {name} {value}, here it is {HERE[name]}" in line
    if name in ("device", "sizes"):
        refused("--baseline", tmp_path / "base.json", "--update")


@pytest.mark.usefixtures("never_measures")
def test_folders_that_cannot_be_used_are_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    assert "must be a folder" in refused("--history", tmp_path / "file")
    assert "cannot be written to" in refused("--history", tmp_path / "file/below")
    assert "cannot be written to" in refused("--baseline", tmp_path / "file/below.json")
    assert "cannot be read" in refused("--baseline", tmp_path)
    assert "exclude each other" in refused("--history", tmp_path, "--baseline", tmp_path / "b")


def test_a_night_is_read_as_it_was_written_and_overwrites_no_other(tmp_path):
    good = Timing(50.0, 100.0, 2.0, 1.9, 2.1, 40)
    bad = Timing(math.nan, 100.0, math.nan, math.nan, math.nan, 40)
    night = Night(
        datetime(2026, 1, 31, 2, 17, tzinfo=UTC), HERE, describe(), "invalid: other",
        {"step": good, "other": bad}, {"step": "as before", "other": "invalid"}, ("step",), True,
    )  # fmt: skip
    first, second = write_night(tmp_path, night), write_night(tmp_path, night)
    assert first.name == f"2026-01-31T02-17-00Z-{HERE['device']}.json"
    assert first != second
    assert "NaN" not in first.read_text()
    one, other = read_nights(tmp_path)
    assert one == other == read_night(second)
    assert one.valid("step") == good
    assert one.valid("other") is None
    assert one.valid("a third") is None
    assert (one.accepted, one.update, one.machine["torch"]) == (("step",), True, torch.__version__)


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("nights")
    (tmp_path / ".git").mkdir()
    assert read_nights(tmp_path) == []
    assert read_nights(tmp_path / "not yet") == []


@pytest.mark.usefixtures("never_measures")
def test_the_record_is_neither_the_baseline_nor_among_the_nights(tmp_path):
    line = refused("--history", tmp_path, "--record", tmp_path / "x/..")
    assert "--record and --history must be two folders" in line
    line = refused("--baseline", tmp_path / "record.json", "--record", tmp_path)
    assert "--baseline must not be the record" in line
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_does_not_cost_the_verdict(tmp_path, monkeypatch):
    def full(*_):
        raise UserError("file night.json cannot be written: No space left on device")

    monkeypatch.setattr(gate, "ending_of", lambda *_: gate.Ending(gate.Status.SLOWER, "slower: it"))
    monkeypatch.setattr(gate, "write_night", full)
    done = CliRunner().invoke(main, ["gate", "--device", "cpu", "--history", str(tmp_path)])
    assert done.exit_code == 2
    assert done.output.splitlines() == [
        "gate: slower: it", "error: file night.json cannot be written: No space left on device"
    ]  # fmt: skip
