"""Studies: each asks one question and answers it with a grid of models.

* :mod:`.catalogue`: the list of studies.
* :mod:`.study`: the classes that a study is made of.
* :mod:`.protocols`: the measurement of a cell.
* :mod:`.published`: published numbers for the same cells.
* :mod:`.runner`: trains the models, draws samples, measures them and keeps the results.
* :mod:`.store`: the folder of the results.
* :mod:`.report`: tables and figures.
* :mod:`.lessons`: the conclusions from the results.
* :mod:`.few_steps`: the error of samplers with few steps, where the exact answer is known.
"""

from .catalogue import STUDIES
from .report import write_page, write_report
from .runner import StudyRun, models_of, train
from .study import Grid, Study, Variant, classic

__all__ = [
    "STUDIES",
    "Grid",
    "Study",
    "StudyRun",
    "Variant",
    "classic",
    "models_of",
    "train",
    "write_page",
    "write_report",
]
