"""The device that the work runs on."""

import os

import torch

from .errors import UserError


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """Returns the device of that name, or the best there is.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; None takes CUDA where there is one.

    Raises:
        ValueError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device must be cpu, cuda or cuda:N, got {name!r}") from error
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"device {name} does not exist, this machine has {count} CUDA devices")
    if device.type == "cpu":
        _keep_freed_memory()
    return device


def own_device(device: str | torch.device | None) -> str | torch.device | None:
    """Returns the device of this process: under ``torchrun`` on CUDA, that of its local number.

    Args:
        device: the device asked for.

    Raises:
        ValueError: there is no such device, or there are more ranks on this machine than devices.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or choose_device(device).type != "cuda":
        return device
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise UserError(f"--nproc-per-node must be at most {count}, the number of CUDA devices")
    return torch.device("cuda", local)


def _keep_freed_memory() -> None:
    """Makes the C library keep freed memory instead of giving it back to the system.

    Otherwise a training step of 2,048 rows takes 4,000 page faults, a fifth of its time. Freeing a
    large block once raises the limit above which glibc returns memory (mallopt(3),
    M_MMAP_THRESHOLD: the threshold is dynamic); elsewhere this does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
