"""Documents of headings, texts, tables and pictures, written as Markdown and as one HTML page."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from .metrics.table import markdown_table


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """An image file and its caption."""

    path: Path
    caption: str


Part = Heading | Paragraph | Table | Picture


def markdown(title: str, parts: Sequence[Part], folder: Path) -> str:
    """Returns the document in Markdown, with links to its pictures.

    Args:
        title: heading of the document.
        parts: its content.
        folder: folder of the document; pictures lie below it.
    """
    blocks = [f"# {_plain(title)}"]
    for part in parts:
        if isinstance(part, Heading):
            blocks.append(f"## {_plain(part.text)}")
        elif isinstance(part, Paragraph):
            blocks.append(_plain(part.text))
        elif isinstance(part, Picture):
            path = quote(part.path.relative_to(folder).as_posix())
            blocks.append(f"![{_plain(part.caption)}]({path})\n\n{_plain(part.caption)}")
        else:
            header, *rows = ([_plain(cell) for cell in row] for row in (part.header, *part.rows))
            blocks.append(markdown_table(header, rows))
    return "\n\n".join(blocks) + "\n"


def _plain(text: str) -> str:
    """Returns text with the marks of Markdown escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


def page(title: str, parts: Sequence[Part]) -> str:
    """Returns the document as one page of HTML that holds its pictures.

    Args:
        title: heading of the document.
        parts: its content.
    """
    body = [f"<h1>{html.escape(title)}</h1>", *map(_element, parts)]
    return _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(body))


def _element(part: Part) -> str:
    if isinstance(part, Heading):
        return f"<h2>{html.escape(part.text)}</h2>"
    if isinstance(part, Paragraph):
        return f"<p>{html.escape(part.text)}</p>"
    if isinstance(part, Picture):
        kind = {"svg": "svg+xml"}.get(part.path.suffix[1:], part.path.suffix[1:])
        content = base64.b64encode(part.path.read_bytes()).decode()
        caption = html.escape(part.caption)
        image = f'<img alt="{caption}" src="data:image/{kind};base64,{content}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    rows = [_row("th", part.header), *(_row("td", row) for row in part.rows)]
    return f"<table>{''.join(rows)}</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff; }
img { max-width: 100%; }
figure { margin: 1.5em 0; }
figcaption { color: #555; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3em 0.8em; text-align: left; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
