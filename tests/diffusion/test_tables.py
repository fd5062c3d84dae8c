"""Tables of text as users have them: what is taken for what, and what is refused."""

import sys
from collections import Counter

import numpy as np
import pytest

from flashpoint.diffusion import UserError, load_points

XY = [[1.0, 2.0], [3.0, 4.5]]

# Content, points, labels, names of the classes, what is said after the name of the file.
READ = {
    "a byte-order mark": (b"\xef\xbb\xbfx,y\n1,2\n3,4.5\n", None, (), "columns x, y"),
    "a quoted header": (
        b'"x","y","label"\n1,2,0\n3,4.5,1\n', [0, 1], (), "columns x, y; labels from 'label'",
    ),
    "labels in the first column": (
        b"class,x,y\ndog,1,2\ncat,3,4.5\n", [1, 0], ("cat", "dog"),
        "columns x, y; labels from 'class'",
    ),
    "labels in the middle, with gaps": (
        b"a,Target,b\n1,7,2\n3,5,4.5\n", [1, 0], ("5", "7"), "columns a, b; labels from 'Target'",
    ),
    "y as labels": (
        b"x1,x2,y\n1,2,0\n3,4.5,0\n", [0, 0], (), "columns x1, x2; labels from 'y'",
    ),
    "y as a coordinate": (b"x,y\n1,2\n3,4.5\n", None, (), "columns x, y"),
    "y as a coordinate without x": (b"z,y\n1,2\n3,4.5\n", None, (), "columns z, y"),
    "y as words beside x": (
        b"x,z,y\n1,2,b\n3,4.5,a\n", [1, 0], ("a", "b"), "columns x, z; labels from 'y'",
    ),
    "pandas' index": (
        b",x,y\n0,1,2\n1,3,4.5\n", None, (), "columns x, y; the column without a name is left out",
    ),
    "pandas' index after a filter": (
        b",x,y\n17,1,2\n4,3,4.5\n", None, (), "columns x, y; the column without a name is left out",
    ),
    "pandas' columns without names": (
        b",0,1,label\n0,1,2,b\n1,3,4.5,a\n", [1, 0], ("a", "b"),
        "columns 0, 1; labels from 'label'; the column without a name is left out",
    ),
    "a column id of some rows": (
        b"x,y,ID\n1,2,907\n3,4.5,15\n", None, (), "columns x, y; 'ID' is left out",
    ),
    "pandas' index and a column id": (
        b",id,x,y\n0,907,1,2\n1,15,3,4.5\n", None, (),
        "columns x, y; the column without a name is left out; 'id' is left out",
    ),
    "a column id": (b"id,x,y\n1,1,2\n2,3,4.5\n", None, (), "columns x, y; 'id' is left out"),
    "R's table": (
        b'"x" "y"\n"1" 1 2\n"2" 3 4.5\n', None, (),
        "columns x, y; the column without a name is left out",
    ),
    "semicolons": (b"x;y\n1;2\n3;4.5\n", None, (), "columns x, y"),
    "decimal commas": (b"x;y\n1,0;2,0\n3,0;4,5\n", None, (), "columns x, y; decimal commas"),
    "decimal commas in quotes": (
        b'"1","2,0"\n"3","4,5"\n', None, (), "2 columns; no header; decimal commas",
    ),
    "tabs": (b"x\ty\n1\t2\n3\t4.5\n", None, (), "columns x, y"),
    "spaces": (b"1.0   2.0\n  3.0 4.5 \n", None, (), "2 columns; no header"),
    "bars": (b"x|y\n1|2\n3|4.5\n", None, (), "columns x, y"),
    "a mark of the delimiter": (b"sep=;\nx;y\n1;2\n3;4.5\n", None, (), "columns x, y"),
    "comments": (b"# by me\nx,y\n1,2\n# more\n\n3,4.5\n", None, (), "columns x, y"),
    "numpy's header": (
        b"# x,y,label\n1,2,1\n3,4.5,0\n", [1, 0], (), "columns x, y; labels from 'label'",
    ),
    "a delimiter at the end": (b"x,y,\n1,2,\n3,4.5,\n", None, (), "columns x, y"),
    "a delimiter at the end of points alone": (b"x,y\n1,2,\n3,4.5,\n", None, (), "columns x, y"),
    "lines of Windows": (b"x,y\r\n1,2\r\n3,4.5\r\n", None, (), "columns x, y"),
    "UTF-16": ("x,y\n1,2\n3,4.5\n".encode("utf-16"), None, (), "columns x, y"),
    "cp1252": (
        "x,größe,label\n1,2,ä\n3,4.5,a\n".encode("cp1252"), [1, 0], ("a", "ä"),
        "columns x, größe; labels from 'label'; read as cp1252",
    ),
    "labels with zeros in front": (
        b"x,y,label\n1,2,02\n3,4.5,01\n", [1, 0], ("01", "02"),
        "columns x, y; labels from 'label'",
    ),
    "labels beyond float64": (
        b"x,y,label\n1,2,12345678901234567891\n3,4.5,12345678901234567890\n", [1, 0],
        ("12345678901234567890", "12345678901234567891"), "columns x, y; labels from 'label'",
    ),
    "truth values": (
        b"x,y,label\n1,2,True\n3,4.5,False\n", [1, 0], ("False", "True"),
        "columns x, y; labels from 'label'",
    ),
}  # fmt: skip

REFUSED = {
    "NA in the first row": (b"NA,2\n1,3\n", "line 1, column 1: 'NA' is no number"),
    "NA under a header": (b"x,y\n1,3\nNA,2\n", "line 3, column 'x': 'NA' is no number"),
    "an empty cell in the first row": (b",2.5\n1,3\n", "line 1, column 1: the cell is empty"),
    "an empty cell between tabs": (b"x\ty\n1\t\n3\t4\n", "line 2, column 'y': the cell is empty"),
    "a typo in the first row": (b"1.O,2.0\n1,3\n", "line 1, column 1: '1.O' is no number"),
    "typos alone in the first row": (b"1.O,2.O\n1,3\n", "line 1, column 1: '1.O' is no number"),
    "a typo after comments": (b"# a\n\nx,y\n1,2\n#\n3,4x\n", "line 6, column 'y': '4x' is no"),
    "Python's 1_000": (b"x,y\n1_000,2\n3,4\n", "line 2, column 'x': '1_000' is no number"),
    "units under the header": (b"x,y\nm,m\n1,2\n3,4\n", "line 2, column 'x': 'm' is no number"),
    "thousands and decimals": (
        b'x,y\n"1,234.5",2\n"2,345.6",3\n',
        "line 2, column 'x': '1,234.5' is no number",
    ),
    "dates": (b"day,x\n2020-01-01,1\n2020-01-02,2\n", "'2020-01-01' is no number"),
    "infinity": (b"x,y\n1,2\ninf,3\n", "line 3, column 'x': points must be finite, got inf"),
    "beyond float64": (b"x,y\n1,2\n1e400,3\n", "line 3, column 'x': points must be finite"),
    "a short row": (b"x,y\n1,2\n3\n4,5\n", "line 3 has 1 cell, the others have 2 between commas"),
    "a long row": (b"x,y\n1,2\n3,4\n4,5,6\n", "line 4 has 3 cells, the others have 2"),
    "thousands": (b"1,500;2,500\n3,000;4,000\n", "the comma in 1,500 may stand before decimals"),
    "commas and points": (b"x;y\n1,5;2.5\n", "a comma in 1,5 and a point in 2.5"),
    "two columns of labels": (b"x,label,class\n1,0,1\n3,1,1\n", "'label' and 'class' may both"),
    "words": (b"a,b,species\n1,2,setosa\n3,4,virginica\n", "--labels species"),
    "words without a header": (b"1,2,cat\n3,4,dog\n", "column 3 holds text, 'cat' for one"),
    "y that may be both": (b"x1,x2,y\n1,2,7\n3,4,1\n4,5,2\n", "'y' may hold labels or a coord"),
    "a header of numbers": (b"0,1\n0.5,0.6\n", "line 1, 0, 1, may be a header of numbers or a poi"),
    "a column without name": (b",x,y\n0.5,1,2\n0.7,1,2\n", "first column has no name"),
    "fractions as labels": (b"x,label\n1,0.5\n3,1\n", "line 2: labels must be whole numbers"),
    "a label NA": (b"x,label\n1,a\n3,NA\n", "line 3: labels must be whole numbers or words"),
    "rows of many lengths": (b"1,2,3\n4,5\n6,7,8\n", "line 2 has 2 cells, the others have 3"),
    "a missing label": (b"x,label\n1,a\n3,\n", "line 3: labels must be whole numbers or words"),
    "labels alone": (b"label\n1\n0\n", "has no column with coordinates"),
    "an open quote": (b'x,y\n"1,2\n3,4\n', "a quotation mark is not closed"),
    "no content": (b"", "is empty"),
    "empty lines": (b"\n  \n", "is empty"),
    "a header alone": (b"x,y\n", "holds a header and no points"),
    "no text": (b"x,y\n1\0,2\n", "is no text"),
}


@pytest.mark.parametrize("kind", READ)
def test_a_table_is_read_as_what_it_is(tmp_path, kind):
    content, labels, names, said = READ[kind]
    (tmp_path / "a.csv").write_bytes(content)
    lines = []
    points = load_points(tmp_path / "a.csv", say=lines.append)
    assert points.data.tolist() == XY
    assert (None if points.labels is None else points.labels.tolist()) == labels
    assert points.class_names == names
    assert lines[0] == f"a.csv: {said}"
    assert lines[1:] == ([f"a.csv: classes {', '.join(names)}"] if names else [])


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_or_ambiguous_is_named(tmp_path, kind):
    content, message = REFUSED[kind]
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        load_points(tmp_path / "a.csv", say=lambda _: None)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "columns", "names"),
    [
        ("species", ("a", "b"), ("setosa", "virginica")),
        ("Species", ("a", "b"), ("setosa", "virginica")),
        ("3", ("a", "b"), ("setosa", "virginica")),
    ],
)
def test_the_column_of_the_labels_by_name_and_number(tmp_path, labels, columns, names):
    (tmp_path / "a.csv").write_text("a,b,species\n1,2,setosa\n3,4,virginica\n")
    points = load_points(tmp_path / "a.csv", labels, say=lambda _: None)
    assert points.columns == columns
    assert points.class_names == names
    with pytest.raises(UserError, match=r"labels must be a column of .*: a, b, species, got 'c'"):
        load_points(tmp_path / "a.csv", "c")


def test_a_chosen_column_leaves_out_others_that_look_like_labels(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,label,class\n1,2,0,1\n3,4,1,1\n")
    said = []
    points = load_points(tmp_path / "a.csv", "label", say=said.append)
    assert points.labels.tolist() == [0, 1]
    assert points.dim == 2
    assert "labels from 'label'; 'class' is left out" in said[0]
    everything = load_points(tmp_path / "a.csv", "none", say=said.append)
    assert everything.labels is None
    assert everything.columns == ("x", "y")


def test_tsv_and_txt_and_a_single_column(tmp_path):
    (tmp_path / "a.tsv").write_text("x\ty\n1\t2\n")
    (tmp_path / "b.txt").write_text("1 2\n3 4\n")
    (tmp_path / "c.csv").write_text("x\n1\n2\n")
    assert load_points(tmp_path / "a.tsv").data.shape == (1, 2)
    assert load_points(tmp_path / "b.txt").data.shape == (2, 2)
    assert load_points(tmp_path / "c.csv").data.shape == (2, 1)


def test_a_quoted_cell_over_two_lines_keeps_the_count_of_lines(tmp_path):
    (tmp_path / "a.csv").write_text('label,x,y\n"a\nb",1,2\nc,3,z\n')
    with pytest.raises(UserError, match="line 4, column 'y': 'z' is no number"):
        load_points(tmp_path / "a.csv")


def test_numbers_keep_their_precision_until_they_are_standardised(tmp_path):
    x = 4_649_776 + np.linspace(-1, 1, 101)
    np.savetxt(tmp_path / "a.csv", np.stack((x, x**0), axis=1), "%.17g", delimiter=",")
    points = load_points(tmp_path / "a.csv", standardise=True, say=lambda _: None)
    want = (x - x.mean()) / x.std()
    np.testing.assert_allclose(points.data[:, 0].numpy(), want, atol=1e-6)
    np.testing.assert_allclose(points.in_units(points.data)[:, 0].numpy(), x, rtol=1e-12)
    assert points.data[:, 1].abs().max() == 0
    assert points.standardisation.std[1] == 1


def test_the_time_to_read_grows_with_the_rows_and_not_faster(tmp_path):
    def calls(count):
        (tmp_path / "a.csv").write_text("x,y,label\n" + "1,2,0\n3.5,4,1\n" * (count // 2))
        made = Counter()
        sys.setprofile(lambda _frame, event, _function: made.update([event]))
        try:
            points = load_points(tmp_path / "a.csv", say=lambda _: None)
        finally:
            sys.setprofile(None)
        assert len(points) == count
        return made.total()

    assert calls(8000) < 6 * calls(2000)  # 16 times if each row looked at all others
