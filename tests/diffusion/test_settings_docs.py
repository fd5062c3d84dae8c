"""The examples of docs/settings.md run as they stand, in their order, in one folder."""

import re
import shlex
from pathlib import Path

import pytest

from .helpers import flashpoint

PAGE = Path(__file__).parents[2] / "docs/settings.md"


def blocks(kind):
    found = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return found


@pytest.mark.slow  # six runs
def test_every_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text,) = blocks("toml")
    Path("run.toml").write_text(text)
    said = []
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            result = flashpoint(*shlex.split(line)[1:], "--device", "cpu")
            assert result.exit_code == 0, result.output
            said.append(result.output)
    first, again = (Path("runs", name, "outputs") for name in ("moons", "again"))
    for path in again.iterdir():
        assert path.read_bytes() == (first / path.name).read_bytes()
    assert "the denoiser goes on to 500 steps in place of 300" in said[3]
    assert "the classifier starts anew" in said[4]
    assert "held out" in said[5]


def test_the_python_runs():
    exec(compile("\n".join(blocks("python")), PAGE, "exec"), {})
