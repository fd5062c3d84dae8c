"""Parts of a file of tests, for several processes."""

import os
import subprocess
import sys

import pytest

TESTS = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_it(number):
    pass
"""


def names(tmp_path, part):
    plugin = ("-p", "flashpoint.bench.pytest_part", "--part", part)
    command = [sys.executable, "-m", "pytest", "-v", *plugin, "test_x.py"]
    # Other plugins take a second to import.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return [line.split("::")[1].split()[0] for line in done.stdout.splitlines() if "PASS" in line]


@pytest.mark.parametrize("parts", [2, 4])
def test_each_test_is_in_one_part(tmp_path, parts):
    (tmp_path / "test_x.py").write_text(TESTS)
    found = [names(tmp_path, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(name for part in found for name in part) == [
        f"test_it[{number}]" for number in range(3)
    ]
    assert max(map(len, found)) - min(map(len, found)) <= 1
