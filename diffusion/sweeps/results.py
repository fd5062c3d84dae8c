"""The results of a sweep: a row for each model, each metric beside its real-data value."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """A metric of samples, the mean of real draws, and the band that holds 99% of them."""

    value: float
    real: float
    low: float
    high: float


class SweepResult(NamedTuple):
    """What came of one model of a sweep.

    Attributes:
        number: its place in the product of all values, from 0.
        values: its value of each key that is set.
        metrics: its metrics by name; those that are not defined for its samples are missing.
        seconds: its share of the duration of training, sampling and measuring.
        steps: number of training steps.
        failed: why there are no metrics, as of a training that diverged; empty for all others.
    """

    number: int
    values: Mapping[str, Any]
    metrics: Mapping[str, Metric]
    seconds: float
    steps: int
    failed: str = ""
