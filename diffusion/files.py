"""Reading and writing of files that are either whole or absent."""

import errno
import io
import json
import os
import stat
import tempfile
import tomllib
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces the file in one step: a reader sees the old content or the new, never a part.

    A link stays one, and the file that it points to is replaced. The new file has the permissions
    of the old one.

    Raises:
        ValueError: the file cannot be written; what was there before is untouched.
    """
    target = Path(os.path.realpath(path))
    # Its own for each writer: processes of two machines may have one number and share a folder.
    temporary = target.with_name(f".{uuid.uuid4().hex}.{target.name[:100]}.part")
    try:
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.exists() and not os.access(target, os.W_OK):  # to replace it asks the folder only
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except OSError as error:
        raise UserError(
            f"file {path} cannot be written: {reason(error)}; what was there before is untouched"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def reason(error: OSError) -> str:
    """Returns what the system says of an error, without the name of a file."""
    return error.strerror or str(error) or type(error).__name__


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
    check_is_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"file {path} cannot be read: {reason(error)}") from error
    except Exception as error:
        raise UserError(f"file {path} is no checkpoint, or damaged") from error


def load_json(path: Path, what: str = "file") -> dict[str, Any]:
    """Loads a file of JSON that holds an object.

    Args:
        path: the file.
        what: what the file is, for messages.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    check_is_file(path, what)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {path} cannot be read: empty, cut short or no JSON") from error
    if not isinstance(content, dict):
        raise UserError(f"{what} {path} must hold a JSON object, got {type(content).__name__}")
    return content


def load_toml(path: Path, what: str = "file") -> dict[str, Any]:
    """Loads a file of TOML.

    Args:
        path: the file.
        what: what the file is, for messages.

    Raises:
        ValueError: the file is missing, or no TOML.
    """
    check_is_file(path, what)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise UserError(f"{what} {path} is no TOML: {error}") from error


def check_is_file(path: Path, what: str = "file") -> None:
    """Raises :class:`UserError` unless the path is that of a file."""
    if path.is_dir():
        raise UserError(f"{what} {path} cannot be read: it is a folder")
    if not path.is_file():
        raise UserError(f"{what} {path} cannot be read: it does not exist")


def check_apart(target: Path, *inputs: Path | None) -> None:
    """Raises :class:`UserError` if a file to be written is one of the inputs, by whatever name.

    Args:
        target: the file to be written.
        *inputs: files that are read; None where there is none.
    """
    for path in inputs:
        if path is not None and same_file(target, path):
            raise UserError(f"file {target} would be written over, but it is read as {path}")


def same_file(one: Path, other: Path) -> bool:
    """Returns True if both paths lead to one file, through links too."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    return one.exists() and other.exists() and one.samefile(other)


def make_target(path: Path, *suffixes: str) -> Path:
    """Returns the path of a file to be written later, its folder made and proved to be writable.

    Args:
        path: the path.
        *suffixes: those that it may have.

    Raises:
        ValueError: the folder cannot be made or written to, the path is a folder itself or has
            another suffix.
    """
    if path.is_dir():
        raise UserError(f"file {path} cannot be written: it is a folder")
    if path.suffix.lower() not in suffixes:
        raise UserError(f"file {path} must end in {', '.join(suffixes)}")
    make_folder(Path(os.path.realpath(path)).parent)
    return path


def delete(paths: Iterable[Path]) -> None:
    """Deletes files, of which some may be gone.

    Raises:
        ValueError: a file cannot be deleted.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be deleted: {reason(error)}") from error


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
        raise UserError(f"folder {path} cannot be written to: {reason(error)}") from error
    return path
