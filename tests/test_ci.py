"""The continuous checks turn red with each command and skip; nights are kept on a branch."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flashpoint.bench import pytest_skips

ROOT = Path(__file__).parents[1]
SKIPS = "from flashpoint.bench.pytest_skips import *  # both hooks\n"
# Stands for a program: notes its name and arguments, and fails if they are those of FAIL.
STUB = """#!/bin/bash
command="$(basename "$0") $*"
echo "$command" >> "$LOG"
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && touch "$3/bin/activate"; fi
[ "${command//$TMPDIR/}" != "${FAIL//$TMPDIR/}" ]
"""
PROGRAMS = ("python3", "python", "pip", "ruff", "mypy", "apt-get", "mkdocs", "twine", "flashpoint")


@pytest.fixture
def run_script(tmp_path):
    """Returns a function that runs .ci/run with stubs; it returns the status and the commands."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)
    for name in (
        "bash",
        "basename",
        "dirname",
        "mktemp",
        "mkdir",
        "touch",
        "rm",
        "env",
        "realpath",
    ):
        (programs / name).symlink_to(shutil.which(name))
    # A name that is the same in every run, in place of a random one.
    (programs / "mktemp").unlink()
    (programs / "mktemp").write_text('#!/bin/bash\nmkdir -p "$TMPDIR/new" && echo "$TMPDIR/new"\n')
    (programs / "mktemp").chmod(0o755)

    def run(fail=""):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        variables = {"PATH": programs, "LOG": log, "FAIL": fail, "TMPDIR": tmp_path}
        done = subprocess.run(
            [programs / "bash", ROOT / ".ci/run"], env={k: str(v) for k, v in variables.items()}
        )
        return done.returncode, log.read_text().splitlines()

    return run


def test_each_command_that_fails_ends_the_script_with_a_failure(run_script):
    status, commands = run_script()
    assert status == 0
    assert len(commands) >= 16
    for number, command in enumerate(commands, start=1):
        status, done = run_script(fail=command)
        assert status != 0, command
        assert done == commands[:number]


def test_the_script_checks_everything(run_script):
    _, commands = run_script()
    assert {
        "ruff check .", "ruff format --check .", "mypy", "python -m pytest",
        "python -m pytest -m slow", "python -m pytest -m browser",
        "python -m pytest bench/ --benchmark-disable",
        "python docs/gallery.py --check",
        "mkdocs build --strict",  # with --quiet it ignores warnings
        "flashpoint states --quick --device cpu --out run",  # from the wheel
    } <= {command.strip() for command in commands}  # fmt: skip


SKIPPING = {
    "module": "pytest.skip('no', allow_module_level=True)",
    "import": "pytest.importorskip('no_such_module')",
    "unittest": "import unittest; raise unittest.SkipTest('no')",
    "mark": "@pytest.mark.skip\ndef test_it():\n    pass",
    "expected": "@pytest.mark.xfail\ndef test_it():\n    assert False",
    "inside": "def test_it():\n    pytest.skip('no')",
    "fixture": "@pytest.fixture\ndef browser():\n    pytest.skip('no')\n"
    "def test_it(browser):\n    pass",
}


def test_every_kind_of_skip_is_a_failure(tmp_path):
    (tmp_path / "conftest.py").write_text(SKIPS)
    (tmp_path / "test_whole.py").write_text("def test_it():\n    pass\n")
    for name, skip in SKIPPING.items():
        (tmp_path / f"test_{name}.py").write_text(f"import pytest\n{skip}\n")
    done = run_pytest(tmp_path, "--continue-on-collection-errors")
    lines = done.stdout.splitlines()
    failed = {line.split()[1].split("::")[0] for line in lines if line[:5] in ("FAILE", "ERROR")}
    assert failed == {f"test_{name}.py" for name in SKIPPING}
    assert done.returncode == 1


@pytest.mark.parametrize("folder", ["tests", "bench/suite"])
def test_both_folders_of_tests_take_the_hooks(folder):
    hooks = {name for name in vars(pytest_skips) if name.startswith("pytest_")}
    assert len(hooks) == 2
    conftest = ast.parse((ROOT / folder / "conftest.py").read_text())
    taken = [
        {name.name for name in node.names if name.asname is None}
        for node in conftest.body
        if isinstance(node, ast.ImportFrom) and node.module == pytest_skips.__name__
    ]
    assert taken == [hooks]


def test_a_test_that_needs_a_gpu_may_be_skipped(tmp_path):
    (tmp_path / "conftest.py").write_text(SKIPS)
    (tmp_path / "test_gpu.py").write_text(
        "import pytest\n\n@pytest.mark.gpu\ndef test_it():\n    pytest.skip('no GPU')\n"
    )
    assert run_pytest(tmp_path, "-W", "ignore").returncode == 0


def run_pytest(folder, *options):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "."]
    # Other plugins take a second to import.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def repository(tmp_path):
    """Returns a function that makes a clone of an origin, which holds one commit."""

    def git(*arguments):
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        subprocess.run(["git", *identity, *map(str, arguments)], check=True, capture_output=True)

    origin, first = tmp_path / "origin.git", tmp_path / "first"
    git("init", "--bare", "-b", "main", origin)
    git("clone", origin, first)
    git("-C", first, "commit", "--allow-empty", "-m", "start")
    git("-C", first, "push", "origin", "HEAD:main")

    def clone(name):
        git("clone", "--depth", "1", f"file://{origin}", tmp_path / name)
        return tmp_path / name

    return clone


def history(clone, *arguments):
    done = subprocess.run(
        [ROOT / ".ci/history", *map(str, arguments)], cwd=clone, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_nights_are_kept_on_a_branch_from_run_to_run(repository, tmp_path):
    for number in range(3):  # each night in a new clone
        clone, folder = repository(f"clone {number}"), tmp_path / f"history {number}"
        status, output = history(clone, "get", folder)
        assert (status, "this is the first night" in output) == (0, number == 0)
        assert sorted(path.name for path in folder.iterdir()) == [
            f"night {earlier}.json" for earlier in range(number)
        ]
        (folder / f"night {number}.json").write_text(f"{{{number}}}")
        assert history(clone, "put", folder) == (0, "")
        assert not [path for path in clone.iterdir() if path.name != ".git"]
    assert (tmp_path / "history 2/night 0.json").read_text() == "{0}"
    status, output = history(clone, "put", folder)
    assert (status, output) == (1, f"{folder} holds no new night\n")


def test_a_history_that_cannot_be_reached_is_no_first_night(repository, tmp_path):
    clone = repository("clone")
    (tmp_path / "origin.git").rename(tmp_path / "elsewhere")
    assert history(clone, "get", tmp_path / "history")[0] not in (0, 2)
    assert history(clone, "put", tmp_path)[0] not in (0, 2)


def test_nothing_to_keep_fails(repository, tmp_path):
    (tmp_path / "empty").mkdir()
    assert history(repository("clone"), "put", tmp_path / "empty")[0] != 0
    assert history(tmp_path / "clone", "push", tmp_path)[0] == 2
