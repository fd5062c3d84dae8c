"""The style of every figure, and how figures are written to files."""

import io
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from .. import files
from ..palette import COLORS, INK

SaveTo = str | Path | None

COLUMN, PAGE = 3.4, 7.0  # width of a column and of a page of a journal, in inches

# Sizes are those of print: a figure of a column's or a page's width needs no scaling.
_RC: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "figure.titlesize": 8,
    "figure.constrained_layout.use": True,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "image.cmap": "viridis",
    "pdf.fonttype": 42,  # TrueType, which journals ask for
    "svg.hashsalt": "flashpoint",  # one figure, one file
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.03,
}
_NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
_DPI = {"svg": 300, "pdf": 300}  # of the points inside, which are pixels there too

MARKERS = "os^DvPX*<>"

# Decorator of the functions that draw.
styled = rc_context(_RC)  # type: ignore[arg-type]  # its stubs list every name


@styled
def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure in the format that the name of the file says, atomically.

    One figure makes one file, byte for byte: no file holds the time.

    Raises:
        ValueError: the file cannot be written.
    """
    path, content = Path(path), io.BytesIO()
    kind = path.suffix[1:].lower()
    figure.savefig(
        content, format=kind or None, dpi=_DPI.get(kind, 200), metadata=_NO_DATE.get(kind)
    )
    files.write_atomically(path, content.getvalue())


def finish(figure: Figure, save_to: SaveTo) -> Figure:
    """Returns the figure, and writes it if a file is named."""
    if save_to is not None:
        save(figure, save_to)
    return figure


def literal(text: str) -> str:
    """Returns a user's text so that matplotlib draws it letter by letter, whatever is in it.

    A $ begins no formula, and a _ in front hides no entry of a legend.
    """
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def look(number: int) -> dict[str, Any]:
    """Returns colour and marker of a curve, which are read alike by those who see no colours."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
    }
