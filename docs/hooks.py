"""What the build of the documentation takes from the code itself.

``{{ code PATH NAME }}`` in a page becomes the source of that function, without its docstring, and
``{{ resources ARCH }}`` the table of what each kernel takes there, from kernels/resources.json.
"""

import ast
import json
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "diffusion", "bench")


def on_startup(**_):
    """Shows mkdocstrings the folders under the names that they are installed as."""
    namespace = ROOT / "build" / "namespace" / "flashpoint"
    namespace.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        if not (namespace / folder).is_symlink():
            (namespace / folder).symlink_to(ROOT / folder)


def on_page_markdown(markdown, **_):
    markdown = re.sub(r"{{ code (\S+) (\S+) }}", lambda m: code(m[1], m[2]), markdown)
    return re.sub(r"{{ resources (\S+) }}", lambda m: resources(m[1]), markdown)


def on_page_content(html, **_):
    """Turns what docstrings have of reStructuredText, roles and ``::``, into what it means."""
    role = r":(?:func|class|meth|data|mod):<code>[~.]*(?:flashpoint\.[\w.]*\.)?"
    html = re.sub(role, "<code>", html)
    return html.replace("::</p>", ":</p>")


def code(path: str, name: str) -> str:
    """The source of a function, or of a Class.method, as a block of Python."""
    text = (ROOT / path).read_text()
    node = ast.parse(text)
    for part in name.split("."):
        node = next((child for child in node.body if getattr(child, "name", "") == part), None)
        if node is None:
            raise ValueError(f"{path} has no {name}, which a page of the documentation shows")
    lines = ast.get_source_segment(text, node, padded=True).splitlines()
    if ast.get_docstring(node):
        docstring = node.body[0]
        del lines[docstring.lineno - node.lineno : docstring.end_lineno - node.lineno + 1]
    return "```python\n" + textwrap.dedent("\n".join(lines)) + "\n```"


def resources(arch: str) -> str:
    """What each kernel takes on an architecture, with the newest triton in the record.

    Below stand the reasons for what is wrong with some. Other widths and activations, which the
    record has too, would only make the table long.
    """
    record = json.loads((ROOT / "kernels" / "resources.json").read_text())
    newest = max(record, key=lambda version: [int(part) for part in version.split(".")])
    lines = [
        f"Compiled offline with triton {newest} for {arch}:\n",
        "| kernel | registers | shared memory, KiB | spilled bytes | tensor-core instructions |",
        "| --- | --- | --- | --- | --- |",
    ]
    reasons = []
    for kernel, use in sorted(record[newest][arch].items()):
        if kernel.startswith("width "):
            continue
        instructions = ", ".join(f"{n} {name}" for name, n in use["tensor_core"].items())
        lines.append(
            f"| {kernel} | {use['registers']} | {use['shared'] / 1024:.0f} "
            f"| {use['spill_stores'] + use['spill_loads']} | {instructions} |"
        )
        for kind, reason in use.get("accepted", {}).items():
            reasons.append(f"- {kernel}, {kind}: {use['faults'][kind]}. {reason}")
    return "\n".join([*lines, "", *reasons])
