"""Studies: one question each, a grid of models, a number in every cell.

* :mod:`.catalogue`: the studies, each a grid that can be read off.
* :mod:`.study`: what a study is made of.
* :mod:`.protocols`: how a cell is measured.
* :mod:`.published`: what was published for the same cells.
* :mod:`.runner`: trains, draws, measures, keeps.
* :mod:`.report`: tables and figures.
"""

from .catalogue import STUDIES
from .report import write_page, write_report
from .runner import StudyRun, models_of, train
from .study import Grid, Setting, Study, classic

__all__ = [
    "STUDIES",
    "Grid",
    "Setting",
    "Study",
    "StudyRun",
    "classic",
    "models_of",
    "train",
    "write_page",
    "write_report",
]
