"""Files of samples: ``.pt``, ``.npy`` or ``.csv`` by their name."""

import csv
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import files
from ..choices import SAMPLE_FILES
from ..errors import UserError


def sample_target(path: Path) -> Path:
    """Returns the path of a file of samples to be written later, its folder made and writable.

    Raises:
        ValueError: the name ends in none of :data:`SAMPLE_FILES`, or the file cannot be written.
    """
    if path.suffix.lower() not in SAMPLE_FILES and not path.is_dir():
        raise UserError(f"file {path} must end in {', '.join(SAMPLE_FILES)}")
    return files.make_target(path, path.suffix.lower())


def write_samples(path: Path, x: Tensor, label: str | int | None = None) -> None:
    """Writes samples in the format that the file's name says, atomically.

    ``.pt`` holds the tensor and ``.npy`` the array. ``.csv`` has a header, x0 to x(d - 1) and
    perhaps label, and enough digits that the same numbers are read back in float64.

    Args:
        path: the file, of one of :data:`SAMPLE_FILES`.
        x: samples [n, d], on the CPU.
        label: name or number of their class, for a ``.csv``; None leaves the column out.

    Raises:
        ValueError: the file cannot be written.
    """
    content = io.BytesIO()
    if path.suffix.lower() == ".pt":
        torch.save(x, content)
    elif path.suffix.lower() == ".npy":
        np.save(content, x.numpy(), allow_pickle=False)
    else:
        content.write(_csv(x, label).encode())
    files.write_atomically(path, content.getvalue())


def _csv(x: Tensor, label: str | int | None) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    labels = [] if label is None else [label]
    table.writerow([*(f"x{axis}" for axis in range(x.shape[1])), *(["label"] if labels else [])])
    table.writerows([*row, *labels] for row in x.tolist())  # as repr, exact in float64
    return text.getvalue()
