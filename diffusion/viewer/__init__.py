"""The viewer: a run as one page of HTML in which the reverse process can be watched and stopped.

The page holds everything inside, needs no network and works from a file. What it shows is computed
by :mod:`.payload`; how it shows it is ``page.html``, ``page.css`` and ``page.js``.
"""

import html
import json
from collections.abc import Callable, Sequence
from importlib.resources import files as resources
from pathlib import Path
from string import Template

import torch

from .. import files
from ..data import Points
from ..device import choose_device
from ..errors import check_at_least
from ..metrics import METRICS
from ..report import Material
from .payload import make_payload

__all__ = ["write_view"]


def write_view(
    folder: str | Path,
    points: Points,
    *,
    samples: int = 1500,
    seed: int = 0,
    device: str | torch.device | None = None,
    save_to: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes a run's page, ``view.html`` in its folder unless ``save_to`` names another file.

    Args:
        folder: of the run.
        points: the data that it was trained on.
        samples: shown without guidance; of each class a third as many.
        seed: of everything that is drawn for the page.
        device: where samples are drawn; None takes CUDA where there is one.
        save_to: the file; None for ``view.html`` in the run's folder.
        say: takes a line of text about what is going on.

    Returns:
        The file.

    Raises:
        ValueError: the folder holds no run, or one of other data, there are fewer than 3 samples,
            or the file cannot be written.
    """
    check_at_least("samples", samples, 3)
    material = Material(Path(folder), points, choose_device(device), seed)
    path = Path(save_to) if save_to is not None else material.folder / "view.html"
    files.make_target(path, ".html")
    payload = make_payload(material, samples, say)
    files.write_atomically(path, page(payload, material).encode())
    return path


def page(payload: dict, material: Material) -> str:
    """The page that shows :func:`.payload.make_payload`'s payload."""
    title = f"{material.points.name}: {material.folder.resolve().name}"
    return _template("page.html").substitute(
        title=html.escape(title),
        about=html.escape(_about(material)),
        style=_text("page.css"),
        script=_text("page.js"),
        # "<" cannot end the script element, whatever a name in the data holds.
        payload=json.dumps(payload, allow_nan=False).replace("<", "\\u003c"),
        metrics=_metrics(material),
    )


def _text(name: str) -> str:
    return (resources(__package__) / name).read_text(encoding="utf-8")


def _template(name: str) -> Template:
    return Template(_text(name))


def _about(material: Material) -> str:
    points, schedule = material.points, material.schedule
    widths = " → ".join(map(str, material.denoiser.shape.widths))
    return (
        f"{len(points):,} points in {points.dim} dimension{'s' if points.dim > 1 else ''} · "
        f"{schedule.name} schedule, T = {schedule.num_steps} · denoiser {widths}, "
        f"{material.denoiser.shape.num_parameters:,} parameters"
    )


def _likelihood(nll: float | None) -> str:
    return "not defined" if nll is None else f"{nll:.3f}"


def _metrics(material: Material) -> str:
    """What was measured of the run's samples, as a table; a sentence where nothing was."""
    if not material.metrics:
        return "<p>This run has no metrics.json: its samples have not been measured.</p>"
    names = [name for name in METRICS if any(name in kind for kind in material.metrics.values())]
    header = ["samples", "NLL", "of the data", "in the class", *(METRICS[n].title for n in names)]
    rows = []
    for kind, entry in material.metrics.items():
        purity = "" if entry["purity"] is None else f"{entry['purity']:.2%}"
        rows.append(
            [_cell("th", kind, ' scope="row"')]
            + [_cell("td", _likelihood(entry[key])) for key in ("nll", "nll_data")]
            + [_cell("td", purity)]
            + [_score(entry[name]) if name in entry else _cell("td", "") for name in names]
        )
    head = _row([_cell("th", name, ' scope="col"') for name in header])
    body = "".join(map(_row, rows))
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _score(entry: dict) -> str:
    verdict = "as real data" if entry["passed"] else "differs from real data"
    return (
        f'<td class="{"same" if entry["passed"] else "differs"}" title="{verdict}">'
        f"{entry['value']:.4f}<small>{entry['low']:.4f} to {entry['high']:.4f}</small></td>"
    )


def _cell(tag: str, text: str, attributes: str = "") -> str:
    return f"<{tag}{attributes}>{html.escape(text)}</{tag}>"


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"
