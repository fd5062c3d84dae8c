"""Randomness: published answers, exact bijections, the right distributions, no collisions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flashpoint.kernels.philox import (
    Stream,
    child_seed,
    normal_row,
    normal_rows,
    normals,
    order_keys,
    permute,
    permute_one,
    philox4x32,
    random_words,
    seed_tensor,
    uniform_integers,
    words_of_one,
)

# Known answers of Random123 1.14, tests/kat_vectors, philox4x32 10.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def hex_words(text):
    return torch.tensor([[int(word, 16)] for word in text.split()])


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_published_known_answers(counter, key, answer):
    assert torch.equal(philox4x32(hex_words(counter), hex_words(key)), hex_words(answer))


def test_words_depend_on_every_part_of_the_counter_and_key():
    base = {"seed": seed_tensor(5), "stream": Stream.DRAW, "step": 3, "element": torch.tensor([7])}
    changed = [
        {"seed": seed_tensor(6)},
        {"seed": seed_tensor(5 + 2**32)},
        {"stream": Stream.NOISE},
        {"step": 4},
        {"element": torch.tensor([8])},
        {"element": torch.tensor([7 + 2**32])},
    ]
    drawn = [random_words(**{**base, **change}, words=8).flatten() for change in [{}, *changed]]
    assert len({tuple(words.tolist()) for words in drawn}) == len(drawn)
    assert len(drawn[0].unique()) == 8


def test_elements_beyond_32_bits_do_not_repeat():
    element = torch.arange(-1000, 1000) + 2**32
    words = random_words(seed_tensor(0), Stream.DRAW, 0, element, 4)[0]
    assert len({tuple(row) for row in words.tolist()}) == len(element)


def test_more_words_extend_fewer():
    few = random_words(seed_tensor(1), Stream.DRAW, 0, torch.arange(5), 4)
    many = random_words(seed_tensor(1), Stream.DRAW, 0, torch.arange(5), 12)
    assert torch.equal(many[..., :4], few)


def test_models_draw_what_each_would_alone():
    seeds = torch.tensor([3, 2**40 + 1, 99])
    together = random_words(seeds, Stream.NOISE, 8, torch.arange(10), 4)
    for seed, words in zip(seeds.tolist(), together, strict=True):
        assert torch.equal(words, random_words(seed_tensor(seed), 1, 8, torch.arange(10), 4)[0])


def test_normals_are_standard_normal():
    words = random_words(seed_tensor(11), Stream.DRAW, 0, torch.arange(100_000), 4)[0]
    noise = normals(words).double()
    for column in noise.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    correlation = torch.corrcoef(noise.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / 100_000**0.5


def test_normals_are_finite_for_the_extreme_words():
    words = torch.tensor([[0, 0], [0, 2**32 - 1], [2**32 - 1, 0], [2**32 - 1, 2**32 - 1]])
    assert normals(words).isfinite().all()


def test_uniform_integers_fill_their_range_evenly():
    words = random_words(seed_tensor(2), Stream.DRAW, 0, torch.arange(70_000), 4)[0, :, 0]
    counts = torch.bincount(uniform_integers(words, 7), minlength=7)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert uniform_integers(torch.tensor([2**32 - 1]), 7).item() == 6


@settings(deadline=None)  # the first call on a busy machine takes long
@given(n=st.integers(1, 5000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**32 - 1))
def test_an_epoch_visits_every_element_once(n, seed, epoch):
    order = permute(torch.arange(n), n, seed_tensor(seed), epoch)[0]
    assert torch.equal(order.sort().values, torch.arange(n))


@pytest.mark.parametrize("n", [2**k + d for k in (10, 16) for d in (-1, 0, 1)])
def test_an_epoch_visits_every_element_once_near_powers_of_two(n):
    order = permute(torch.arange(n), n, torch.tensor([1, 2]), 7)
    assert torch.equal(order.sort(dim=1).values, torch.arange(n).expand(2, n))


def test_orders_differ_between_epochs_and_look_random():
    n = 20_000
    first, second = (permute(torch.arange(n), n, seed_tensor(4), epoch)[0] for epoch in (0, 1))
    assert (first == second).sum() < 20
    for order in (first, second):
        assert abs(stats.spearmanr(torch.arange(n), order).statistic) < 5 / n**0.5
        steps = order.diff().abs().double() / n  # of two independent uniform numbers: mean 1/3
        assert abs(steps.mean().item() - 1 / 3) < 5 * (1 / 18 / n) ** 0.5


def test_a_huge_epoch_needs_no_table():
    n = 50_000_000 * 1000
    rows = torch.tensor([0, 1, n // 2, n - 1])
    order = permute(rows, n, seed_tensor(0), 3)[0]
    assert ((order >= 0) & (order < n)).all()
    assert len(order.unique()) == 4


def test_parts_of_an_experiment_have_seeds_of_their_own():
    seeds = {child_seed(seed, part) for seed in range(100) for part in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "1", torch.tensor([1.0])])
def test_a_bad_seed_is_named(seed):
    with pytest.raises(ValueError, match="seed must be"):
        seed_tensor(seed)


@pytest.mark.parametrize("n", [0, -3, 2**63])
def test_a_bad_domain_is_named(n):
    with pytest.raises(ValueError, match="n must be"):
        permute(torch.arange(1), n, seed_tensor(0), 0)


SEEDS = (0, 7, 2**40 + 3, 2**63 - 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7])
def test_one_row_is_that_of_all_rows_bit_for_bit(seed, dim):
    rows = torch.cat((torch.arange(50), torch.tensor([2**32 - 1, 2**32, 2**50 + 17])))
    words = random_words(seed_tensor(seed), Stream.DRAW, 9, rows, dim)[0]
    numbers = normal_rows(seed, Stream.DRAW, 9, rows, dim)[0]
    for row, want, normal in zip(rows.tolist(), words.tolist(), numbers, strict=True):
        assert words_of_one(seed, Stream.DRAW, 9, row, dim) == want
        assert torch.equal(normal_row(seed, Stream.DRAW, 9, row, dim), normal)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [1, 2, 5, 64, 1000, 2_500_000])
def test_one_position_of_an_order_is_that_of_all(seed, n):
    index = torch.arange(min(n, 200)) * (n // min(n, 200))
    want = permute(index, n, seed_tensor(seed), 3)[0].tolist()
    keys = order_keys(seed, 3)
    assert [permute_one(i, n, keys) for i in index.tolist()] == want
