"""The STATES data and its Dataset."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from flashpoint.diffusion import STATE_NAMES, States, UserError, states_points

from .. import warm_python


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


@pytest.fixture
def states():
    return States(num_steps=20, device="cpu")


def assert_same_items(got, want):
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("shuffles", [0, 2])
@pytest.mark.parametrize("short", [False, True])
def test_one_item_is_that_of_a_batch_bit_for_bit(shuffles, short):
    states = States(num_steps=20, device="cpu", seed=3, short_items=short)
    states.refresh_eps()
    for _ in range(shuffles):
        states.shuffle()
    items = [*range(0, len(states), 997), -1, -len(states)]
    batch = states[items]
    for row, item in enumerate(items):
        one = [part[row] for part in batch]
        assert_same_items(states[item], one)
        assert_same_items(states[np.int64(item)], one)
        assert_same_items(states[torch.tensor(item)], one)
        assert_same_items(states.generate_sample(item), one)
    for one, item in zip(states.__getitems__(items), items, strict=True):
        assert_same_items(one, states[item])


class Operations(TorchDispatchMode):
    """Counts the operations of PyTorch, whose number decides the time of a small item."""

    count = 0

    def __torch_dispatch__(self, operation, _types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


def test_an_item_costs_little_more_than_a_look_up():
    states = States(device="cpu")
    x, noise, a = states.data, torch.randn(5000, 2), states.alpha_bar

    def plain(item):
        step, point = divmod(item, 5000)
        x_t = a[step].sqrt() * x[point] + (1 - a[step]).sqrt() * noise[point]
        return x_t, states.steps[step], noise[point], x[point], states.labels[point]

    with Operations() as of_plain:
        plain(123_456)
    for _ in range(2):
        with Operations() as of_item:
            states[123_456]
        assert 0 < of_item.count < 2 * of_plain.count
        states.shuffle()


def test_a_loader_asks_for_a_batch_at_once(monkeypatch, states):
    monkeypatch.setattr(States, "__getitem__", None)
    x_t, *_ = next(iter(DataLoader(states, batch_size=64, shuffle=True)))
    assert x_t.shape == (64, 2)


def test_copies_through_pickle_and_torch_save_are_the_same(states):
    states.refresh_eps()
    states.shuffle()
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    states.all_data, states.idx_map  # noqa: B018 - the tables must not travel
    for other in (
        pickle.loads(pickle.dumps(states)),
        copy.deepcopy(states),
        torch.load(file, weights_only=False),
    ):
        assert_same_items(other[:100], states[:100])
        assert torch.equal(other.points.redraw(9, 1)[0], states.points.redraw(9, 1)[0])
    assert len(pickle.dumps(states)) < 200_000


SPAWNED = """
import torch
from flashpoint.diffusion import States
if __name__ == "__main__":
    states = States(4, device="cpu")
    loader = torch.utils.data.DataLoader(
        states, batch_size=8, num_workers=1, multiprocessing_context="spawn"
    )
    assert all(map(torch.equal, next(iter(loader)), states[:8]))
"""


def test_workers_that_are_spawned_read_it(tmp_path):
    (tmp_path / "script.py").write_text(SPAWNED)
    run = warm_python.run(["script.py"], cwd=tmp_path, timeout=120)
    assert run.returncode == 0, run.stderr


def test_short_items_have_no_clean_point_and_a_column_of_features():
    states, short = (States(num_steps=5, device="cpu", short_items=s) for s in (False, True))
    x_t, t, eps, _, y = states[:7]
    assert_same_items(short[:7], (x_t, t[:, None], eps, y))
    assert_same_items(short[3], (x_t[3], t[3:4], eps[3], y[3]))
    assert [x.shape for x in next(iter(DataLoader(short, 6)))] == [(6, 2), (6, 1), (6, 2), (6,)]
    assert States(num_steps=5, short_items=True).device == torch.device("cpu")
    assert torch.equal(short.all_labels, states.all_labels)


def test_other_names_of_the_exercise(states):
    assert torch.equal(states.all_times, states.all_steps)
    assert torch.equal(states.idx_map, torch.arange(len(states)))
    before = states.all_data
    states.shuffle()
    assert torch.equal(states.all_data, before[states.idx_map])
    assert not torch.equal(states.idx_map, torch.arange(len(states)))


def test_noisy_data_by_timestep_or_by_feature(states):
    x, e = torch.randn(2, 6, 2)
    a = states.alpha_bar[7]
    want = a.sqrt() * x + (1 - a).sqrt() * e
    for t in (7, np.int64(7), torch.tensor(7), states.steps[7], states.steps[7].item()):
        assert torch.equal(states.calculate_noisy_data(x, t, e), want)
    for t in (torch.full((6,), 7), states.steps[[7] * 6], states.steps[[7] * 6, None]):
        assert torch.equal(states.calculate_noisy_data(x, t, e), want)
    assert torch.equal(states.calculate_noisy_data(x[0], 7, e[0]), want[0])
    for step in range(20):
        found = states.calculate_noisy_data(x, states.steps[step], e)
        assert torch.equal(found, states.calculate_noisy_data(x, step, e))


def test_samples_of_every_kind_have_an_nll_and_a_picture(states, tmp_path):
    x = torch.randn(50, 2)
    want = states.calc_nll(x)
    for same in (x.numpy(), x.tolist(), x.clone().requires_grad_(), x.double()):
        assert states.calc_nll(generated=same) == pytest.approx(want, abs=1e-5)
        states.show(samples=same, save_to=tmp_path / "a.png")
    assert states.calc_nll(x.half()) == pytest.approx(want, abs=1e-2)


def test_a_file_that_is_not_read_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        States(device="cpu")
    torch.save({"data": torch.randn(9, 2)}, "states.pt")
    with pytest.warns(UserWarning, match=r"states\.pt is not read: .*States\(data='states\.pt'\)"):
        assert States(device="cpu").n_points == 5000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert States(data="states.pt", device="cpu").n_points == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 2.5}, "num_steps must be an integer of at least 1, got 2.5"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"num_steps": "500"}, "num_steps must be an integer"),
        ({"num_steps": True}, "num_steps must be an integer"),
        ({"seed": -1}, "seed must be an integer from 0 to"),
        ({"seed": 1.5}, "seed must be an integer from 0 to"),
        ({"data": 3}, "data must be a path, got 3"),
        ({"data": torch.randn(3, 2)}, "data must be a path, got a tensor of float32"),
        ({"device": "tpu"}, "device must be cpu, cuda"),
        ({"device": 1.5}, "device must be cpu, cuda"),
        ({"short_items": 1}, "short_items must be True or False, got 1"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        States(**arguments)
    assert "\n" not in str(error.value)


def test_a_wrong_index_time_or_sample_is_named(states):
    x = torch.randn(4, 2)
    for index in (1.5, "a", None, torch.tensor([0.5]), True, torch.ones(3, dtype=torch.bool)):
        with pytest.raises(UserError, match="an index must be an integer, a slice, integers or"):
            states[index]
    for index in (len(states), -len(states) - 1, [0, len(states)]):
        with pytest.raises(IndexError, match="index must be from -100000 to 99999"):
            states[index]
    for t in (20, -1, 0.12, 1.5, "a", None, float("nan"), torch.tensor(True)):
        with pytest.raises(UserError, match="t must be integers from 0 to 19 or features in steps"):
            states.calculate_noisy_data(x, t, x)
    with pytest.raises(UserError, match="t must be one timestep or one for each of the points"):
        states.calculate_noisy_data(x, [1, 2, 3], x)
    with pytest.raises(UserError, match="e must have the shape of x"):
        states.calculate_noisy_data(x, 1, x[:2])
    for samples in (torch.randn(4, 3), torch.randn(4), torch.empty(0, 2), "a", None, 5):
        with pytest.raises(UserError, match=r"generated must be numbers \[n, 2\], got"):
            states.calc_nll(samples)
    with pytest.raises(UserError, match=r"samples must be numbers \[n, 2\], got a tensor"):
        states.show(torch.randn(4, 3))
    with pytest.raises(UserError, match="save_to must be a path, got 3"):
        states.show(save_to=3)
    with pytest.raises(UserError, match="generated must be finite, got NaN or infinity in 1 of 4"):
        states.calc_nll(x / torch.tensor([[1.0, 1], [0, 1], [1, 1], [1, 1]]))
