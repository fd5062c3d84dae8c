"""The STATES data and its Dataset."""

import pytest
import torch
from scipy.stats import gaussian_kde
from torch.utils.data import DataLoader

from flashpoint.diffusion import STATE_NAMES, States, UserError, states_points


def test_points_are_standardised_and_balanced():
    points = states_points()
    assert points.data.shape == (5000, 2)
    assert points.data.dtype == torch.float32
    assert points.data.mean(0).abs().max() < 1e-5
    assert (points.data.std(0) - 1).abs().max() < 1e-5
    assert torch.bincount(points.labels).tolist() == [1000] * 5
    assert points.class_names == STATE_NAMES


def test_points_are_a_function_of_the_seed():
    assert torch.equal(states_points(seed=3).data, states_points(seed=3).data)
    assert not torch.equal(states_points(seed=3).data, states_points(seed=4).data)


@pytest.mark.parametrize("n", [5, 7, 12_345])
def test_any_number_of_points(n):
    points = states_points(n)
    counts = torch.bincount(points.labels)
    assert len(points) == n
    assert counts.max() - counts.min() <= 1
    with pytest.raises(UserError, match="n_points must be at least 5"):
        states_points(4)


def test_states_keep_apart_and_points_lie_on_their_outlines():
    points = states_points()
    distance = torch.cdist(points.data, points.data)
    other = points.labels[:, None] != points.labels
    assert distance[other].min() > 0.1
    dense = torch.cat([
        torch.lerp(ring.float(), ring.roll(-1, 0).float(), w)
        for ring in points.outlines for w in torch.linspace(0, 1, 20).tolist()
    ])  # fmt: skip
    assert torch.cdist(points.data, dense).min(1).values.max() < 0.15


def test_redrawn_points_come_from_the_same_distribution():
    points = states_points()
    data, labels = points.redraw(50_000, seed=9)
    assert not torch.isin(data[:5000], points.data).all()
    counts = torch.bincount(labels).double()
    assert (counts / 50_000 - 0.2).abs().max() < 5 * (0.2 * 0.8 / 50_000) ** 0.5
    for label in range(5):
        here, there = points.of_class(label), data[labels == label]
        error = 5 * here.std(0) / len(here) ** 0.5
        assert ((here.mean(0) - there.mean(0)).abs() < error).all()
    only, of_one = points.redraw(10, 9, label=3)
    assert of_one.tolist() == [3] * 10
    assert only.shape == (10, 2)


def test_items_of_an_int_a_slice_and_an_array_agree():
    states = States(num_steps=20, device="cpu")
    n = states.n_points
    item = 7 * n + 11
    x_t, t, eps, x_0, y = states[item]
    assert torch.equal(x_0, states.data[11])
    assert y == states.labels[11]
    assert t == states.steps[7]
    a = states.alpha_bar[7]
    torch.testing.assert_close(x_t, a.sqrt() * x_0 + (1 - a).sqrt() * eps)
    for index in (slice(item, item + 1), [item], torch.tensor([item]), [item - len(states)]):
        for got, want in zip(states[index], (x_t, t, eps, x_0, y), strict=True):
            assert torch.equal(got[0], want)
    with pytest.raises(IndexError):
        states[len(states)]


def test_whole_tables_are_the_items():
    states = States(num_steps=4, device="cpu")
    assert len(states) == 4 * 5000
    x_t, t, eps, _, y = states[:]
    assert torch.equal(states.all_data, x_t)
    assert torch.equal(states.all_steps, t)
    assert torch.equal(states.all_labels, y)
    assert torch.equal(states.eps, eps)
    assert states.all_steps[:5000].unique().item() == -1
    assert states.num_steps == states.n_steps == 4


def test_refresh_mix_and_shuffle():
    states = States(num_steps=3, device="cpu")
    eps, data, x_0 = states.eps, states.all_data, states[:][3]
    states.refresh_eps()
    assert not torch.equal(states.eps, eps)
    states.mix_data()
    assert not torch.equal(states.all_data, data)
    noise = states.eps
    states.shuffle()
    assert torch.equal(states.eps.sort(0).values, noise.sort(0).values)
    assert not torch.equal(states[:][3], x_0)
    assert torch.equal(states.all_data, states[:][0])


def test_nothing_large_is_stored_before_it_is_asked_for():
    states = States(num_steps=500, device="cpu")
    states[:10]
    assert sum(value.numel() for value in vars(states).values() if torch.is_tensor(value)) < 20_000


def test_works_with_a_data_loader():
    loader = DataLoader(States(num_steps=2, device="cpu"), batch_size=64, shuffle=True)
    x_t, t, eps, x_0, y = next(iter(loader))
    assert x_t.shape == eps.shape == x_0.shape == (64, 2)
    assert t.shape == y.shape == (64,)


def test_nll_is_that_of_scipy():
    states = States(device="cpu")
    samples = torch.randn(200, 2)
    want = -gaussian_kde(states.data.numpy().T).logpdf(samples.numpy().T).mean()
    assert states.calc_nll(samples) == pytest.approx(want, abs=1e-5)
    assert states.calc_nll(samples.numpy()) == pytest.approx(want, abs=1e-5)


def test_show_writes_a_picture(tmp_path):
    States(device="cpu").show(torch.randn(50, 2).numpy(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_own_data(tmp_path):
    torch.save({"data": torch.randn(9, 3)}, tmp_path / "a.pt")
    states = States(num_steps=2, data=tmp_path / "a.pt", device="cpu")
    assert states[4][0].shape == (3,)
    assert states.labels is None
    assert states[4][4] == 0
