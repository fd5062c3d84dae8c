"""Draws of many steps at once are those of each step, bit for bit."""

from itertools import chain

import pytest
import torch

from flashpoint.kernels.q_sample import ahead
from flashpoint.kernels.q_sample.ahead import DrawsAhead
from flashpoint.kernels.q_sample.reference import TrainingData, batch_draw

POINTS, STEPS, CLASSES = 37, 6, 3


def data_of(models=1, dim=2, conditional=False, shared=False, n_points=None):
    """Returns data of some models, which may share points, labels and timesteps."""
    generator = torch.Generator().manual_seed(models + dim)
    own = 1 if shared else models
    n_points = [POINTS] * models if n_points is None else n_points
    options = {}
    if conditional:
        options["class_features"] = torch.rand(models, CLASSES + 1, 4, generator=generator)
        options["p_uncond"] = torch.full((models,), 0.4)
    return TrainingData(
        points=torch.rand(own, POINTS, dim, generator=generator),
        forward_table=torch.rand(own, STEPS, 5, generator=generator),
        time_features=torch.rand(own, STEPS, 1, generator=generator),
        labels=torch.randint(0, CLASSES, (own, POINTS), generator=generator),
        n_points=torch.tensor(n_points),
        t_table=torch.randint(0, STEPS, (own, 9), generator=generator),
        **options,
    )


def seeds_of(models):
    return torch.tensor([2**63 - 1, 5, 2**40 + 3])[:models]


def assert_same(draw, want):
    for name, got, expected in zip(want._fields, draw, want, strict=True):
        assert (got is None) == (expected is None), name
        if got is not None:
            assert got.dtype == expected.dtype, name
            assert torch.equal(got, expected), name


@pytest.fixture
def drawn(monkeypatch):
    """Returns the list of the numbers of steps that were drawn together since the last look."""
    blocks = []
    draw_from = DrawsAhead._draw_from

    def spy(self, step):
        steps, draws = draw_from(self, step)
        blocks.append(len(steps))
        return steps, draws

    monkeypatch.setattr(ahead.DrawsAhead, "_draw_from", spy)
    return blocks


@pytest.mark.parametrize("refresh", [None, 1, 2])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("models", "shared"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_steps_together_are_those_of_each_step(refresh, conditional, models, shared, dim, drawn):
    data, seed = data_of(models, dim, conditional, shared), seeds_of(models)
    draws = DrawsAhead(data, seed, 50, refresh)
    for step in range(14):  # an epoch has 5 steps, and its last is smaller
        assert_same(draws.draw(step), batch_draw(data, seed, step, 50, refresh))
    assert drawn == ([2**16 // (models * 50 * (2 + dim))] if refresh is None else [5, 5, 5])


@pytest.mark.parametrize("refresh", [None, 2])
@pytest.mark.parametrize(("first_row", "rows"), [(0, 0), (0, 1), (7, 63), (7, None), (64, 65)])
def test_parts_of_a_batch(refresh, first_row, rows):
    data, seed = data_of(conditional=True), seeds_of(1)
    draws = DrawsAhead(data, seed, 130, refresh, first_row, rows)
    for step in range(5):
        assert_same(draws.draw(step), batch_draw(data, seed, step, 130, refresh, first_row, rows))


def test_each_model_has_entries_of_its_own():
    data = data_of(3)._replace(n_entries=torch.tensor([1, 4, 9]))
    draws = DrawsAhead(data, seeds_of(3), 65)
    for step in (0, 1, 2):
        assert_same(draws.draw(step), batch_draw(data, seeds_of(3), step, 65))


@pytest.mark.parametrize("sizes", [[37, 36, 35], [37, 12, 20]])
def test_epochs_of_several_lengths(sizes, drawn):
    data = data_of(3, n_points=sizes)._replace(n_steps=torch.tensor([6, 5, 6]))
    draws = DrawsAhead(data, seeds_of(3), 50, 2)
    for step in range(12):
        assert_same(draws.draw(step), batch_draw(data, seeds_of(3), step, 50, 2))
    assert drawn == [1] * 12


def test_steps_may_jump(drawn):
    data, seed = data_of(), seeds_of(1)
    draws = DrawsAhead(data, seed, 500)
    for step in chain(range(3), [2, 0, 2**32 - 40, 2**31, 7, 8]):
        assert_same(draws.draw(step), batch_draw(data, seed, step, 500))
    assert drawn == [32] * 4


@pytest.mark.parametrize("refresh", [None, 2])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seed", lambda tensor: tensor.add_(1)),
        ("n_points", lambda tensor: tensor.sub_(3)),
        ("t_table", lambda tensor: tensor.copy_(tensor.flip(1))),
        ("labels", lambda tensor: tensor.copy_(tensor.flip(1))),
        ("p_uncond", lambda tensor: tensor.fill_(0.9)),
        ("n_entries", lambda tensor: tensor.fill_(2)),
        ("n_steps", lambda tensor: tensor.fill_(5)),
    ],
)
def test_changes_in_place_are_noticed(refresh, name, change):
    data, seed = data_of(conditional=True), seeds_of(1).clone()
    data = data._replace(n_entries=torch.tensor([9]), n_steps=torch.tensor([6]))
    draws = DrawsAhead(data, seed, 50, refresh)
    assert_same(draws.draw(0), batch_draw(data, seed, 0, 50, refresh))
    change(seed if name == "seed" else getattr(data, name))
    for step in (1, 2):
        assert_same(draws.draw(step), batch_draw(data, seed, step, 50, refresh))


def test_changes_in_inference_mode_are_not_missed():
    with torch.inference_mode():
        data, seed = data_of(), seeds_of(1).clone()
        draws = DrawsAhead(data, seed, 50)
        draws.draw(0)
        seed.add_(1)
        assert_same(draws.draw(1), batch_draw(data, seed, 1, 50))


def test_large_batches_are_not_kept(drawn):
    data, seed = data_of(), seeds_of(1)
    draws = DrawsAhead(data, seed, 2**16)
    for step in (0, 1):
        assert_same(draws.draw(step), batch_draw(data, seed, step, 2**16))
    assert drawn == [1, 1]
    assert draws._draws is None
