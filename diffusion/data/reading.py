"""Files of points in every format, read in full precision.

A file is told by its first bytes where these say it, and by its suffix otherwise.
"""

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, check_choice, shown
from .columns import LABEL_NAMES, NO_LABELS, Column, Columns, Content, listed
from .labels import cleaned
from .tables import read_table

FILE_TYPES = (".pt", ".pth", ".npy", ".npz", ".csv", ".tsv", ".txt")

_POINT_KEYS = ("data", "points", "samples", "X", "x", "arr_0")
_LABEL_KEYS = (*LABEL_NAMES, "y", "Y")
_CLASS_NAMES = "class_names"


def read_content(path: str | Path, labels: str | None = None) -> Content:
    """Reads points and labels from a file as they are.

    Args:
        path: the file, see :func:`~flashpoint.diffusion.load_points`.
        labels: column or key of the labels; ``none`` for no labels; None finds it by its name.

    Returns:
        Points float64 [N, d], and labels as they are written.

    Raises:
        ValueError: the file is missing, of another type, unreadable or ambiguous.
    """
    if labels is not None and not isinstance(labels, str):
        raise UserError(f"labels must be the name of a column or key, got {type(labels).__name__}")
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"path must be a name or a path, got {type(path).__name__}")
    path = Path(path)
    if path.is_dir():
        raise UserError(f"data file {path} is a folder")
    if not path.is_file():
        raise UserError(f"data file {path} does not exist")
    kind = path.suffix.lower()
    check_choice(f"type of data file {path.name}", kind, FILE_TYPES)
    try:
        content = _READERS[_kind_by_content(path) or kind](path, labels)
        data = _numbers(path.name, content.data)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"data file {path} does not fit the memory") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"data file {path} cannot be read: {reason}") from error
    return content._replace(data=data)


def _kind_by_content(path: Path) -> str | None:
    """Returns the suffix that a file should have by its first bytes; None where they do not say."""
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise UserError(f"{path.name} is empty")
    if start.startswith(b"\x93NUMPY"):
        return ".npy"
    if not start.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return None
    if any(name.endswith("data.pkl") for name in names):
        return ".pt"
    return ".npz" if all(name.endswith(".npy") for name in names) else None


def _numbers(file: str, data: np.ndarray) -> np.ndarray:
    """Returns points as float64 [N, d]."""
    if np.iscomplexobj(data):
        raise UserError(f"{file}: points must be real numbers, got complex ones")
    if data.dtype.kind not in "fiub":
        raise UserError(f"{file}: points must be numbers, got {data.dtype}")
    return np.ascontiguousarray(data, dtype=np.float64)


def _read_pt(path: Path, labels: str | None) -> Content:
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whose text is about the inside of the format
        raise UserError(
            f"data file {path} cannot be read: no tensors or arrays, or damaged"
        ) from error
    if isinstance(content, Mapping):
        return _from_keys(path.name, content, labels)
    if isinstance(content, (tuple, list)) and len(content) == 2:
        data, other = map(_array, content)
        if data.ndim == 2 and other.shape in (data.shape[:1], (len(data), 1)):
            if labels == NO_LABELS:
                return Content(data, None, (), "points from the first part")
            return Content(data, other, (), "points from the first part; labels from the second")
    return _from_array(path.name, _array(content), labels)


def _numpy_globals() -> list[Any]:
    """Returns what numpy arrays in a file are made of; nothing of it runs code of the file."""
    dtypes = [type(np.dtype(kind)) for kind in (*"?bBhHiIlLqQefdg", "U1", "S1", "V1")]
    makers = {np.empty(0).__reduce__()[0]: "_reconstruct", np.float64(0).__reduce__()[0]: "scalar"}
    named = [
        (maker, f"numpy.{core}.multiarray.{name}")
        for maker, name in makers.items()
        for core in ("core", "_core")  # of numpy 1 and 2
    ]
    return [*named, np.ndarray, np.dtype, *dict.fromkeys(dtypes)]


def _read_npy(path: Path, labels: str | None) -> Content:
    return _from_array(path.name, _unpickled(path.name, lambda: np.load(path)), labels)


def _read_npz(path: Path, labels: str | None) -> Content:
    with np.load(path, allow_pickle=False) as arrays:
        keys = arrays.files
        return _from_keys(path.name, _Arrays(path.name, arrays, keys), labels)


class _Arrays(Mapping):
    """The arrays of an ``.npz``, each read when it is asked for."""

    def __init__(self, file: str, arrays: Any, keys: list[str]):
        self._file, self._arrays, self._keys = file, arrays, keys

    def __getitem__(self, key: str) -> np.ndarray:
        return _unpickled(self._file, lambda: self._arrays[key])

    def __iter__(self):
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _unpickled(file: str, read: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return read()
    except ValueError as error:
        if "Object arrays" in str(error):
            raise UserError(
                f"{file} holds Python objects, which are not read: save numbers, of dtype float64"
            ) from error
        if "pickled data" in str(error):
            raise UserError(f"data file {file} cannot be read: no array, or damaged") from error
        raise


def _from_array(file: str, data: np.ndarray, labels: str | None) -> Content:
    if data.dtype.names:
        return Columns(file, _fields(file, data)).content(labels)
    if labels not in (None, NO_LABELS):
        raise UserError(f"labels must be none: {file} holds an array without names, got {labels!r}")
    if data.ndim == 1 and len(data):
        return Content(data[:, None], None, (), f"{len(data)} points of one dimension")
    return Content(data, None, (), "")


def _fields(file: str, data: np.ndarray) -> list[Column]:
    """Returns the fields of a structured array [N] as columns; one of shape [N, k] gives k."""
    columns = []
    for name in data.dtype.names or ():
        cells = np.asarray(data[name])
        if data.ndim != 1 or cells.ndim > 2:
            raise UserError(
                f"{file}: field {name!r} must be [N] or [N, k], got {list(cells.shape)}"
            )
        if cells.ndim == 2:
            columns += [Column(f"{name}_{k}", _cells(part), part) for k, part in enumerate(cells.T)]
        else:
            columns.append(Column(name, _cells(cells), cells))
    return columns


def _cells(column: np.ndarray) -> np.ndarray | list[str]:
    if column.dtype.kind in "fiub":
        return column.astype(np.float64)
    if column.dtype.kind == "S":
        return [cell.decode(errors="replace") for cell in column.tolist()]
    return [str(cell) for cell in column.tolist()]


def _from_keys(file: str, content: Mapping[str, Any], labels: str | None) -> Content:
    """Takes points and labels from what a file holds by name."""
    keys = [str(key) for key in content]
    points = _the_points(file, keys, content)
    if points in "xX" and _array(content[points]).ndim == 1:  # a coordinate alone
        return _from_coordinates(file, content, labels)
    chosen = _the_labels(file, keys, points, labels)
    data = _array(content[points])
    if data.dtype.names:
        return Columns(file, _fields(file, data)).content(labels)
    if data.ndim == 1:
        data = data[:, None]
    given = None if chosen is None else _array(content[chosen])
    unused = [key for key in keys if key not in (points, chosen, _CLASS_NAMES)]
    words = [f"points from {points!r}"]
    if chosen is not None:
        words.append(f"labels from {chosen!r}")
    if unused:
        words.append(f"not used: {listed(unused)}")
    usual = points == "data" and chosen in (None, "labels") and not unused
    names = _names(file, content[_CLASS_NAMES]) if _CLASS_NAMES in keys else ()
    return Content(data, given, (), "" if usual else "; ".join(words), names)


def _names(file: str, given: Any) -> tuple[str, ...]:
    """Returns the names of the classes that a file holds beside its labels."""
    names = given.tolist() if isinstance(given, np.ndarray) and given.ndim == 1 else given
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: class_names must be a list of words, got {shown(given)}")
    return tuple(map(cleaned, names))


def _from_coordinates(file: str, content: Mapping[str, Any], labels: str | None) -> Content:
    """Takes the arrays [N] of a file for columns."""
    arrays = {str(key): _array(part) for key, part in content.items()}
    count = next(len(array) for key, array in arrays.items() if key in "xX")
    fits = {key: array for key, array in arrays.items() if array.shape == (count,)}
    left_out = [key for key in arrays if key not in fits]
    notes = [f"not used: {listed(left_out)}"] if left_out else []
    columns = [Column(key, _cells(array), array) for key, array in fits.items()]
    return Columns(file, columns, notes=notes).content(labels)


def _the_points(file: str, keys: list[str], content: Mapping[str, Any]) -> str:
    found = [key for key in _POINT_KEYS if key in keys]
    if len(found) > 1:
        raise UserError(f"{file}: {' and '.join(map(repr, found))} may both hold the points")
    if found:
        return found[0]
    if (
        len(keys) == 1
        and keys[0] not in _LABEL_KEYS
        and isinstance(content[keys[0]], (np.ndarray, Tensor))
    ):
        return keys[0]
    known = f"it holds {listed(keys)}" if keys else "it is empty"
    raise UserError(
        f"{file} must hold 'data' (or {', '.join(_POINT_KEYS[1:])}) and may hold 'labels': {known}"
    )


def _the_labels(file: str, keys: list[str], points: str, labels: str | None) -> str | None:
    rest = [key for key in keys if key != points]
    if labels in rest:
        return labels
    if labels == NO_LABELS:
        return None
    if labels is not None:
        raise UserError(
            f"labels must be a key of {file}: {listed(rest) or 'it has no other'}, got {labels!r}"
        )
    found = [key for key in _LABEL_KEYS if key in rest]
    if len(found) > 1:
        raise UserError(
            f"{file}: {' and '.join(map(repr, found))} may both hold the labels: choose one with "
            "labels (--labels)"
        )
    return found[0] if found else None


def _array(content: Any) -> np.ndarray:
    """Returns a tensor of any layout and precision, an array or a list as an array."""
    if isinstance(content, Tensor):
        content = content.detach()
        content = content.dequantize() if content.is_quantized else content.to_dense()
        content = content.resolve_conj().resolve_neg()
        return (content.double() if content.is_floating_point() else content).numpy()
    try:
        return np.asarray(content)
    except ValueError as error:
        raise ValueError("a list must hold rows of equally many numbers") from error


_READERS: dict[str, Callable[[Path, str | None], Content]] = {
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".npy": _read_npy,
    ".npz": _read_npz,
    **dict.fromkeys(
        (".csv", ".tsv", ".txt"), lambda path, labels: read_table(path).content(labels)
    ),
}
