"""A classifier by nearest neighbours, which tells the class that a sample belongs to."""

import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier

from ..data import Points
from ..errors import UserError

_NEIGHBOURS = (1, 5, 20, 80)
_FOLDS = 5


def fit_knn(points: Points) -> GridSearchCV:
    """Fits a classifier by nearest neighbours to labelled points.

    Five-fold cross-validation chooses the number of neighbours: few suit classes that are apart,
    many suit classes that overlap. The result is deterministic.

    Args:
        points: at least ten points with labels.

    Returns:
        A classifier of scikit-learn, with ``predict``, ``predict_proba`` and ``score``;
        ``best_score_`` is the accuracy on points held out.

    Raises:
        ValueError: there are no labels, or too few points.
    """
    if points.labels is None:
        raise UserError(f"{points.name}: a classifier needs labels, got none")
    most = len(points) * (_FOLDS - 1) // _FOLDS
    choices = [count for count in _NEIGHBOURS if count <= most]
    if len(points) < 2 * _FOLDS:
        raise UserError(f"{points.name}: a classifier needs {2 * _FOLDS} points, got {len(points)}")
    classifier = GridSearchCV(KNeighborsClassifier(), {"n_neighbors": choices}, cv=_FOLDS)
    return classifier.fit(np.asarray(points.data), np.asarray(points.labels))
