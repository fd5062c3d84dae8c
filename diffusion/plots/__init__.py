"""Figures. Each function returns a matplotlib Figure; ``save_to`` names a file to write it to.

The suffix of the file, .png, .svg or .pdf, sets its format. All figures have the style of
:mod:`.style`, and print in the width of a column or a page of a journal.
"""

from ..palette import COLORS
from .clouds import classifier_map, conditional, density, panels, sample_grid, scatter
from .curves import against_evaluations, against_noise, training_curves
from .style import save
from .ways import animation, interpolation, trajectories

__all__ = [
    "COLORS",
    "against_evaluations",
    "against_noise",
    "animation",
    "classifier_map",
    "conditional",
    "density",
    "interpolation",
    "panels",
    "sample_grid",
    "save",
    "scatter",
    "training_curves",
    "trajectories",
]
