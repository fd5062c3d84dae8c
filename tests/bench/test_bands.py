"""The count of false alarms of evaluate's bands."""

import pytest
import torch
from scipy.stats import beta

from flashpoint.bench import bands
from flashpoint.bench.bands import RATIOS, Rate, distributions, rates, table, trial


def test_the_rates_of_all_metrics_and_their_table():
    found = list(rates(size=24, trials=2))
    assert {(rate.data, rate.ratio) for rate in found} == {
        (name, ratio) for name in distributions() for ratio in RATIOS
    }
    assert {"kernel_nll", "emd_per_pair", "nearer_to_training"} <= {rate.metric for rate in found}
    assert all(0 <= rate.alarms <= rate.trials == 2 for rate in found)
    rows = table(found).splitlines()[2:]
    assert len(rows) == len({(rate.data, rate.metric) for rate in found})


def test_the_interval_is_that_of_clopper_and_pearson():
    rate = Rate("data", 1.0, "metric", 3, 200)
    assert rate.interval == pytest.approx((beta.ppf(0.025, 3, 198), beta.ppf(0.975, 4, 197)))
    assert "1.5% (0.3% to 4.3%)" in table([rate])


def test_a_sampler_that_is_not_perfect_is_counted(monkeypatch):
    plain = bands.evaluate

    def blurred(samples, *arguments, **options):
        return plain(samples + 2 * torch.ones(2), *arguments, **options)

    monkeypatch.setattr(bands, "evaluate", blurred)
    alarms = trial(distributions()["Gaussian, 2-D"], 100, 100, seed=0)
    assert alarms["sliced_wasserstein"]
    assert alarms["kernel_nll"]
