"""Noising kernels against the reference: the same draw, the same points to rounding."""

import pytest
import torch

from flashpoint.kernels import q_sample, q_sample_batch
from flashpoint.kernels.q_sample import kernel, reference

POINTS, STEPS, ENTRIES, ROWS = 50, 20, 37, 300
CLOSE = {"rtol": 1e-5, "atol": 3e-6}


def make_source(dim, features, models, device):
    generator = torch.Generator().manual_seed(0)
    return kernel.Source(
        *(
            tensor.to(device)
            for tensor in (
                torch.randn(models, POINTS, dim, generator=generator),
                torch.rand(models, STEPS, generator=generator),
                torch.randn(models, STEPS, features, generator=generator),
                torch.randint(1, POINTS, (models,), generator=generator),
                torch.randint(0, STEPS, (models, ENTRIES), generator=generator),
            )
        )
    )


def check(source, inputs, draw, expected):
    assert torch.equal(draw.index, expected.index)
    assert torch.equal(draw.t, expected.t)
    torch.testing.assert_close(draw.eps, expected.eps, **CLOSE)
    x_0 = reference.gather_points(source.points, expected.index)
    x_t = reference.q_sample(x_0, source.alpha_bar, expected.t, expected.eps)
    features = reference.gather_points(source.time_features, expected.t)
    torch.testing.assert_close(inputs, torch.cat((x_t, features), dim=-1), **CLOSE)


@pytest.mark.parametrize(
    ("dim", "features", "models"), [(2, 1, 1), (3, 5, 2), (1, 0, 2), (7, 2, 1)]
)
@pytest.mark.usefixtures("poisoned")
def test_fresh_draw(device, dim, features, models):
    source = make_source(dim, features, models, device)
    seed = torch.arange(models, device=device) + 2**40
    inputs, draw = kernel.draw_fresh(source, seed, 2**31, 11, ROWS)
    rows = torch.arange(11, 11 + ROWS, device=device)
    expected = reference.draw_fresh(seed, 2**31, rows, source.n_points, source.t_table, dim)
    check(source, inputs, draw, expected)


@pytest.mark.parametrize("first_row", [0, 900, 1000, 2000])
@pytest.mark.usefixtures("poisoned")
def test_draw_of_an_epoch(device, first_row):
    source = make_source(3, 2, 2, device)
    seed = torch.tensor([3, 2**50], device=device)
    inputs, draw = kernel.draw_epoch(source, seed, 5, 2, first_row, ROWS)
    rows = torch.arange(first_row, max(first_row, min(first_row + ROWS, POINTS * STEPS)))
    expected = reference.draw_epoch(seed, 5, 2, rows.to(device), POINTS, STEPS, 3)
    check(source, inputs, draw, expected)


@pytest.mark.usefixtures("poisoned")
def test_an_epoch_has_every_pair_once(device):
    source = make_source(2, 1, 1, device)
    seed = torch.tensor([1], device=device)
    _, draw = kernel.draw_epoch(source, seed, 0, 0, 0, POINTS * STEPS)
    pairs = draw.t * POINTS + draw.index
    assert torch.equal(pairs[0].sort()[0], torch.arange(POINTS * STEPS, device=device))


def test_models_can_share_their_data(device):
    source = make_source(2, 1, 1, device)
    shared = source._replace(n_points=source.n_points.expand(3))
    seed = torch.tensor([4, 5, 6], device=device)
    inputs, _ = kernel.draw_fresh(shared, seed, 0, 0, 10)
    for model in range(3):
        alone, _ = kernel.draw_fresh(source, seed[model : model + 1], 0, 0, 10)
        assert torch.equal(inputs[model], alone[0])


@pytest.mark.parametrize("size", [(0, 2), (1, 3), (65, 2), (1000, 1), (3, 65, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.usefixtures("poisoned")
def test_given_noise(device, size, dtype):
    x_0 = torch.randn(size, device=device).to(dtype)
    eps = torch.randn(size, device=device).to(dtype)
    alpha_bar = torch.rand(STEPS, device=device)
    t = torch.randint(0, STEPS, size[:-1], device=device)
    actual = q_sample(x_0, alpha_bar, t, eps, backend="triton")
    expected = q_sample(x_0.float(), alpha_bar, t, eps.float(), backend="torch")
    assert actual.dtype == dtype
    tolerance = CLOSE if dtype == torch.float32 else {"rtol": 2e-3, "atol": 2e-3}
    torch.testing.assert_close(actual.float(), expected, **tolerance)


def test_layouts(device):
    x_0 = torch.randn(2, 65, device=device).T
    eps = torch.randn(1, 2, device=device).expand(65, 2)
    alpha_bar, t = torch.rand(STEPS, device=device), torch.randint(0, STEPS, (65,), device=device)
    actual = q_sample(x_0, alpha_bar, t, eps, backend="triton")
    torch.testing.assert_close(actual, q_sample(x_0, alpha_bar, t, eps, backend="torch"), **CLOSE)


def test_batch(device):
    points, alpha_bar = torch.randn(POINTS, 2, device=device), torch.rand(STEPS, device=device)
    options = {"seed": 3, "step": 4, "first_row": 100}
    x_t, draw = q_sample_batch(points, alpha_bar, 70, backend="triton", **options)
    expected_x_t, expected = q_sample_batch(points, alpha_bar, 70, backend="torch", **options)
    torch.testing.assert_close(x_t, expected_x_t, **CLOSE)
    assert torch.equal(draw.index, expected.index)
    assert torch.equal(draw.t, expected.t)


@pytest.mark.gpu
def test_a_million_rows(device):
    source = make_source(2, 1, 1, device)
    seed = torch.tensor([9], device=device)
    inputs, draw = kernel.draw_fresh(source, seed, 2000, 2**33, 1_000_007)
    rows = torch.arange(2**33, 2**33 + 1_000_007, device=device)
    expected = reference.draw_fresh(seed, 2000, rows, source.n_points, source.t_table, 2)
    check(source, inputs, draw, expected)
