"""A lock on a folder, so that no two programs write into it at once."""

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from . import files
from .errors import UserError

HOLDER = ".lock.json"  # file that names the process that has the lock, or had it last
_PATIENCE = 2.0  # seconds; whoever asks for a lock has it for a few milliseconds, too


def lock_folder(folder: Path) -> FileLock:
    """Locks a folder for this process, until the lock is released or the process ends.

    The lock is the system's own (``flock``), which a process that is killed loses, on another
    machine of a network file system too. A process may lock a folder several times.

    Args:
        folder: the folder, which exists.

    Raises:
        ValueError: another process has locked it, or it cannot be written to.
    """
    lock, holder = FileLock(folder / ".lock", timeout=0, is_singleton=True), folder / HOLDER
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"folder {folder} is in use by another run{_named(holder)}; wait for its end or give "
            "another --out"
        ) from None
    except OSError as error:
        raise UserError(f"folder {folder} cannot be locked: {files.reason(error)}") from error
    files.save_json(holder, {"pid": os.getpid(), "host": socket.gethostname()})
    return lock


def is_locked(folder: Path) -> bool:
    """Returns True if another process works in a folder; False where nothing can be locked.

    Several processes may ask at once. None takes the others, who are gone at once, for one that
    works there.
    """
    lock = FileLock(folder / ".lock", timeout=_PATIENCE, poll_interval=0.01)
    if not folder.is_dir():
        return False
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def _named(holder: Path) -> str:
    """Returns the process that has the lock, where it has written down who it is."""
    try:
        content = files.load_json(holder)
    except UserError:
        return ""
    return f" (process {content.get('pid')} on {content.get('host')})"
