"""bench/gpu.sh and its visit to a GPU."""

import json
import os
import re
import subprocess
import sys
import time

import click
import pytest

from flashpoint.bench import visit
from flashpoint.bench.__main__ import main
from flashpoint.bench.kernel_cache import FILE, LIMIT
from flashpoint.bench.visit import END, LIMITS, NIGHTLY, PARTS, ROOT, START, UNMARKED, VERBS
from flashpoint.diffusion import UserError

from .. import warm_python

SCRIPT = ROOT / "bench/gpu.sh"
MEASURED = ("works", "race", "roofline", "operations", "speedrun", "gate", "study")


def environment(**variables):
    return os.environ | {"PYTHON": sys.executable} | {k: str(v) for k, v in variables.items()}


def run(*arguments, **variables):
    return subprocess.run(
        [SCRIPT, *arguments], env=environment(**variables), capture_output=True, text=True,
        timeout=3000,
    )  # fmt: skip


def record_of(folder):
    return json.loads((folder / "record.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs all stages at toy size; returns the folder of their results and the process."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run("--smoke", OUT=folder, TRITON_CACHE_DIR=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def commands(tmp_path):
    return visit.Commands(tmp_path, "cuda", tmp_path)


def test_without_a_gpu_the_script_says_so_in_one_line():
    done = run("check", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no CUDA device")
    assert done.stderr.count("\n") == 1


def test_an_unknown_verb_is_named_beside_those_there_are():
    done = run("chekc")
    assert done.returncode == 2
    assert "'chekc' is not one of 'check', 'tune', 'race', 'quality'" in done.stderr


def test_a_wrong_verb_imports_no_benchmark():
    code = (
        "import sys\nfrom flashpoint.bench.__main__ import main\n"
        "try:\n    main(['visit', 'chekc'])\n"
        "finally:\n    print([name for name in sys.modules if name.startswith('flashpoint.')])\n"
    )
    done = warm_python.run(["-c", code])
    assert done.returncode == 2
    assert "'flashpoint.bench.visit'" in done.stdout
    for heavy in ("bench.works", "bench.race", "bench.gate", "diffusion.public"):
        assert f"'flashpoint.{heavy}'" not in done.stdout


@pytest.mark.slow  # all stages
def test_every_stage_leaves_its_result(whole):
    folder, done = whole
    assert done.returncode == 0, done.stdout + done.stderr
    files = {file.name for file in folder.iterdir()}
    assert files == {"record.json", "log.txt", "roofline.png", "speedrun.png", FILE}
    record = record_of(folder)
    assert record["machine"]["torch"]
    stages = record["stages"]
    outcomes = {name: stage["outcome"] for name, stage in stages.items()}
    for tool in ("memcheck", "racecheck"):
        for what in ("works", "operations"):
            assert outcomes.pop(f"{tool} {what}") in ("passed", "unavailable")
    together = ("compile", "gpu-tests 1/2", "gpu-tests 2/2")
    assert outcomes == dict.fromkeys((*together, *MEASURED), "passed")
    assert all(stages[name]["results"] for name in MEASURED)
    log = (folder / "log.txt").read_text()
    assert all(f"=== {name}: " in log for name in stages)


@pytest.mark.slow  # all stages
def test_the_last_lines_are_the_summary(whole):
    lines = whole[1].stdout.splitlines()[-100:]
    start = next(n for n, line in enumerate(lines) if line.startswith("== all on "))
    assert "did not ==" in lines[start]
    for name in ("works", "race", "roofline", "speedrun", "gate", "study"):
        assert f"-- {name}" in lines[start:]


@pytest.mark.slow  # all stages
def test_the_next_visit_compiles_nothing_again(whole, tmp_path):
    folder, _ = whole
    first = record_of(folder)["stages"]["compile"]["last line"]
    assert re.fullmatch(r"([1-9]\d*) kernels, \1 compiled now", first)
    done = run("check", "--smoke", OUT=folder, TRITON_CACHE_DIR=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stdout
    second = record_of(folder)["stages"]["compile"]["last line"]
    assert re.fullmatch(r"[1-9]\d* kernels, 0 compiled now", second)
    assert 0 < (folder / FILE).stat().st_size < LIMIT


def test_what_was_compiled_is_found_beside_the_script(tmp_path, monkeypatch):
    monkeypatch.setattr(visit, "ROOT", tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / FILE).write_bytes(b"damaged")
    (note,) = visit.use_compiled(tmp_path / "out", tmp_path / "cache")
    assert str(tmp_path / "bench" / FILE) in note


def test_a_full_disk_does_not_cost_the_summary(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(visit.kernel_cache, "pack", full)
    (note,) = visit.keep_compiled(tmp_path, tmp_path)
    assert note == f"{FILE} cannot be written: No space left on device"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_keeps_within_its_time(verb, commands):
    groups = VERBS[verb](commands)
    assert START + sum(group.limit for group in groups) + END <= LIMITS[verb]
    for group in groups:
        # A timed stage has the time that was planned for it, and nothing runs beside it.
        recording = [stage for stage in group.stages if "--record" in stage.command]
        assert not recording or len(group.stages) == 1
        assert all(stage.limit == group.limit for stage in recording)


def test_the_clock_runs_from_the_start_of_the_process():
    code = (
        "import time; time.sleep(0.5); from flashpoint.bench.visit import seconds_running\n"
        "print(seconds_running())"
    )
    start = time.monotonic()
    done = warm_python.run(["-c", code])
    assert 0.5 <= float(done.stdout) <= time.monotonic() - start + 0.02  # of clock ticks


def test_a_long_start_is_the_first_stages_loss(tmp_path):
    one = visit.Stage("late", (sys.executable, "-c", "print(1)"), 100)
    run = visit.Visit(tmp_path, tmp_path, visit.environment_of_stages(tmp_path, tmp_path))
    visit.Record(tmp_path).write()
    run.run([visit.alone(one)], start=time.monotonic() - 60)
    assert run.ended[0].outcome == "passed"
    assert 35 < run.ended[0].limit <= 40


def test_a_night_takes_less_than_nine_minutes(commands):
    limits = [group.limit for verb in NIGHTLY for group in VERBS[verb](commands)]
    assert START + sum(limits) + END * len(NIGHTLY) < 9 * 60


@pytest.mark.parametrize("verb", VERBS)
def test_benchmarks_know_their_options(verb, commands):
    stages = [stage for group in VERBS[verb](commands) for stage in group.stages]
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    found = 0
    for stage in stages:
        words = stage.command_within(stage.limit)
        if "flashpoint.bench" not in words:
            continue
        name, *options = words[words.index("flashpoint.bench") + 1 :]
        with click.Context(click.Command(name)) as context:
            main.get_command(context, name).make_context(name, options, parent=context)
        found += 1
    assert found


def test_the_most_telling_tests_come_first(commands):
    others = visit.other_files()
    assert "diffusion/test_training.py" in others
    assert not set(PARTS) & set(others)
    stages = VERBS["check"](commands)[0].stages
    tests = [stage for stage in stages if stage.name.startswith("tests ")]
    assert tests[0].name == "tests every_network 1/10"
    files = {str(ROOT / "tests" / file) for file in (*PARTS, *others, *UNMARKED)}
    assert files == {word for stage in tests for word in stage.command if word.endswith(".py")}
    assert stages[-1].spare  # the sanitizers


@pytest.mark.slow  # imports all tests
def test_tests_of_the_script_are_there_and_need_nothing_that_a_bare_image_lacks():
    files = {f"tests/{file}" for file in (*PARTS, *visit.other_files(), *UNMARKED)}
    missing = "import sys; sys.modules |= dict.fromkeys(['ot', 'diffusers', 'safetensors', 'onnx'])"
    code = f"{missing}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    done = warm_python.run(["-c", code, "-q", "--collect-only", *sorted(files)], cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_a_stage_that_failed_is_in_the_exit_status(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho 'it is broken'\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    code = (
        "import sys; from flashpoint.bench import visit\n"
        f"visit.sys.executable = {str(tmp_path / 'python')!r}\n"
        "visit.main(['tune', '--smoke'])"
    )
    variables = environment(OUT=tmp_path / "out", TRITON_CACHE_DIR=tmp_path / "cache")
    done = warm_python.run(["-c", code], env=variables)
    assert done.returncode == 1, done.stderr
    assert "0 of 2 stages passed" in done.stdout
    assert "    it is broken" in done.stdout
    assert record_of(tmp_path / "out")["stages"]["tune"]["exit status"] == 3


def test_a_second_visit_goes_on_with_the_record_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    visit.Record(visit.record_folder()).put("race", seconds=3)
    assert visit.Record(visit.record_folder()).content["stages"] == {"race": {"seconds": 3}}
    monkeypatch.setattr(visit.machine, "commit", lambda: "another")
    with pytest.raises(UserError, match="another; name another folder with OUT"):
        visit.record_folder()
    assert record_of(tmp_path)["stages"] == {"race": {"seconds": 3}}


def test_interrupted_it_ends_its_stages_and_keeps_the_record(tmp_path):
    variables = environment(
        OUT=tmp_path / "out", TMPDIR=tmp_path, TRITON_CACHE_DIR=tmp_path / "cache"
    )
    with subprocess.Popen(
        [SCRIPT, "--smoke"],
        env=variables,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as script:
        while not list(tmp_path.glob("tmp*/compile.txt")):
            assert script.poll() is None
            time.sleep(0.1)
        script.terminate()
        assert script.wait(300) == 130
        # They can be read to their end only once no stage holds them open any more.
        last, printed = script.stderr.read().splitlines()[-1], script.stdout.read()
    assert last == f"interrupted; {tmp_path}/out holds the results until then"
    assert "== all on CPU" in printed
    assert not record_of(tmp_path / "out")["stages"].keys() & set(MEASURED)
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "cache"}
