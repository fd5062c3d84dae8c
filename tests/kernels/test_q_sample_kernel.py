"""Noising kernels against the reference: the same draw, the same points to rounding."""

import pytest
import torch

from flashpoint.kernels import eps_table, q_sample, q_sample_batch
from flashpoint.kernels.q_sample import kernel, reference
from flashpoint.kernels.train_step.reference import noisy_inputs

from .training import CLASSES, make_data

POINTS, STEPS, ROWS = 50, 20, 300
CLOSE = {"rtol": 1e-5, "atol": 3e-6}


def uneven_data(device, models, dim=2, features=1, class_width=0):
    """Data of uneven models, with class features if these have a width."""
    return make_data(
        device, "conditional" if class_width else "classifier", models, points=POINTS, steps=STEPS,
        dim=dim, features=features, class_width=class_width, uneven=True,
    )  # fmt: skip


def check(data, seed, *arguments):
    """Compares the kernel's draw and inputs with the reference's; returns the draw."""
    inputs, draw = kernel.draw(data, seed, *arguments)
    expected = reference.batch_draw(data, seed, *arguments)
    assert torch.equal(draw.index, expected.index)
    assert torch.equal(draw.t, expected.t)
    for actual, wanted in ((draw.condition, expected.condition), (draw.live, expected.live)):
        assert (actual is None) == (wanted is None)
        assert wanted is None or torch.equal(actual, wanted)
    torch.testing.assert_close(draw.eps, expected.eps, **CLOSE)
    torch.testing.assert_close(inputs, noisy_inputs(data, expected), **CLOSE)
    return draw


@pytest.mark.parametrize(
    ("dim", "features", "models", "class_width"),
    [(2, 1, 1, 0), (3, 5, 2, 0), (1, 0, 2, 0), (7, 2, 1, 0), (2, 1, 2, 3), (1, 3, 1, 1)],
)
@pytest.mark.usefixtures("poisoned")
def test_fresh_draw(device, dim, features, models, class_width):
    data = uneven_data(device, models, dim, features, class_width)
    seed = torch.arange(models, device=device) + 2**40
    draw = check(data, seed, 2**31, 11 + ROWS, None, 11, ROWS)
    assert (draw.index < data.n_points[:, None]).all()
    if class_width:
        withheld = (draw.condition == CLASSES).double().mean(dim=1)
        torch.testing.assert_close(withheld, data.p_uncond.double(), rtol=0, atol=0.1)


@pytest.mark.parametrize("step", [0, 1, 5, 40, torch.tensor(7)])
@pytest.mark.parametrize("class_width", [0, 3])
@pytest.mark.usefixtures("poisoned")
def test_draw_of_an_epoch(device, step, class_width):
    data = uneven_data(device, 2, 3, 2, class_width)
    seed = torch.tensor([3, 2**50], device=device)
    step = step.to(device) if torch.is_tensor(step) else step
    check(data, seed, step, 100, 2)
    check(data, seed, step, 100, 2, 30, 41)


@pytest.mark.usefixtures("poisoned")
def test_an_epoch_has_every_pair_once(device):
    data = uneven_data(device, 2)
    seed = torch.tensor([1, 2], device=device)
    draws = [kernel.draw(data, seed, step, 97, 5)[1] for step in range(20)]
    for model in range(2):
        n, pairs = int(data.n_points[model]), int(data.n_points[model] * data.n_steps[model])
        steps = -(-pairs // 97)
        seen = torch.cat([
            (draw.t[model] * n + draw.index[model])[draw.live[model]] for draw in draws[:steps]
        ])  # fmt: skip
        assert torch.equal(seen.sort()[0], torch.arange(pairs, device=device))


def test_models_can_share_their_data(device):
    data = uneven_data(device, 1)
    shared = data._replace(
        n_points=data.n_points.expand(3), n_steps=data.n_steps.repeat(3),
        n_entries=data.n_entries.repeat(3),
    )  # fmt: skip
    seed = torch.tensor([4, 5, 6], device=device)
    inputs, _ = kernel.draw(shared, seed, 0, 10)
    for model in range(3):
        alone, _ = kernel.draw(data, seed[model : model + 1], 0, 10)
        assert torch.equal(inputs[model], alone[0])


@pytest.mark.parametrize("size", [(0, 2), (1, 3), (65, 2), (1000, 1), (3, 65, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.usefixtures("poisoned")
def test_given_noise(device, size, dtype):
    x_0 = torch.randn(size, device=device).to(dtype)
    eps = torch.randn(size, device=device).to(dtype)
    table = eps_table(torch.rand(STEPS, device=device))
    t = torch.randint(0, STEPS, size[:-1], device=device)
    actual = q_sample(x_0, table, t, eps, backend="triton")
    expected = q_sample(x_0.float(), table, t, eps.float(), backend="torch")
    assert actual.dtype == dtype
    tolerance = CLOSE if dtype == torch.float32 else {"rtol": 2e-3, "atol": 2e-3}
    torch.testing.assert_close(actual.float(), expected, **tolerance)


def test_layouts(device):
    x_0 = torch.randn(2, 65, device=device).T
    eps = torch.randn(1, 2, device=device).expand(65, 2)
    table = eps_table(torch.rand(STEPS, device=device))
    t = torch.randint(0, STEPS, (65,), device=device)
    actual = q_sample(x_0, table, t, eps, backend="triton")
    torch.testing.assert_close(actual, q_sample(x_0, table, t, eps, backend="torch"), **CLOSE)


def test_batch(device):
    points = torch.randn(POINTS, 2, device=device)
    table = eps_table(torch.rand(STEPS, device=device))
    options = {"seed": 3, "step": 4, "first_row": 100}
    x_t, draw = q_sample_batch(points, table, 70, backend="triton", **options)
    expected_x_t, expected = q_sample_batch(points, table, 70, backend="torch", **options)
    torch.testing.assert_close(x_t, expected_x_t, **CLOSE)
    assert torch.equal(draw.index, expected.index)
    assert torch.equal(draw.t, expected.t)


@pytest.mark.gpu
def test_a_million_rows(device):
    data = uneven_data(device, 1)
    check(data, torch.tensor([9], device=device), 2000, 2**34, None, 2**33, 1_000_007)
