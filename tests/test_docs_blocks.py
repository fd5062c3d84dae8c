"""The code of the task pages and of the README runs as it stands.

The blocks of a page run in their order, in one folder and one interpreter, as by a reader who
pastes them. Those of the README stand alone: each Python block begins anew. The cells of the
notebook run in order.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import flashpoint.diffusion as fd
from flashpoint.diffusion.cli import main

pytestmark = [
    pytest.mark.filterwarnings("error:the schedule leaves"),  # other tests pass it over
    pytest.mark.usefixtures("few_points"),
]

ROOT = Path(__file__).parents[1]
PAGES = (
    "index", "data", "guidance", "saving", "resuming", "several_gpus", "whole_clouds",
    "interoperability", "kernels",
)  # fmt: skip
# Pages of which every block says why it is not run.
NOT_RUN = ("compatibility", "concepts", "determinism", "gate")
# Other pages with blocks, and the file that runs them.
ELSEWHERE = {
    "logs": "diffusion/test_logs_docs.py",
    "own_network": "diffusion/test_own_network_docs.py",
    "settings": "diffusion/test_settings_docs.py",
    "sweeps": "diffusion/test_sweep_docs.py",
}
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>.*?) -->\n)?```(?P<kind>python|sh)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
# Everything else is run. A page may give one of these reasons and no other.
REASONS = {
    "installs": 4,
    "minutes": 5,
    "needs several GPUs": 2,
    "needs several machines": 1,
    "needs an export": 2,
    "needs a GPU": 1,
}
COPIED = re.compile(r"<!-- code: .*?<!-- end -->", re.DOTALL)  # by docs/pages.py


def blocks(path):
    """Returns (kind, code, reason not to run it or None) of each block of a page."""
    text = COPIED.sub("", path.read_text())
    return [(m["kind"], m["code"], m["why"]) for m in BLOCK.finditer(text)]


def run_shell(code):
    """Runs each line of a block, all of which are commands of flashpoint, in this process."""
    for line in code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "flashpoint", line
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, f"{line}\n{done.output}"


def run(path, *, alone):
    names = {}
    for kind, code, why in blocks(path):
        if why is None and kind == "sh":
            run_shell(code)
        elif why is None:
            names = {"__name__": "__main__"} if alone else names
            exec(compile(code, f"a block of {path.name}", "exec"), names)


@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    """The reader's folder and random numbers; in it is a network that other code has trained."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(fd.MLP(2 + 16, 2, (8,)).state_dict(), "denoiser.pth")
    with torch.enable_grad():  # a block may disable it
        yield


SLOW = pytest.param("interoperability", marks=pytest.mark.slow)  # exports, searches an embedding


@pytest.mark.parametrize("page", [SLOW if page == "interoperability" else page for page in PAGES])
def test_the_blocks_of_a_page_run_in_their_order(page):
    run(ROOT / f"docs/{page}.md", alone=False)


def test_each_block_of_the_readme_stands_alone():
    run(ROOT / "README.md", alone=True)


def test_the_notebook_runs():
    notebook = json.loads((ROOT / "docs/first_half_hour.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 6
    names = {"__name__": "__main__"}
    for cell in cells:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)  # only code is kept
        exec(compile("".join(cell["source"]), "a cell", "exec"), names)
    assert names["x"].shape == (5, 2)
    assert names["x"][:, 1].mean() > 4_000_000  # in the file's units


TEXTS = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md",
    *(ROOT / f"docs/{page}.md" for page in (*PAGES, *NOT_RUN)),
]  # fmt: skip


def test_few_blocks_are_not_run():
    found = [why for path in TEXTS for _, _, why in blocks(path) if why is not None]
    assert {why: found.count(why) for why in found} == REASONS


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_commands_that_are_not_run_are_commands_with_such_options(path):
    for kind, code, why in blocks(path):
        lines = code.replace("\\\n", " ").splitlines() if kind == "sh" and why else []
        for program, *arguments in (shlex.split(line, comments=True) or [""] for line in lines):
            if program == "flashpoint":
                main.commands[arguments[0]].make_context(arguments[0], arguments[1:])


def test_no_page_has_blocks_that_no_test_runs():
    pages = {path.stem for path in (ROOT / "docs").glob("*.md") if blocks(path)}
    assert pages == {*PAGES, *NOT_RUN, *ELSEWHERE}
    for page, test in ELSEWHERE.items():
        assert f"docs/{page}.md" in (ROOT / "tests" / test).read_text(), test


def test_every_block_has_a_kind():
    """Commands in one without would escape the tests."""
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        text = COPIED.sub("", path.read_text())
        kinds = re.findall(r"^```(\w*)$", text, re.MULTILINE)[::2]
        assert set(kinds) <= {"python", "sh", "text", "json", "toml", "yaml"}, path
        assert kinds.count("python") + kinds.count("sh") == len(blocks(path)), path
