"""Measures the rates of the device: matrix products, memory, last-level cache."""

import torch

from .costs import Rates
from .timing import Runner, seconds

_MATRIX = {"cuda": 8192, "cpu": 1024}
_MEMORY_BYTES = {"cuda": 2**31, "cpu": 2**28}
_CACHE_BYTES = {"cuda": 2**24, "cpu": 2**20}  # both buffers together; fits into an L2
_ROUNDS = 7
_PRECISIONS = {
    "cuda": {"half": torch.float16, "tf32": torch.float32, "fp32": torch.float32},
    "cpu": {"fp32": torch.float32},
}


def measure_rates(device: torch.device, small: bool = False) -> Rates:
    """Measures each rate in a few rounds and returns the best.

    Args:
        device: device to measure.
        small: toy sizes, to test the command.
    """
    kind = device.type
    shrink = 16 if small else 1
    return Rates(
        {
            precision: _matmul(
                device, max(256, _MATRIX[kind] // shrink), dtype, precision == "tf32"
            )
            for precision, dtype in _PRECISIONS[kind].items()
        },
        memory=_copy(device, _MEMORY_BYTES[kind] // shrink**2),
        cache=_copy(device, _CACHE_BYTES[kind] // shrink),
    )


def _best(work, repeats: int, device: torch.device) -> float:
    """Returns the seconds of one work in the fastest round, the limit of the device."""
    runner = Runner(work)
    seconds(runner, 3, device)
    return min(seconds(runner, repeats, device) for _ in range(_ROUNDS))


def _matmul(device: torch.device, n: int, dtype: torch.dtype, tf32: bool) -> float:
    """Measures the operations per second of a product of two n x n matrices."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    a, b = torch.randn(2, n, n, device=device).to(dtype).unbind()
    out = torch.empty_like(a)
    return 2 * n**3 / _best(lambda: torch.mm(a, b, out=out), 5, device)


def _copy(device: torch.device, size: int) -> float:
    """Measures bytes per second, read and written, by copying one half of a buffer to the other."""
    source, target = torch.randn(2, size // 8, device=device).unbind()
    repeats = max(1, min(200, 2**27 // size))
    return size / _best(lambda: target.copy_(source), repeats, device)
