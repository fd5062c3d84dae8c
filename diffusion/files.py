"""Reading and writing of files that are either whole or absent."""

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from .errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces the file in one step: a reader sees the old content or the new, never a part.

    Raises:
        ValueError: the file cannot be written; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"file {path} cannot be written: {error.strerror}; what was there before is untouched"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, content: object) -> None:
    """Writes with ``torch.save``, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def save_json(path: Path, content: dict) -> None:
    """Writes indented JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def load(path: Path) -> Any:
    """Loads tensors and plain containers, and nothing else, onto the CPU.

    Raises:
        ValueError: the file is missing, truncated or foreign.
    """
    if not path.is_file():
        raise UserError(f"file {path} does not exist")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"file {path} is no checkpoint, or damaged") from error


def make_target(path: Path, suffix: str) -> Path:
    """Returns the path of a file to be written later, its folder made and proved to be writable.

    Raises:
        ValueError: the folder cannot be made or written to, the path is a folder itself or has
            another suffix.
    """
    if path.is_dir():
        raise UserError(f"file {path} cannot be written: it is a folder")
    if path.suffix.lower() != suffix:
        raise UserError(f"file {path} must end in {suffix}")
    make_folder(path.parent)
    return path


def make_folder(path: Path) -> Path:
    """Returns the folder, made if need be and proved to be writable.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"folder {path} cannot be written to: {error.strerror}") from error
    return path
