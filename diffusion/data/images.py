"""Small grey images as points: one dimension for each pixel, values from -1 to 1."""

import gzip
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError, check_choice
from .clouds import sklearn_datasets
from .points import Points

FASHION_CLASSES = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "trainer", "bag", "boot",
)  # fmt: skip
_IDX_NAMES = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 8  # the IDX code of the type


def digits() -> Points:
    """Returns scikit-learn's 1,797 hand-written digits of 8 x 8 pixels, ten classes."""
    raw, labels = sklearn_datasets("digits").load_digits(return_X_y=True)
    return Points(
        torch.from_numpy(raw / 8 - 1).float(),
        torch.from_numpy(labels).long(),
        tuple("0123456789"),
        "digits",
        image_shape=(8, 8),
    )


def fashion_mnist(path: str | Path, part: str = "train") -> Points:
    """Returns FashionMNIST (Xiao et al. 2017): clothes of 28 x 28 pixels, ten classes.

    Args:
        path: the folder with the four IDX files as they are published
            (``train-images-idx3-ubyte.gz`` and so on, unpacked or not), or an ``.npz`` with
            ``x_train``, ``y_train``, ``x_test`` and ``y_test``.
        part: ``train``, 60,000 images, or ``test``, 10,000.

    Raises:
        ValueError: a file is missing or holds something else.
    """
    check_choice("part", part, _IDX_NAMES)
    path = Path(path)
    if path.is_dir():
        images = _read_idx(path, f"{_IDX_NAMES[part]}-images-idx3-ubyte")
        labels = _read_idx(path, f"{_IDX_NAMES[part]}-labels-idx1-ubyte")
    else:
        images, labels = _read_npz(path, part)
    if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{path} must hold images [N, height, width] of bytes and as many labels, got "
            f"{list(images.shape)} of {images.dtype} and {list(labels.shape)}"
        )
    return Points(
        torch.from_numpy(images.reshape(len(images), -1) / np.float32(127.5) - 1),
        torch.from_numpy(labels.astype(np.int64)),
        FASHION_CLASSES if labels.max(initial=0) < len(FASHION_CLASSES) else (),
        path.stem,
        image_shape=images.shape[1:],
    )


def is_fashion_mnist(path: Path) -> bool:
    """Returns True for such a folder or ``.npz``, without a look at its content."""
    if path.is_dir():
        return any(path.glob("*-images-idx3-ubyte*"))
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return "x_train" in arrays.files
    except (OSError, ValueError):
        return False


def _read_npz(path: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[f"x_{part}"], arrays[f"y_{part}"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"file {path} must hold x_{part} and y_{part}, and cannot be read") from (
            error
        )


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """Reads an array of bytes in IDX format: two zeros, type, rank, sizes, bytes."""
    packed, plain = folder / f"{name}.gz", folder / name
    if not packed.is_file() and not plain.is_file():
        raise UserError(f"folder {folder} must hold {name} or {name}.gz")
    try:
        content = plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError) as error:
        raise UserError(f"file {packed} cannot be read: {error}") from error
    start = 4 + 4 * content[3] if len(content) > 3 else len(content) + 1
    sizes = np.frombuffer(content[4:start], ">u4").astype(int) if len(content) >= start else (-1,)
    if content[:3] != bytes((0, 0, _UNSIGNED_BYTE)) or len(content) != start + np.prod(sizes):
        raise UserError(f"file {folder / name} is no IDX file of bytes, or damaged")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes).copy()
