"""The pages show the code as it is, their links lead somewhere, and the reference is complete."""

import importlib
import inspect
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PACKAGES = ("flashpoint.kernels", "flashpoint.diffusion")
SCRIPT = "docs/pages.py"


def named_in_the_reference():
    pages = "".join(page.read_text() for page in DOCS.glob("api/*.md"))
    return set(re.findall(r"^<!-- reference: (\S+) -->$", pages, re.MULTILINE))


def links_of(text):
    """Targets of the relative links and pictures of a page, outside blocks of code."""
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(text))
    return [link for link in links if "://" not in link]


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def headings_of(text):
    """Anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


def test_the_copies_of_code_are_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / SCRIPT, "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}run python {SCRIPT}"


def test_a_stale_copy_is_found_and_rewritten(tmp_path):
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / SCRIPT, tmp_path / "docs")
    (tmp_path / "code.py").write_text('def f():\n    """Returns one."""\n    return 1\n')
    page = tmp_path / "docs/page.md"
    page.write_text("before\n<!-- code: code.py f -->\nold\n<!-- end -->\nafter\n")
    command = [sys.executable, tmp_path / SCRIPT]
    stale = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert (stale.returncode, stale.stdout) == (1, "docs/page.md is out of date\n")
    assert "old" in page.read_text()
    assert subprocess.run(command).returncode == 0
    block = "<!-- code: code.py f -->\n```python\ndef f():\n    return 1\n```\n<!-- end -->"
    assert page.read_text() == f"before\n{block}\nafter\n"
    assert subprocess.run([*command, "--check"]).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_on_github_too(page):
    text = page.read_text()
    assert "{{" not in without_code(text)
    assert not re.search(r"\]\[flashpoint|^:::", text, re.MULTILINE)
    reference = named_in_the_reference()
    for link in links_of(text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor.startswith("flashpoint."):
            assert anchor in reference or anchor.rpartition(".")[0] in reference, link
        elif anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in [
                re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in titles
            ]


def speedups(heading, column):
    """A column of the speedups in the README's table of a machine."""
    table = (ROOT / "README.md").read_text().partition(f"\n{heading}")[2].partition("\n\n")[2]
    rows = [line.split(" | ") for line in table.partition("\n\n")[0].splitlines()[2:]]
    return {
        row[0].removeprefix("| "): float(row[column].split()[0])
        for row in rows
        if "not measured" not in row[1]
    }


def test_the_first_claim_is_that_of_the_tables():
    claim = " ".join((ROOT / "README.md").read_text().split("\n\n")[1].split())
    gpu = speedups("NVIDIA H200, beside eager PyTorch", 3)
    cpu = speedups("CPU, Intel(R) Xeon(R)", 3).values()
    for kind, text in (("training", "were {} to {} times"), ("sampling", "sampling {} to {}")):
        found = [value for work, value in gpu.items() if kind in work]
        assert text.format(min(found), max(found)) in claim
    assert f"{min(cpu)} to {max(cpu)} times as fast" in claim


def exported():
    """Every class and function that a package exports, errors aside."""
    for package in map(importlib.import_module, PACKAGES):
        for name in package.__all__:
            thing = getattr(package, name)
            is_error = inspect.isclass(thing) and issubclass(thing, Exception)
            if inspect.isfunction(thing) or (inspect.isclass(thing) and not is_error):
                yield pytest.param(thing, id=f"{package.__name__}.{name}")


def code_links(page):
    """The links of a page whose text is a name and whose target is a file of Python."""
    found = re.findall(r"\[`(\w+)`\]\((\S+\.py)\)", (ROOT / page).read_text())
    return [pytest.param(name, target, id=f"{target}:{name}") for name, target in found]


@pytest.mark.parametrize(
    ("name", "target"), [*code_links("README.md"), *code_links("CONTRIBUTING.md")]
)
def test_the_linked_file_defines_the_name(name, target):
    text = (ROOT / target).read_text()
    assert re.search(rf"^(?:def|class) {name}\b|^{name}\b.* = ", text, re.MULTILINE)


@pytest.mark.parametrize("thing", [*exported()])
def test_the_reference_has_it(thing):
    names = {thing.__module__, f"{thing.__module__}.{thing.__qualname__}"}
    assert names & named_in_the_reference()


@pytest.mark.parametrize("thing", [*exported()])
def test_its_docstring_names_every_parameter(thing):
    text = inspect.getdoc(thing)
    assert text
    if inspect.isclass(thing) and issubclass(thing, tuple):
        text = inspect.getsource(thing)  # a NamedTuple's fields have comments
    missing = [
        name
        for name in inspect.signature(thing).parameters
        if name not in ("self", "args", "kwargs") and not re.search(rf"\b{name}\b", text)
    ]
    assert not missing


def test_the_site_keeps_the_text_of_links_that_only_github_can_follow():
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(DOCS / "kernels.md")))
    text = "[a](../bench/records) [`b`](../README.md#data) [c](concepts.md) [d](../no/such)"
    assert hooks["on_page_markdown"](text, page=page) == (
        "a `b` [c](concepts.md) [d](../no/such)"  # the build warns of the last one
    )
