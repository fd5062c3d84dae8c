"""Reading point clouds, and refusing what is none."""

import numpy as np
import pytest
import torch

from flashpoint.diffusion import Points, UserError, load_points

DATA = torch.arange(12.0).reshape(6, 2).sin()
LABELS = torch.tensor([0, 1, 0, 1, 2, 2])


def test_pt_with_and_without_labels(tmp_path):
    torch.save({"data": DATA, "labels": LABELS}, tmp_path / "a.pt")
    torch.save(DATA, tmp_path / "b.pt")
    a, b = load_points(tmp_path / "a.pt"), load_points(tmp_path / "b.pt")
    assert torch.equal(a.data, DATA)
    assert torch.equal(a.labels, LABELS)
    assert torch.equal(b.data, DATA)
    assert b.labels is None
    assert a.num_classes == 3
    assert torch.equal(a.of_class(2), DATA[4:])


def test_npy_and_npz(tmp_path):
    np.save(tmp_path / "a.npy", DATA.double().numpy())
    np.savez(tmp_path / "b.npz", data=DATA.numpy(), labels=LABELS.numpy())
    assert torch.equal(load_points(tmp_path / "a.npy").data, DATA)
    assert torch.equal(load_points(tmp_path / "b.npz").labels, LABELS)


@pytest.mark.parametrize("header", ["", "x,y,label\n"])
def test_csv(tmp_path, header):
    rows = [[*point, label] for point, label in zip(DATA.tolist(), LABELS.tolist(), strict=True)]
    text = header + "\n".join(",".join(map(str, row)) for row in rows)
    (tmp_path / "a.csv").write_text(text)
    points = load_points(tmp_path / "a.csv")
    if header:
        assert torch.allclose(points.data, DATA)
        assert torch.equal(points.labels, LABELS)
    else:
        assert points.data.shape == (6, 3)
        assert points.labels is None


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_any_dimension(tmp_path, dim):
    np.save(tmp_path / "a.npy", np.ones((5, dim)))
    assert load_points(tmp_path / "a.npy").dim == dim


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (torch.zeros(0, 2), None, "at least one row"),
        (torch.zeros(5), None, r"must be \[N, d\]"),
        (torch.tensor([[0.0, 1], [torch.nan, 2]]), None, "NaN or infinity in row 1"),
        (torch.tensor([[torch.inf, 2.0]]), None, "NaN or infinity in row 0"),
        (DATA, LABELS[:5], r"labels must be \[6\]"),
        (DATA, LABELS + 1, "labels must be 0, 1"),
        (DATA, LABELS * 2, "without gaps"),
        (DATA.numpy(), None, "must be a tensor of float32, got ndarray"),
        (DATA.long(), None, "must be a tensor of float32, got torch.int64"),
        (DATA, LABELS.float(), "labels must be int64, got torch.float32"),
    ],
)
def test_what_is_no_point_cloud_is_named(data, labels, message):
    with pytest.raises(UserError, match=message):
        Points(data, labels)


def test_every_class_has_a_name_or_none():
    with pytest.raises(UserError, match="class_names must be at least 3, one per class, got 2"):
        Points(DATA, LABELS, ("a", "b"))


def write(path, content):
    path.write_bytes(content)
    return path


def test_files_that_cannot_be_read_are_named(tmp_path):
    torch.save({"data": DATA}, tmp_path / "good.pt")
    whole = (tmp_path / "good.pt").read_bytes()
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "complex.npy", np.ones((3, 2), complex))
    torch.save({"labels": LABELS}, tmp_path / "keys.pt")
    torch.save({"data": DATA, "labels": LABELS + 0.5}, tmp_path / "fraction.pt")
    cases = {
        tmp_path / "missing.pt": "does not exist",
        tmp_path: "is a folder",
        write(tmp_path / "a.xlsx", b"1"): "must be one of .pt, .pth, .npy, .npz, .csv, .tsv, .txt",
        write(tmp_path / "half.pt", whole[: len(whole) // 2]): "cannot be read: no tensors",
        write(
            tmp_path / "foreign.pt", b"hello"
        ): "cannot be read: no tensors or arrays, or damaged",
        write(tmp_path / "foreign.npy", b"hello"): "cannot be read",
        write(tmp_path / "words.csv", b"x,y\na,b\n"): "column 'x' holds text",
        write(tmp_path / "empty.csv", b""): "is empty",
        tmp_path / "objects.npy": "holds Python objects",
        tmp_path / "complex.npy": "must be real numbers",
        tmp_path / "keys.pt": "must hold 'data' .* it holds labels",
        tmp_path / "fraction.pt": "labels must be whole numbers",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message):
            load_points(path)


def test_a_pickled_program_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"data": Harmful()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="cannot be read"):
        load_points(tmp_path / "a.pt")
    assert not (tmp_path / "harm").exists()
