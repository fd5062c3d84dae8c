"""Sweeps: all combinations of some values, trained in the same launches, beside real data.

* :mod:`.keys`: the keys that a sweep can set, and how their values are read.
* :mod:`.grid`: the data, the values of each key, and their product.
* :mod:`.models`: what a combination makes of recipe, schedule and sampling.
* :mod:`.groups`: which of them train in the same launches.
* :mod:`.store`: the folder of a sweep.
* :mod:`.runner`: trains, draws and measures them.
* :mod:`.progress`: the number of models done, and the time that is left.
* :mod:`.results`: what comes of it.
"""

from .grid import Sweep, read_grid, settings_of
from .keys import KEYS, text_of
from .models import SweepModel
from .results import Metric, SweepResult
from .runner import SweepRun

__all__ = [
    "KEYS",
    "Metric",
    "Sweep",
    "SweepModel",
    "SweepResult",
    "SweepRun",
    "read_grid",
    "settings_of",
    "text_of",
]
