"""Files of arrays and tensors: keys, kinds of tensors, labels with names."""

import numpy as np
import pytest
import torch

from flashpoint.diffusion import Points, UserError, dataset, load_points

DATA = torch.arange(12.0).reshape(6, 2).sin()
LABELS = torch.tensor([0, 1, 0, 1, 2, 2])


def silent(path, *arguments, **options):
    return load_points(path, *arguments, say=lambda _: None, **options)


@pytest.mark.parametrize("ending", [".npz", ".pt"])
@pytest.mark.parametrize("points", ["data", "points", "samples", "X", "x", "arr_0"])
@pytest.mark.parametrize(
    "labels", ["label", "labels", "class", "classes", "target", "targets", "y"]
)
def test_keys_of_points_and_labels(tmp_path, ending, points, labels):
    path = tmp_path / f"a{ending}"
    if ending == ".npz":
        np.savez(path, **{points: DATA.numpy(), labels: LABELS.numpy(), "weight": np.ones(6)})
    else:
        torch.save({points: DATA, labels: LABELS.numpy(), "weight": [1, 2]}, path)
    said = []
    found = load_points(path, say=said.append)
    assert torch.equal(found.data, DATA)
    assert torch.equal(found.labels, LABELS)
    line = f"a{ending}: points from '{points}'; labels from '{labels}'; not used: weight"
    assert said == [line]


def test_keys_that_are_ambiguous_or_missing(tmp_path):
    cases = {
        "'data' and 'X' may both hold the points": {"data": DATA, "X": DATA},
        "'label' and 'y' may both hold the labels": {"data": DATA, "y": LABELS, "label": LABELS},
        "must hold 'data' .*: it holds a, b": {"a": DATA, "b": DATA},
        "must hold 'data' .*: it is empty": {},
        r"labels must be \[N\], one per point, got \[6, 2\]": {"data": DATA, "y": DATA},
        "a list must hold rows of equally": {"data": [[1, 2], [3]]},
        r"a.pt: labels must be \[6\], one per point, got \[5\]": {"data": DATA, "y": LABELS[:5]},
        "row 1: labels must be whole numbers": {"data": DATA, "y": LABELS + DATA[:, 0]},
    }
    for message, content in cases.items():
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(UserError, match=message):
            silent(tmp_path / "a.pt")
    torch.save({"data": DATA, "y": LABELS, "kind": LABELS // 2}, tmp_path / "a.pt")
    assert silent(tmp_path / "a.pt", "kind").num_classes == 2
    assert silent(tmp_path / "a.pt", "none").labels is None
    with pytest.raises(UserError, match=r"labels must be a key of a\.pt: y, kind, got 'z'"):
        silent(tmp_path / "a.pt", "z")
    torch.save(DATA, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"labels must be none: a\.pt holds an array"):
        silent(tmp_path / "a.pt", "z")
    with pytest.raises(UserError, match="labels must be left out: moons has its own"):
        dataset("moons", "z")


TENSORS = {
    "numpy": DATA.double().numpy(),
    "gradient": DATA.clone().requires_grad_(),
    "parameter": torch.nn.Parameter(DATA.clone()),
    "bfloat16": DATA.bfloat16(),
    "half": DATA.half(),
    "sparse": DATA.to_sparse(),
    "integers": torch.arange(12).reshape(6, 2),
    "bytes": torch.arange(12, dtype=torch.uint8).reshape(6, 2),
    "transposed": DATA.T.contiguous().T,
    "a list": DATA.tolist(),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("key", [False, True])
def test_tensors_of_every_kind(tmp_path, kind, key):
    given = TENSORS[kind]
    torch.save({"data": given} if key else given, tmp_path / "a.pt")
    dense = given.detach().to_dense() if isinstance(given, torch.Tensor) else torch.tensor(given)
    points = silent(tmp_path / "a.pt")
    assert points.data.dtype == torch.float32
    assert not points.data.requires_grad
    assert torch.equal(points.data, dense.float())


def test_pairs_and_single_dimensions(tmp_path):
    torch.save((DATA, LABELS[:, None]), tmp_path / "pair.pt")
    assert torch.equal(silent(tmp_path / "pair.pt").labels, LABELS)
    assert silent(tmp_path / "pair.pt", "none").labels is None
    np.save(tmp_path / "flat.npy", np.arange(9.0))
    said = []
    assert load_points(tmp_path / "flat.npy", say=said.append).data.shape == (9, 1)
    assert said[0] == "flat.npy: 9 points of one dimension"
    np.save(tmp_path / "cube.npy", np.ones((3, 2, 2)))
    with pytest.raises(UserError, match=r"must be \[N, d\].*got \[3, 2, 2\]"):
        silent(tmp_path / "cube.npy")


def test_coordinates_under_keys_of_their_own(tmp_path):
    x, y = DATA.T.double().numpy()
    np.savez(tmp_path / "a.npz", x=x, y=y, label=LABELS.numpy(), scale=2.0)
    said = []
    points = load_points(tmp_path / "a.npz", say=said.append)
    assert torch.equal(points.data, DATA)
    assert torch.equal(points.labels, LABELS)
    assert said == ["a.npz: columns x, y; labels from 'label'; not used: scale"]


def test_fields_of_a_structured_array_are_columns(tmp_path):
    kinds = [("index", int), ("x", float), ("y", "f4"), ("class", "U5")]
    rows = np.array([(0, 1, 2, "cat"), (1, 3, 4, "dog")], dtype=kinds)
    np.save(tmp_path / "a.npy", rows)
    said = []
    points = load_points(tmp_path / "a.npy", say=said.append)
    assert points.data.tolist() == [[1, 2], [3, 4]]
    assert points.columns == ("x", "y")
    assert points.class_names == ("cat", "dog")
    assert said[0] == "a.npy: columns x, y; labels from 'class'; 'index' is left out"
    np.save(tmp_path / "b.npy", np.zeros(2, [("place", float, 3), ("label", int)]))
    assert silent(tmp_path / "b.npy").columns == ("place_0", "place_1", "place_2")


def test_content_counts_where_the_name_is_of_another_format(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, DATA.numpy())
    with (tmp_path / "b.npy").open("wb") as file:
        np.savez(file, data=DATA.numpy(), labels=LABELS.numpy())
    torch.save(DATA, tmp_path / "c.npz")
    with (tmp_path / "d.csv").open("wb") as file:
        np.save(file, DATA.numpy())
    for name in ("a.npz", "b.npy", "c.npz", "d.csv"):
        assert torch.equal(silent(tmp_path / name).data, DATA)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".npy", ".npz", ".csv", ".tsv", ".txt"])
def test_an_empty_file_is_called_empty(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(b"")
    with pytest.raises(UserError, match=f"a{ending} is empty"):
        silent(tmp_path / f"a{ending}")


def test_labels_keep_their_names(tmp_path):
    np.savez(tmp_path / "a.npz", data=DATA.numpy(), labels=np.array([30, -1, 30, -1, 5, 5]))
    points = silent(tmp_path / "a.npz")
    assert points.class_names == ("-1", "5", "30")
    assert points.labels.tolist() == [2, 0, 2, 0, 1, 1]
    assert [points.label(name) for name in ("30", 5, "-1")] == [2, 1, 0]
    assert points.only("30").name == "a_2"
    for wrong in (0, "2", "cat"):
        with pytest.raises(UserError, match=f"label must be one of -1, 5, 30, got {wrong!r}"):
            points.label(wrong)
    words = Points(DATA, LABELS, ("a", "b", "c"))
    assert [words.label(name) for name in ("c", 1, "0")] == [2, 1, 0]
    plain = Points(DATA, LABELS)
    assert plain.label("1") == 1
    for wrong in ("cat", 3, -1, 1.5):
        with pytest.raises(UserError, match=f"label must be from 0 to 2, got {wrong!r}"):
            plain.label(wrong)


def test_whole_numbers_in_words_are_numbers(tmp_path):
    np.savez(tmp_path / "a.npz", data=DATA.numpy(), y=np.array(["10", "9", "10", "9", "1", "1"]))
    assert silent(tmp_path / "a.npz").class_names == ("1", "9", "10")
    np.savez(tmp_path / "a.npz", data=DATA.numpy(), y=np.array(["1", "0", "1", "0", "2", "2"]))
    assert silent(tmp_path / "a.npz").class_names == ()


def test_wrong_arguments_are_named(tmp_path):
    torch.save(DATA, tmp_path / "a.pt")
    for message, arguments in {
        "labels must be the name of a column or key, got int": (tmp_path / "a.pt", 2),
        "standardise must be True, False or a Standardisation, got str": (
            tmp_path / "a.pt", None, "no",
        ),
        "path must be a name or a path, got NoneType": (None,),
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            silent(*arguments)
    with pytest.raises(UserError, match="data must be a name or a path, got int"):
        dataset(3)


def test_each_point_a_class_of_its_own_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", data=np.ones((20, 2)), y=np.arange(20))
    with pytest.raises(UserError, match="labels must be classes, but each of the 20 points"):
        silent(tmp_path / "a.npz")


def test_names_of_classes_beside_the_labels(tmp_path):
    content = {"data": DATA, "labels": LABELS, "class_names": ["a", "b", "c"]}
    torch.save(content, tmp_path / "a.pt")
    assert silent(tmp_path / "a.pt").class_names == ("a", "b", "c")


def test_numbers_beyond_float32_are_refused_or_standardised(tmp_path):
    data = DATA.double().numpy() * 1e60
    np.save(tmp_path / "a.npy", data)
    with pytest.raises(UserError, match=r"points up to 1e\+60 do not fit float32: standardise"):
        silent(tmp_path / "a.npy")
    points = silent(tmp_path / "a.npy", standardise=True)
    np.testing.assert_allclose(points.in_units(points.data).numpy(), data, atol=1e53)
    np.save(tmp_path / "b.npy", data * 1e200)
    with pytest.raises(UserError, match="too large to standardise"):
        silent(tmp_path / "b.npy", standardise=True)
    np.save(tmp_path / "close.npy", [[1e-200], [2e-200]])
    with pytest.raises(UserError, match="too close together to standardise"):
        load_points(tmp_path / "close.npy", standardise=True)
