"""Sweeps: all combinations of some values, trained in the same launches, beside real data.

* :mod:`.keys`: the keys that a sweep can set, and how their values are read.
* :mod:`.grid`: the data, the values of each key, and their product.
* :mod:`.models`: what a combination makes of recipe, schedule and sampling.
* :mod:`.groups`: which of them train in the same launches.
* :mod:`.store`: the folder of a sweep.
* :mod:`.plan`: what a sweep will take.
* :mod:`.runner`: trains, draws and measures them.
* :mod:`.progress`: the number of models done, and the time that is left.
* :mod:`.results`: what comes of each model, the table over seeds, and their files.
* :mod:`.figure`: the effect of each factor.
* :mod:`.best`: the best model as an ordinary run.
* :mod:`.shards`: parts of a sweep, which several processes do at once.
"""

from .grid import Sweep, read_grid, settings_of
from .keys import KEYS, text_of
from .models import SweepModel
from .results import SweepResult, SweepTable
from .runner import SweepRun, sweep

__all__ = [
    "KEYS",
    "Sweep",
    "SweepModel",
    "SweepResult",
    "SweepRun",
    "SweepTable",
    "read_grid",
    "settings_of",
    "sweep",
    "text_of",
]
