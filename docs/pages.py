"""Copies into the pages of the documentation what they show of the code.

    python docs/pages.py            rewrites the pages
    python docs/pages.py --check    names the pages that are out of date and exits with status 1

A page marks each copy with a pair of comments, and this script writes the text between them:

    <!-- code: PATH NAME -->     the source of a function, without its docstring
    <!-- resources: ARCH -->     the table of kernels/resources.json for an architecture
    <!-- reference: NAME -->     links to a function, a class or all of a module, with summaries
    <!-- end -->

So the pages read well on GitHub. The site is built from the same pages; there docs/hooks.py puts
the full reference in the place of the links.
"""

import argparse
import ast
import json
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs"
COPY = re.compile(r"<!-- (code|resources|reference): (.+?) -->\n.*?<!-- end -->", re.DOTALL)


def rewritten(text: str, page: Path) -> str:
    """Returns the text of a page with every copy brought up to date."""

    def copy(match: re.Match) -> str:
        kind, source = match.groups()
        if kind == "code":
            body = code(*source.split())
        elif kind == "resources":
            body = resources(source)
        else:
            body = "\n".join(links(source, page))
        return f"<!-- {kind}: {source} -->\n{body}\n<!-- end -->"

    return COPY.sub(copy, text)


def code(path: str, name: str) -> str:
    """Returns the source of a function, or of a Class.method, as a block of Python."""
    text = (ROOT / path).read_text(encoding="utf-8")
    node = find(ast.parse(text), name, path)
    lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
    if ast.get_docstring(node):
        docstring = node.body[0]
        del lines[docstring.lineno - node.lineno : docstring.end_lineno - node.lineno + 1]
        if not lines[1]:  # a blank line between docstring and body
            del lines[1]
    return "```python\n" + textwrap.dedent("\n".join(lines)) + "\n```"


def find(module: ast.Module, name: str, path: str | Path) -> ast.AST:
    """Returns the definition of a function, a class or a Class.method in a parsed file.

    Raises:
        ValueError: the file has no such definition.
    """
    node = module
    for part in name.split("."):
        node = next((child for child in node.body if getattr(child, "name", "") == part), None)
        if node is None:
            raise ValueError(f"{path} has no {name}, which a page of the documentation shows")
    return node


def resources(arch: str) -> str:
    """Returns a table of the resources that each kernel takes on an architecture.

    The numbers are those of the newest triton in the record; the reasons for accepted faults stand
    below the table. Other widths and activations, which the record has too, would only make the
    table long.
    """
    record = json.loads((ROOT / "kernels" / "resources.json").read_text(encoding="utf-8"))
    newest = max(record, key=lambda version: [int(part) for part in version.split(".")])
    lines = [
        f"Compiled offline with triton {newest} for {arch}:\n",
        "| kernel | registers | shared memory, KiB | spilled bytes | tensor-core instructions |",
        "| --- | --- | --- | --- | --- |",
    ]
    reasons = []
    for kernel, use in sorted(record[newest][arch].items()):
        if kernel.startswith(("width ", "hopper width ")):
            continue
        instructions = ", ".join(f"{n} {name}" for name, n in use["tensor_core"].items())
        lines.append(
            f"| {kernel} | {use['registers']} | {use['shared'] / 1024:.0f} "
            f"| {use['spill_stores'] + use['spill_loads']} | {instructions} |"
        )
        for kind, reason in use.get("accepted", {}).items():
            beyond = {
                "compilation": f"{use['seconds']} s of processor time",
                "spills": f"{max(use['spill_stores'], use['spill_loads'])} bytes",
            }
            fault = (use["faults"] | beyond)[kind]
            reasons.append(f"- {kernel}, {kind}: {fault}. {reason}")
    return "\n".join([*lines, "", *reasons])


def links(name: str, page: Path) -> Iterator[str]:
    """Yields a link to the source of each thing that a dotted name stands for, and its summary."""
    path, rest = split_name(name)
    module = ast.parse(path.read_text(encoding="utf-8"))
    target = os.path.relpath(path, page.parent)
    for node in [find(module, rest, path)] if rest else documented(module):
        yield f"- [`{node.name}`]({target}): {summary(node)}"


def split_name(name: str) -> tuple[Path, str]:
    """Returns the file of the module that a dotted name begins with, and the rest of the name.

    Raises:
        ValueError: there is no such module.
    """
    parts = name.split(".")[1:]  # the folders are installed below "flashpoint"
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.exists():
                return file, ".".join(parts[length:])
    raise ValueError(f"there is no module {name}, which a page of the documentation shows")


def documented(module: ast.Module) -> list[ast.AST]:
    """Returns the public functions and classes of a module that have a docstring."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in module.body if isinstance(node, kinds) and node.name[0] != "_"]
    return [node for node in nodes if ast.get_docstring(node)]


def summary(node: ast.AST) -> str:
    """Returns the first paragraph of a docstring as Markdown."""
    paragraph = (ast.get_docstring(node) or "").partition("\n\n")[0]
    text = re.sub(r":\w+:`[~.]*([^`]+)`", r"`\1`", " ".join(paragraph.split()))
    return text.replace("``", "`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only name the pages that are stale")
    check, stale = parser.parse_args().check, []
    for page in sorted(PAGES.rglob("*.md")):
        old = page.read_text(encoding="utf-8")
        if (new := rewritten(old, page)) != old:
            stale.append(page)
            if not check:
                page.write_text(new, encoding="utf-8")
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'is out of date' if check else 'is rewritten'}")
    if check and stale:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
