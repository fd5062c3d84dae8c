"""The viewer: one page of HTML on which the reverse process of a run can be watched and stopped.

The page contains everything it needs and works from a file, without a network. :mod:`.payload`
computes its content; ``page.html``, ``page.css``, ``drawing.js`` and ``controls.js`` show it.
"""

import html
import json
from collections.abc import Callable, Sequence
from importlib.resources import files as resources
from pathlib import Path
from string import Template

import torch

from ...kernels.default_state import in_default_state
from .. import files
from ..data import Points
from ..device import choose_device
from ..errors import check_integer
from ..metrics import METRICS
from ..metrics.table import number
from ..predictions import PREDICTIONS
from ..saved_run import SavedRun
from .payload import make_payload

__all__ = ["write_view"]


@in_default_state
def write_view(
    folder: str | Path,
    points: Points,
    *,
    samples: int = 1500,
    seed: int = 0,
    device: str | torch.device | None = None,
    save_to: str | Path | None = None,
    other_data: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes the page of a run.

    Args:
        folder: folder of the run.
        points: the data that it was trained on.
        samples: number of samples shown without guidance; each class has a third as many.
        seed: seed of everything that is drawn for the page.
        device: device on which samples are drawn; None takes CUDA where there is one.
        save_to: the file; None is ``view.html`` in the run's folder.
        other_data: takes other data than those that it was trained on, of the same dimension.
        say: called with a line of text about the progress.

    Returns:
        The file.

    Raises:
        ValueError: the folder holds no run, or a run of other data, ``samples`` is below 3, or the
            file cannot be written.
    """
    check_integer("samples", samples, 3)
    run = SavedRun(Path(folder), points, choose_device(device), seed, other_data=other_data)
    path = Path(save_to) if save_to is not None else run.folder.view_page
    files.make_target(path, ".html")
    run.check_files()
    payload = make_payload(run, samples, say)
    files.write_atomically(path, page(payload, run).encode())
    return path


def page(payload: dict, run: SavedRun) -> str:
    """Returns the page that shows the payload of :func:`.payload.make_payload`."""
    return Template(_text("page.html")).substitute(
        title=html.escape(run.title),
        about=html.escape(_about(run)),
        style=_text("page.css"),
        script=_text("drawing.js") + _text("controls.js"),
        # Without "<" no name in the data can end the script element.
        payload=json.dumps(payload, allow_nan=False).replace("<", "\\u003c"),
        metrics=_metrics(run),
    )


def _text(name: str) -> str:
    """Returns the content of a file that lies beside this module."""
    return (resources(__package__) / name).read_text(encoding="utf-8")


def _about(run: SavedRun) -> str:
    points, schedule = run.points, run.schedule
    widths = " → ".join(map(str, run.denoiser.shape.widths))
    return (
        f"{len(points):,} points in {points.dim} dimension{'s' if points.dim > 1 else ''} · "
        f"{schedule.name} schedule, T = {schedule.num_steps} · denoiser {widths}, "
        f"{run.denoiser.shape.num_parameters:,} parameters, predicts "
        f"{PREDICTIONS[str(schedule.prediction)].title}"
        + ("" if points.standardisation is None else f" · standardised: {points.standardisation}")
    )


def _metrics(run: SavedRun) -> str:
    """Returns the metrics of the run's samples as a table, or a sentence if there are none."""
    if not run.metrics:
        return "<p>This run has no metrics.json: its samples have not been measured.</p>"
    names = [name for name in METRICS if any(name in kind for kind in run.metrics.values())]
    header = ["samples", "NLL", "of the data", "in the class", *(METRICS[n].title for n in names)]
    rows = []
    for kind, entry in run.metrics.items():
        purity = "" if entry["purity"] is None else f"{entry['purity']:.2%}"
        rows.append(
            [_cell("th", kind, ' scope="row"')]
            + [_cell("td", number(entry[key], ".3f")) for key in ("nll", "nll_data")]
            + [_cell("td", purity)]
            + [_score(entry[name]) if name in entry else _cell("td", "") for name in names]
        )
    head = _row([_cell("th", name, ' scope="col"') for name in header])
    body = "".join(map(_row, rows))
    unit = f"<p>{run.points.unit_of_distances}</p>" if run.points.unit_of_distances else ""
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{unit}"


# The class of a cell and its title, by whether a score passed; None is of too few draws to say.
_VERDICTS = {
    True: ("same", "as real data"),
    False: ("differs", "differs from real data"),
    None: ("undecided", "undecided: too few real draws"),
}


def _score(entry: dict) -> str:
    kind, verdict = _VERDICTS[entry["passed"]]
    return (
        f'<td class="{kind}" title="{verdict}">'
        f"{entry['value']:.4f}<small>{entry['low']:.4f} to {entry['high']:.4f}</small></td>"
    )


def _cell(tag: str, text: str, attributes: str = "") -> str:
    return f"<{tag}{attributes}>{html.escape(text)}</{tag}>"


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"
