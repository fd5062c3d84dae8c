"""Writes figures quicker: small, with their parts where they are.

To arrange a figure, and to cut it to what is drawn, matplotlib measures each text five times, which
takes half of the time. Tests that look at the places of things draw figures by themselves;
docs/gallery.py compares arranged ones, which the commands of subprocesses write too.
"""

from functools import wraps

from matplotlib import rc_context
from matplotlib.figure import Figure

_DPI = 50
savefig = Figure.savefig


@wraps(savefig)
def _save_as_it_is(self, *arguments, **options):
    """Writes the whole figure, with everything that was drawn on it, in few pixels."""
    # A call of set_layout_engine leaves an engine that does nothing, for which all is drawn twice.
    engine, self._layout_engine = self._layout_engine, None
    try:
        with rc_context({"savefig.bbox": None}):
            savefig(self, *arguments, **options | {"dpi": _DPI})
    finally:
        self._layout_engine = engine


def install():
    """Makes all figures of this process quicker to write, for good."""
    Figure.savefig = _save_as_it_is
