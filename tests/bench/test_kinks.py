"""Batches in which no pre-activation is within rounding of a kink."""

import pytest
import torch

from flashpoint.bench.kinks import beside_a_kink, data_off_kinks, off_kinks
from flashpoint.kernels import MLPShape, TrainingData, eps_table
from flashpoint.kernels.q_sample.reference import batch_draw
from flashpoint.kernels.train_step.reference import noisy_inputs


def a_batch(activation="prelu"):
    """A network of ten features in one layer, and 50 rows of which number 7 lies at z = 0."""
    shape = MLPShape((3, 10, 2), activation)
    flat, x = torch.randn(1, shape.num_parameters), torch.randn(1, 50, 3)
    layer = shape.unpack(flat)
    weight, bias = layer.weights[0][0, 4], layer.biases[0][0]  # [3], [10]
    bias[4] = -(weight.double() @ x[0, 7].double())
    return flat, shape, x


@pytest.mark.parametrize(
    ("activation", "found"),
    [("prelu", [7]), ("relu", [7]), ("leaky_relu", [7]), ("silu", []), ("gelu", [])],
)
def test_a_row_at_a_kink_is_found(activation, found):
    assert beside_a_kink(*a_batch(activation)).nonzero()[:, 1].tolist() == found


def test_a_z_of_inputs_that_are_off_is_exact():
    shape = MLPShape((2, 1, 2, 2), "relu", bias=False)
    flat, x = torch.linspace(-1.3, -0.2, shape.num_parameters)[None], torch.rand(1, 9, 2)
    assert off_kinks(flat, shape, x) is x  # and not moved for ever


def test_only_rows_beside_a_kink_are_moved():
    flat, shape, x = a_batch()
    moved = off_kinks(flat, shape, x)
    assert (moved != x).any(dim=2).nonzero()[:, 1].tolist() == [7]
    assert not beside_a_kink(flat, shape, moved).any()
    assert off_kinks(flat, shape, moved) is moved


def test_a_step_of_ten_thousand_rows_is_moved_off_all_kinks():
    """Some 10 of them are beside one of 512 kinks, wherever all rows together are moved to."""
    shape, steps, seed = MLPShape((3, 256, 256, 2)), 500, torch.tensor([0])
    flat = torch.randn(1, shape.num_parameters)
    data = TrainingData(
        points=torch.randn(1, 5000, 2),
        forward_table=eps_table(torch.linspace(1, 1e-3, steps))[None],
        time_features=torch.linspace(-1, 1, steps)[None, :, None],
        labels=None,
        n_points=torch.tensor([5000]),
        t_table=torch.arange(steps)[None],
    )
    draw = batch_draw(data, seed, 0, 10_000)
    assert beside_a_kink(flat, shape, noisy_inputs(data, draw)).any()
    before = data.time_features.clone()
    moved = data_off_kinks(flat, shape, data, draw)
    assert not beside_a_kink(flat, shape, noisy_inputs(moved, draw)).any()
    assert torch.equal(data.time_features, before)  # those of the caller stay
    assert 0 < (moved.time_features != before).sum() < 50
