"""The parts of the site's build that mkdocs does not do by itself."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "diffusion", "bench")
REFERENCE = re.compile(r"<!-- reference: (\S+) -->\n.*?<!-- end -->", re.DOTALL)
LINK_UPWARDS = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_startup(**_):
    """Shows mkdocstrings the folders under their installed names, by the links of setup.py."""
    namespace = ROOT / "build" / "namespace" / "flashpoint"
    namespace.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        if not (namespace / folder).is_symlink():
            (namespace / folder).symlink_to(os.path.relpath(ROOT / folder, namespace))


def on_page_markdown(markdown, page, **_):
    """Puts the full reference in the place of the links that GitHub shows.

    Of other links to files of the repository, which the site does not have, the text stays.
    """
    folder = Path(page.file.abs_src_path).parent

    def without_link(match: re.Match) -> str:
        target = (folder / match[2].partition("#")[0]).resolve()
        outside = target.exists() and not target.is_relative_to(ROOT / "docs")
        return match[1] if outside else match[0]

    markdown = REFERENCE.sub(lambda match: reference(match[1]), markdown)
    return LINK_UPWARDS.sub(without_link, markdown)


def reference(name: str) -> str:
    """Returns the directive of mkdocstrings for a module, a class or a function."""
    path = ROOT.joinpath(*name.split(".")[1:])
    if not (path.is_dir() or path.with_suffix(".py").exists()):
        return f"::: {name}"
    # The members of a module stand for themselves, without a heading of their module.
    return f"::: {name}\n    options: {{ show_root_heading: false, show_root_toc_entry: false }}"


def on_page_content(html, **_):
    """Turns the reStructuredText of docstrings, roles and ``::``, into HTML."""
    role = r":(?:func|class|meth|data|mod):<code>[~.]*(?:flashpoint\.[\w.]*\.)?"
    html = re.sub(role, "<code>", html)
    return html.replace("::</p>", ":</p>")
