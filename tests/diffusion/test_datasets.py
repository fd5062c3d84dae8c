"""The data sets: their definitions, their published floors, and fresh draws of them."""

import gzip

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_circles, make_moons

from flashpoint.diffusion import (
    DATASETS,
    Points,
    UserError,
    dataset,
    fashion_mnist,
    kernel_nll,
    nearest_neighbour_test,
    sliced_wasserstein,
)
from flashpoint.diffusion.data import clouds
from flashpoint.diffusion.metrics.distances import subset

SETS = {name: dataset(name) for name in DATASETS}
DRAWN = [name for name, points in SETS.items() if points.redraw]
# Points, dimensions, classes.
SIZES = {
    "states": (5000, 2, 5), "moons": (8000, 2, 2), "circles": (8000, 2, 2), "blobs": (8000, 2, 2),
    "manycircles": (8000, 2, 8), "helix": (10_000, 3, 2), "sin_5_5": (15_686, 3, 0),
    "digits": (1797, 64, 10),
}  # fmt: skip


@pytest.mark.parametrize("name", DATASETS)
def test_size_and_classes(name):
    points = SETS[name]
    assert name in SIZES, "a data set needs its size in SIZES"
    assert (len(points), points.dim, points.num_classes) == SIZES[name]
    assert points.name.lower() == name
    assert len(points.class_names) == points.num_classes
    again = dataset(name)
    assert torch.equal(points.data, again.data)


# What samples of the published models scored at best, and a perfect sampler scores.
@pytest.mark.parametrize(
    ("name", "published"),
    [("moons", 0.949), ("circles", 0.988), ("blobs", 0.005), ("manycircles", 0.597),
     ("helix", 1.521)],
)  # fmt: skip
def test_kernel_nll_of_perfect_samples_is_the_published_one(name, published):
    points = SETS[name]
    draws = [kernel_nll(points.redraw(4000, seed)[0], points.data) for seed in range(3)]
    assert np.mean(draws) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("name", DRAWN)
def test_a_fresh_draw_has_the_distribution_of_the_data(name):
    points = SETS[name]
    draws = [points.redraw(3000, seed)[0] for seed in range(20)]
    within = [sliced_wasserstein(a, b) for a, b in zip(draws[:10], draws[10:], strict=True)]
    across = np.mean([sliced_wasserstein(a, subset(points.data, 3000, 7)) for a in draws[:5]])
    assert across < np.mean(within) + 4 * np.std(within)
    near = nearest_neighbour_test(draws[9], points.data, 0)
    assert near.sample_by_sample == pytest.approx(0.5, abs=0.04)  # 0.01 is one standard deviation
    assert near.datum_by_datum == pytest.approx(0.5, abs=0.04)
    assert torch.equal(draws[0], points.redraw(3000, 0)[0])


@pytest.mark.parametrize("name", [name for name in DRAWN if SETS[name].num_classes])
def test_a_fresh_draw_of_one_class_has_its_distribution(name):
    points = SETS[name]
    for label in range(min(2, points.num_classes)):
        drawn, labels = points.redraw(2000, 5, label)
        assert drawn.shape == (2000, points.dim)
        assert (labels == label).all()
        own = sliced_wasserstein(drawn, points.of_class(label))
        others = sliced_wasserstein(drawn, points.data[points.labels != label])
        assert own < 0.03
        assert others > 3 * own
    shares = points.redraw(8000, 1)[1].bincount() / 8000
    torch.testing.assert_close(shares, points.labels.bincount() / len(points), atol=0.02, rtol=0)


def test_moons_and_circles_are_scikit_learns():
    for name, (x, y) in {
        "moons": make_moons(8000, noise=0.04, random_state=42),
        "circles": make_circles(8000, noise=0.04, factor=0.7, random_state=42),
    }.items():
        low, high = x.min(0), x.max(0)
        scaled = torch.from_numpy(2 * (x - low) / (high - low) - 1).float()
        torch.testing.assert_close(SETS[name].data, scaled)
        assert torch.equal(SETS[name].labels, torch.from_numpy(y))


def test_blobs_and_manycircles_have_the_moments_of_their_gaussians():
    random = np.random.default_rng(0)
    x, y = clouds._draw_blobs(random, 40_000)
    far = x[(y == 1) & (x.sum(axis=1) > 1.1)]
    np.testing.assert_allclose(far.mean(axis=0), (0.8, 0.8), atol=0.01)
    np.testing.assert_allclose(np.cov(far.T), [[0.005, -0.004], [-0.004, 0.005]], atol=3e-4)
    np.testing.assert_allclose(np.cov(x[y == 0].T), 0.005 * np.eye(2), atol=2e-4)
    assert y.mean() == pytest.approx(0.2, abs=0.01)
    assert len(far) / y.sum() == pytest.approx(0.8, abs=0.02)
    x, y = clouds._draw_manycircles(random, 40_000)
    np.testing.assert_allclose(x[y == 2].mean(axis=0), (0, 1), atol=0.02)
    np.testing.assert_allclose(x[y == 2].std(axis=0), 0.25, atol=0.01)


def test_the_helix_is_a_noisy_helix_whose_classes_follow_the_sine():
    x, y = clouds._draw_helix(np.random.default_rng(0), 40_000)
    assert np.hypot(x[:, 0], x[:, 1]).std() == pytest.approx(0.03, abs=0.001)
    turned = np.exp(1j * (np.arctan2(x[:, 1], x[:, 0]) - 14 * x[:, 2]))
    assert abs(np.angle(turned.mean())) < 0.01
    # The noise of the height turns the point by 14 times as much as that along the circle.
    assert np.angle(turned).std() == pytest.approx(0.03 * np.hypot(14, 1), rel=0.02)
    share = (np.sin(4 * x.prod(axis=1)) + 1) / 2
    for low in (0.0, 0.25, 0.5, 0.75):
        rows = (share >= low) & (share < low + 0.25)
        assert y[rows].mean() == pytest.approx(share[rows].mean(), abs=0.02)


def test_the_sine_surface_is_uniform_over_the_disc():
    x, y, z = clouds._draw_sin_5_5(np.random.default_rng(0), 40_000)[0].T
    radius = np.hypot(x, y)
    assert radius.max() < 1
    np.testing.assert_allclose(np.histogram(radius**2, 5, (0, 1))[0] / 40_000, 0.2, atol=0.01)
    error = z - (1 - radius) * np.sin(5 * x) * np.cos(5 * y)
    assert error.std() == pytest.approx(0.01, rel=0.02)


def test_digits_are_images_from_minus_one_to_one():
    points = SETS["digits"]
    raw = load_digits()
    assert points.image_shape == (8, 8)
    torch.testing.assert_close((points.data + 1) * 8, torch.from_numpy(raw.data).float())
    assert torch.equal(points.labels, torch.from_numpy(raw.target))
    with pytest.raises(UserError, match="image_shape"):
        Points(torch.zeros(3, 5), image_shape=(2, 2))


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


@pytest.fixture
def clothes(tmp_path):
    """Five training and three test images in IDX files, one of them packed, and as an .npz."""
    random, arrays = np.random.default_rng(0), {}
    for part, name, n in (("train", "train", 5), ("test", "t10k", 3)):
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8)
        arrays |= {f"x_{part}": images, f"y_{part}": labels}
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    np.savez(tmp_path / "fashion.npz", **arrays)
    return tmp_path, arrays


@pytest.mark.parametrize("form", ["", "fashion.npz"])
def test_fashion_mnist_from_the_users_files(clothes, form):
    folder, arrays = clothes
    points = dataset(folder / form)
    assert points.image_shape == (28, 28)
    want = torch.from_numpy(arrays["x_train"].reshape(5, 784).astype(np.float32)) / 127.5 - 1
    torch.testing.assert_close(points.data, want)
    assert points.class_names[3] == "dress"
    assert len(fashion_mnist(folder / form, "test")) == 3
    assert len(points.only(3)) == 1


def test_damaged_images_are_named(clothes):
    folder, _ = clothes
    packed = folder / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:50])
    with pytest.raises(UserError, match="cannot be read"):
        dataset(folder)
    packed.write_bytes(gzip.compress(b"\0\0\x08\x03" + b"\0" * 9))
    with pytest.raises(UserError, match="no IDX file"):
        dataset(folder)
    packed.unlink()
    with pytest.raises(UserError, match="must hold train-images"):
        fashion_mnist(folder)
    np.savez(folder / "half.npz", x_train=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(UserError, match="must hold x_train and y_train"):
        dataset(folder / "half.npz")
    np.savez(folder / "flat.npz", x_train=np.zeros((2, 784)), y_train=np.zeros(2))
    with pytest.raises(UserError, match=r"images \[N, height, width\]"):
        dataset(folder / "flat.npz")


def test_names_and_files(tmp_path):
    np.save(tmp_path / "own.npy", np.ones((3, 2)))
    assert dataset(tmp_path / "own.npy").name == "own"
    with pytest.raises(UserError, match="did you mean 'moons'"):
        dataset("mons")
    with pytest.raises(UserError, match="does not exist"):
        dataset("missing.npy")
    with pytest.raises(UserError, match="no IDX files"):
        dataset(tmp_path)


def test_split_takes_its_part_of_every_class():
    points = SETS["blobs"]
    train, test = points.split(0.25, seed=3)
    assert len(train) + len(test) == len(points)
    for label in range(2):
        whole = len(points.of_class(label))
        assert len(test.of_class(label)) == round(0.25 * whole)
    rows = torch.cat((train.data, test.data)).unique(dim=0)
    assert len(rows) == len(points.data.unique(dim=0))
    assert torch.equal(points.split(0.25, seed=3)[1].data, test.data)
    assert not torch.equal(points.split(0.25, seed=4)[1].data, test.data)
    for fraction, message in ((0.0, "between 0 and 1"), (0.0001, "without points of two blobs")):
        with pytest.raises(UserError, match=message):
            SETS["circles" if fraction == 0 else "blobs"].split(fraction)


def test_one_class_alone():
    points = SETS["blobs"].only(1)
    assert points.labels is None
    assert torch.equal(points.data, SETS["blobs"].of_class(1))
    assert torch.equal(points.redraw(50, 4)[0], SETS["blobs"].redraw(50, 4, 1)[0])
    with pytest.raises(UserError, match="label must be from 0 to 1, got 2"):
        SETS["blobs"].only(2)
    with pytest.raises(UserError, match="label must be left out"):
        SETS["sin_5_5"].only(0)
