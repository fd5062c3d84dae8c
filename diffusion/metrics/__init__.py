"""Metrics of samples, each beside the score of fresh real data.

The likelihood under a density estimate is blind to blur and to missing parts, so it never stands
alone: distances to the nearest neighbour both ways, transport distances and two-sample tests see
them.

* :mod:`.inputs`: points from tensors and arrays, and how many of them a metric reads.
* :mod:`.pairwise`: distances of all pairs of points.
* :mod:`.likelihood`: likelihoods under a kernel density estimate of the data.
* :mod:`.distances`: nearest neighbours, sliced Wasserstein, minimum-cost assignment, MMD.
* :mod:`.two_sample`: tests of whether two sets of points have one distribution.
* :mod:`.registry`: the list of these metrics; a metric is added there and nowhere else.
* :mod:`.bands`: the range that holds the scores of real draws.
* :mod:`.evaluation`: all metrics of one set of samples.
* :mod:`.excess_loss`: a denoiser against the best one there is, in closed form.
* :mod:`.knn`: a classifier that tells the class of a sample.
* :mod:`.table`: tables in Markdown.
"""

from .bands import RealDraws, Score, prediction_factor, real_draws
from .distances import (
    emd,
    emd_by_class,
    label_of_nearest,
    mmd,
    nearest_distances,
    sliced_wasserstein,
)
from .evaluation import Evaluation, evaluate, summary
from .excess_loss import GaussianMixture, PointMasses, excess_loss
from .inputs import most_points
from .likelihood import kde_band, kde_nll, kernel_nll
from .registry import METRICS, Comparison, Metric, standard_metrics
from .two_sample import (
    Neighbours,
    Proximity,
    memorisation,
    nearest_neighbour_test,
    occupancy,
)

__all__ = [
    "METRICS",
    "Comparison",
    "Evaluation",
    "GaussianMixture",
    "Metric",
    "Neighbours",
    "PointMasses",
    "Proximity",
    "RealDraws",
    "Score",
    "emd",
    "emd_by_class",
    "evaluate",
    "excess_loss",
    "kde_band",
    "kde_nll",
    "kernel_nll",
    "label_of_nearest",
    "memorisation",
    "mmd",
    "most_points",
    "nearest_distances",
    "nearest_neighbour_test",
    "occupancy",
    "prediction_factor",
    "real_draws",
    "sliced_wasserstein",
    "standard_metrics",
    "summary",
]
