"""How good samples are, each number beside the one that fresh real data scores.

The KDE likelihood is blind to blur and to missing parts, so it never stands alone: distances to
the nearest neighbour both ways, transport distances and two-sample tests see what it does not.

* :mod:`.likelihood`: likelihoods under a kernel density estimate of the data.
* :mod:`.distances`: nearest neighbours, sliced Wasserstein, minimum-cost assignment, MMD.
* :mod:`.two_sample`: tests of whether two sets of points have one distribution.
* :mod:`.excess_loss`: a denoiser against the best one there is, in closed form.
* :mod:`.evaluation`: all of them on one set of samples.
"""

from .distances import (
    emd,
    emd_by_class,
    label_of_nearest,
    mmd,
    nearest_distances,
    sliced_wasserstein,
)
from .evaluation import METRICS, Evaluation, Score, evaluate, real_pairs, score
from .excess_loss import GaussianMixture, PointMasses, excess_loss
from .likelihood import kde_nll, kernel_nll
from .two_sample import (
    Neighbours,
    Proximity,
    memorisation,
    nearest_neighbour_test,
    occupancy,
)

__all__ = [
    "METRICS",
    "Evaluation",
    "GaussianMixture",
    "Neighbours",
    "PointMasses",
    "Proximity",
    "Score",
    "emd",
    "emd_by_class",
    "evaluate",
    "excess_loss",
    "kde_nll",
    "kernel_nll",
    "label_of_nearest",
    "memorisation",
    "mmd",
    "nearest_distances",
    "nearest_neighbour_test",
    "occupancy",
    "real_pairs",
    "score",
    "sliced_wasserstein",
]
