"""Names of classes: read from files of every format, asked for, and kept."""

import csv

import numpy as np
import pytest
import torch

import flashpoint.diffusion as fd
from flashpoint.diffusion import Points, UserError
from flashpoint.diffusion.data.labels import class_number, cleaned
from flashpoint.diffusion.experiment import check_measurable
from flashpoint.diffusion.metrics import summary

GENERATOR = torch.Generator().manual_seed(0)
DATA = torch.randn(40, 2, generator=GENERATOR, dtype=torch.float64)
NAMES = ("New York", "Ohio", "Île-de-France", "東京, 日本")  # in the order of their code points
LABELS = torch.arange(40) % 4


def silent(path, *arguments, **options):
    return fd.load_points(path, *arguments, say=lambda _: None, **options)


def table(path, labels, delimiter=","):
    """Writes points with these labels, as many as there are."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(("a", "b", "label"))
        writer.writerows([*x, label] for x, label in zip(DATA.tolist(), labels, strict=False))
    return path


def _write(path, words):
    """Writes points with these words as labels, in the format of the file's name."""
    kind = path.suffix
    if kind in (".csv", ".tsv", ".txt"):
        table(path, words, "\t" if kind == ".tsv" else ",")
    elif kind == ".npz":
        np.savez(path, data=DATA.numpy(), labels=np.array(words))
    elif kind == ".npy":
        kinds = [("a", float), ("b", float), ("label", "U20")]
        rows = [(*x, word) for x, word in zip(DATA.tolist(), words, strict=True)]
        np.save(path, np.array(rows, dtype=kinds))
    else:
        torch.save({"data": DATA, "labels": LABELS, "class_names": list(NAMES)}, path)


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".txt", ".npz", ".npy", ".pt", ".pth"])
def test_every_format_gives_the_same_classes_and_keeps_them_when_written_again(tmp_path, kind):
    path = tmp_path / f"a{kind}"
    _write(path, [NAMES[label] for label in LABELS.tolist()])
    points = silent(path)
    assert points.class_names == NAMES
    assert torch.equal(points.labels, LABELS)
    content = {"data": DATA.numpy(), "labels": LABELS.numpy(), "class_names": np.array(NAMES)}
    np.savez(tmp_path / "again.npz", **content)
    again = silent(tmp_path / "again.npz")
    assert (again.class_names, again.digest) == (points.class_names, points.digest)


def test_words_are_cleaned_and_told_apart_by_case(tmp_path):
    written = ["New\u00a0York", " New  York ", "new york", "Jose\u0301", "José", "a\nb"]
    said = []
    points = fd.load_points(table(tmp_path / "a.csv", written), say=said.append)
    assert points.class_names == ("José", "New York", "a b", "new york")
    assert points.labels.tolist() == [1, 1, 3, 0, 0, 2]
    assert said[-1] == "a.csv: classes New York and new york differ in case alone"
    assert points.label(" new  york") == 3
    with pytest.raises(UserError, match="label must be New York or new york, got 'NEW YORK'"):
        points.label("NEW YORK")


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (["2", "10", "x", "x"], ("10", "2", "x")),  # one is a word, so all are
        (["01", "02", "01", "03"], ("01", "02", "03")),
        (["1e2", "1", "1", "2"], ("1", "2", "100")),
        (["True", "False", "True", "True"], ("False", "True")),
        (["1.0", "0.0", "1.0", "1.0"], ()),
        (["None", "none", "-", "?"], ("-", "?", "None", "none")),
    ],
)
def test_labels_that_look_like_something_else(tmp_path, written, names):
    assert silent(table(tmp_path / "a.csv", written)).class_names == names


@pytest.mark.parametrize("missing", ["", "  ", "NA", "nan", "N/A", "NULL"])
def test_a_missing_label_is_named(tmp_path, missing):
    with pytest.raises(UserError) as error:
        silent(table(tmp_path / "a.csv", ["a", "b", missing, "b"]))
    assert str(error.value) == (
        f"a.csv: line 4: labels must be whole numbers or words, got {missing.strip()!r}, as where "
        "one is missing; labels none (--labels none) leaves them out"
    )


def test_labels_that_name_each_point_are_no_classes(tmp_path):
    ids = [f"id{k // 2}" for k in range(16)] + ["other"] * 4
    found = silent(table(tmp_path / "a.csv", ids))
    assert found.num_classes == 9
    ids[1] = "id"
    ids[3] = "another"
    with pytest.raises(UserError, match="must be classes, but 20 points have 11 of them: leave th"):
        silent(table(tmp_path / "a.csv", ids))
    np.savez(tmp_path / "a.npz", data=np.ones((4000, 1)), labels=np.arange(4000) % 1001)
    with pytest.raises(UserError, match="but 4,000 points have 1,001 of them"):
        silent(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("labels", "names", "want"),
    [
        ([0, 2, 2], ["a", "b", "c"], ([0, 1, 1], ("a", "c"))),
        ([True, False, True], ["no", "yes"], ([1, 0, 1], ("no", "yes"))),
        (["low", "high", "mid"], ["low", "mid", "high"], ([0, 2, 1], ("low", "mid", "high"))),
        (["1", "0", "1"], ["a", "b"], ([1, 0, 1], ("a", "b"))),
        ([1, 2, 2], ["1", "2", "3"], ([0, 1, 1], ("2", "3"))),  # numbers count, as they are written
        ([0, 1, 1], [], ([0, 1, 1], ())),
    ],
)
def test_names_beside_the_labels_say_the_order(tmp_path, labels, names, want):
    content = {"data": np.ones((3, 2)), "labels": np.array(labels)}
    np.savez(tmp_path / "a.npz", **content, class_names=np.array(names, dtype=str))
    points = silent(tmp_path / "a.npz")
    assert (points.labels.tolist(), points.class_names) == want
    assert silent(tmp_path / "a.npz", "none").class_names == ()


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 3], ["a", "b", "c"], "class_names must be one for each label from 0, or the lab"),
        (["a", "b", "d"], ["a", "b", "c"], "the labels themselves: a, b, d; got a, b, c"),
        ([0, 1, 1], ["a", "a"], "a.npz: class_names must be words that differ, got 'a'"),
        ([0, 1, 1], ["a", " "], "a.npz: class_names must be words that differ, got ''"),
        ([0, 1, 1], [1, 2], "class_names must be a list of words, got an array of int64"),
    ],
)
def test_names_that_are_not_those_of_the_labels(tmp_path, labels, names, message):
    content = {"data": np.ones((3, 2)), "labels": np.array(labels)}
    np.savez(tmp_path / "a.npz", **content, class_names=np.array(names))
    with pytest.raises(UserError, match=message):
        silent(tmp_path / "a.npz")


def test_a_word_is_not_a_list_of_names(tmp_path):
    torch.save({"data": DATA, "labels": LABELS % 2, "class_names": "ab"}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="class_names must be a list of words, got 'ab'"):
        silent(tmp_path / "a.pt")


def test_a_class_by_name_number_and_near_name():
    names = ("Ohio", "Idaho", "Iowa", "Utah")
    for given, want in {"Ohio": 0, "IDAHO": 1, " iowa ": 2, 3: 3, "3": 3}.items():
        assert class_number(given, names, 4) == want
    assert class_number("STRASSE", ("straße", "weg"), 2) == 0
    with pytest.raises(UserError) as error:
        class_number("new", ("New York", "Ohio", "New Jersey"), 3)
    assert str(error.value) == (
        "label must be one of New York, Ohio, New Jersey, got 'new'; did you mean 'New York' or "
        "'New Jersey'?"
    )
    with pytest.raises(UserError, match="must be one of Ohio, Idaho, got 'Iowa'"):
        class_number("Iowa", names, 2)  # the data have no points of it
    with pytest.raises(UserError, match="must be one of 1, 2, x, got 0"):
        class_number(0, ("1", "2", "x"), 3)  # 1 is a name, so 0 is no number
    assert cleaned(" a \n b\t") == "a b"


def test_names_that_are_numbers_do_not_move_the_classes():
    """Class 1 is named 2 where labels are 1, 2 and 3; nothing takes its number for a name."""
    data = DATA.float() + LABELS[:, None] * 100
    points = Points(data, LABELS, ("1", "2", "3", "4"))
    check_measurable(points)
    for label in range(4):
        assert torch.equal(points.of_number(label).data, points.of_class(label))
        assert fd.evaluate(points.of_class(label), points, label=label, repeats=2).purity == 1
    assert torch.equal(points.only("1").data, points.of_class(0))
    assert fd.evaluate(points.of_class(1), points, label="2", repeats=2).purity == 1
    with pytest.raises(UserError, match="label must be from 0 to 3, got 4"):
        fd.evaluate(points.of_class(1), points, label=4, repeats=2)


def test_evaluate_takes_a_name():
    points = Points(DATA.float() + LABELS[:, None] * 100, LABELS, NAMES)
    x = points.of_class(1)
    by_name = fd.evaluate(x, points, label="ohio", repeats=2)
    assert by_name == fd.evaluate(x, points, label=1, repeats=2)
    assert by_name.purity == 1
    with pytest.raises(UserError, match=r"label must be one of New York, Ohio.*, got 'Oho'; did"):
        fd.evaluate(x, points, label="Oho", repeats=2)
    assert "| a\\|b |" in summary({"a|b": by_name})
