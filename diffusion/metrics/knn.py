"""Which class a sample belongs to, by a classifier that was trained on the data."""

import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier

from ..data import Points
from ..errors import UserError

_NEIGHBOURS = (1, 5, 20, 80)
_FOLDS = 5


def train_judge(points: Points) -> GridSearchCV:
    """A classifier by nearest neighbours, as many as do best in five-fold cross-validation.

    Few neighbours suit classes that are apart, many those that overlap. Deterministic.

    Args:
        points: with labels, at least ten of them.

    Returns:
        With scikit-learn's ``predict``, ``predict_proba`` and ``score``; ``best_score_`` is the
        accuracy on points held out.

    Raises:
        ValueError: there are no labels, or too few points.
    """
    if points.labels is None:
        raise UserError(f"{points.name}: a classifier needs labels, got none")
    most = len(points) * (_FOLDS - 1) // _FOLDS
    choices = [count for count in _NEIGHBOURS if count <= most]
    if len(points) < 2 * _FOLDS:
        raise UserError(f"{points.name}: a classifier needs {2 * _FOLDS} points, got {len(points)}")
    judge = GridSearchCV(KNeighborsClassifier(), {"n_neighbors": choices}, cv=_FOLDS)
    return judge.fit(np.asarray(points.data), np.asarray(points.labels))
