"""bench/gpu.sh and the record that it keeps."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from flashpoint.bench.record import main as record

SCRIPT = Path(__file__).parents[2] / "bench/gpu.sh"


def run(*arguments):
    done = CliRunner().invoke(record, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    ("status", "outcome"), [(0, "passed"), (1, "failed"), (124, "out of time")]
)
def test_record_of_a_stage(tmp_path, status, outcome):
    (tmp_path / "tests.txt").write_text("first\nlast\n")
    (tmp_path / "tests.end").write_text(f"{status} 3 60\n")
    run("start", tmp_path)
    run("stages", tmp_path, tmp_path, "tests")
    run("unavailable", tmp_path, "memcheck", "no compute-sanitizer")
    written = json.loads((tmp_path / "record.json").read_text())
    assert written["machine"]["torch"]
    assert written["stages"] == {
        "tests": {
            "outcome": outcome,
            "exit status": status,
            "seconds": 3,
            "limit": 60,
            "last line": "last",
        },
        "memcheck": {"outcome": "unavailable", "reason": "no compute-sanitizer"},
    }


def test_name_can_be_part_of_a_folder():
    assert run("name").strip().replace("-", "").isalnum()


def test_without_a_gpu_the_script_says_so_in_one_line():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("bench/gpu.sh: no CUDA device")
    assert done.stderr.count("\n") == 1


def test_every_stage_leaves_its_result(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(
        [SCRIPT, "--smoke"], env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"record.json", "log.txt", "roofline.png", "speedrun.png"}
    stages = json.loads((tmp_path / "record.json").read_text())["stages"]
    outcomes = {name: stage["outcome"] for name, stage in stages.items()}
    for tool in ("memcheck", "racecheck"):
        assert outcomes.pop(tool) in ("passed", "unavailable")
    measured = ("race", "roofline", "gate", "speedrun", "study")
    assert outcomes == dict.fromkeys(("gpu-tests", *measured), "passed")
    assert all(stages[name]["results"] for name in measured)


def test_all_stages_together_take_less_than_nine_minutes():
    on_a_gpu = SCRIPT.read_text().rpartition("\nelse\n")[2]
    alone = re.findall(r"^  stage \S+ (\d+)", on_a_gpu, re.MULTILINE)
    together = re.findall(r"^ +(?:begin|sanitize) \S+ (\d+)", on_a_gpu, re.MULTILINE)
    assert (len(alone), len(together)) == (8, 4)
    # Three seconds for each process that writes how stages ended, and that of the start.
    assert sum(map(int, alone)) + max(map(int, together)) + 3 * (len(alone) + 2) < 9 * 60


def test_tests_of_the_script_are_there_and_need_nothing_that_a_bare_image_lacks():
    (names,) = re.findall(r"for name in (adamw.+); do", SCRIPT.read_text())
    found = [f"tests/kernels/test_{name}.py" for name in names.split()]
    marked = [str(path) for path in (SCRIPT.parents[1] / "tests").rglob("test_*.py")
              if "mark." + "gpu" in path.read_text()]  # fmt: skip
    missing = "import sys; sys.modules |= dict.fromkeys(['ot', 'diffusers', 'safetensors', 'onnx'])"
    code = f"{missing}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-q", "--collect-only", *found, *marked]
    done = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_interrupted_it_ends_its_stages_and_keeps_the_record(tmp_path):
    environment = os.environ | {
        "OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "TMPDIR": str(tmp_path),
    }  # fmt: skip
    with subprocess.Popen(
        [SCRIPT, "--smoke"], env=environment, stderr=subprocess.PIPE, text=True
    ) as script:
        while not list(tmp_path.glob("*/gpu-tests.txt")):
            assert script.poll() is None
            time.sleep(0.1)
        script.terminate()
        assert script.wait(30) == 130
        # It can be read to its end only once no stage holds it open any more.
        last = script.stderr.read().splitlines()[-1]
    assert last == f"bench/gpu.sh: interrupted; {tmp_path}/out holds what was measured until then"
    assert json.loads((tmp_path / "out/record.json").read_text())["stages"] == {}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
