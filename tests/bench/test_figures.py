"""The figure of speedups: sorted, with intervals, ticks on both sides of 1."""

import pytest
from matplotlib.colors import to_hex

from flashpoint.bench import figures
from flashpoint.bench.figures import Speedup, sorted_works, speedup_figure
from flashpoint.diffusion.palette import COLORS

FOUND = {
    "eager": {"slow": Speedup(0.9, 0.8, 1.0), "fast": Speedup(4.0, 3.0, 5.0)},
    "jax": {"slow": Speedup(0.95, 0.9, 1.1), "middle": Speedup(1.5, 1.2, 1.6)},
}


def drawn(monkeypatch, found):
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, _: kept.append(figure))
    speedup_figure(found, None)
    return kept[0]


def test_works_are_sorted_by_their_median_speedup():
    assert sorted_works(FOUND) == ["fast", "middle", "slow"]


def test_bars_have_intervals_and_colours_for_all_eyes(monkeypatch):
    axes = drawn(monkeypatch, FOUND).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["fast", "middle", "slow"]
    bars = axes.containers[1]  # after the error bars of the first peer
    assert {to_hex(bar.get_facecolor()) for bar in bars} == {COLORS[0].lower()}
    assert sorted(bar.get_width() + 1 for bar in bars) == pytest.approx([0.9, 4.0])
    spans = [part[:, 0].tolist() for part in axes.containers[0].lines[2][0].get_segments()]
    assert spans == [pytest.approx([0.8, 1.0]), pytest.approx([3.0, 5.0])]


@pytest.mark.parametrize("value", [0.97, 1.03, 30.0, 0.02])
def test_ticks_lie_on_both_sides_of_one(monkeypatch, value):
    axes = drawn(monkeypatch, {"a": {"work": Speedup(value, 0.9 * value, 1.1 * value)}}).axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert axes.get_xscale() == "log"
    assert min(ticks) < 1 < max(ticks)
    assert 1 in ticks
