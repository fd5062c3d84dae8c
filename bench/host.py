"""Times what an eager call of the drop-in costs on the host, beside nn.Sequential.

    python -m flashpoint.bench host [--device cpu] [--rounds 30] [--record FOLDER]

Small networks in eager PyTorch wait for Python, on a GPU too. So on a CPU this measures Python and
dispatch alone: launches of kernels are left out of ours. PyTorch's operations do run, on one row
and in layers 16 wide, because the time of a call does not depend on widths. Their 848
multiplications take up to three microseconds of a forward pass. There is one thread, and the clock
counts its time alone, not that of other processes, with which it does share caches.

On a GPU nothing is replaced: both run eagerly on 2,048 rows of the denoiser.

Each work is done a hundred times in turn, A B B A. The result is the median of the paired ratios
with its bootstrap 95% interval.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor, nn

from ..diffusion.errors import UserError
from ..kernels import FusedMLP, accelerate
from ..kernels.modules import perceptron_layers
from .machine import free_device
from .operations import TOLERANCE, relative_error
from .options import rounds_option
from .record import Record, record_option
from .timing import Runner, Timing, Work, paired

_WIDTH, _ROWS = {"cpu": 16, "cuda": 256}, {"cpu": 1, "cuda": 2048}


def accelerated(plain: nn.Sequential) -> nn.Module:
    """Returns a copy that :func:`flashpoint.kernels.accelerate` has changed."""
    model = deepcopy(plain)
    accelerate(model, strict=True)
    return model


def fused(plain: nn.Sequential) -> nn.Module:
    """Returns a :class:`flashpoint.kernels.FusedMLP` with a copy of the layers."""
    return FusedMLP.from_module(deepcopy(plain))


DROP_INS = {"accelerate": accelerated, "FusedMLP": fused}


@dataclass(frozen=True)
class Setting:
    """What the products are computed in: under autocast, or with parameters of that dtype."""

    name: str
    dtype: torch.dtype
    autocast: bool

    @property
    def precision(self) -> str:
        """Its name in ``TOLERANCE``."""
        return {torch.float16: "fp16", torch.bfloat16: "bf16"}[self.dtype]

    def context(self, device: torch.device):
        """Returns the context of a forward pass."""
        return torch.autocast(device.type, self.dtype) if self.autocast else nullcontext()


SETTINGS = (
    Setting("autocast fp16", torch.float16, autocast=True),
    Setting("fp16 parameters", torch.float16, autocast=False),
    Setting("bf16 parameters", torch.bfloat16, autocast=False),
)


class Job(NamedTuple):
    """A module, what it is called with, and its parameters."""

    module: nn.Module
    x: Tensor
    setting: Setting
    parameters: list[nn.Parameter]


def inference(job: Job) -> Tensor:
    """Returns y, with no gradient to follow."""
    with torch.no_grad(), job.setting.context(job.x.device):
        return job.module(job.x)


def forward(job: Job) -> Tensor:
    """Returns y, ready for a backward pass."""
    with job.setting.context(job.x.device):
        return job.module(job.x)


def forward_and_backward(job: Job) -> None:
    """Leaves the gradients of all parameters where training expects them."""
    for parameter in job.parameters:
        parameter.grad = None
    y = forward(job)
    y.backward(torch.ones_like(y))


WORKS: dict[str, Callable] = {
    "inference": inference,
    "forward": forward,
    "forward and backward": forward_and_backward,
}


@dataclass
class Result:
    """Times of a work; ``peer`` is nn.Sequential."""

    work: str
    setting: str
    drop_in: str
    timing: Timing

    @property
    def line(self) -> str:
        one, name = self.timing, f"{self.work}, {self.setting}, {self.drop_in}"
        return (
            f"{name:52} {one.ours_us:7.1f} us, nn.Sequential {one.peer_us:7.1f} us: "
            f"{one.speedup:.2f} times as fast, 95% {one.low:.2f} to {one.high:.2f}"
        )


@contextmanager
def host_alone() -> Iterator[None]:
    """Makes drop-ins on a CPU take the path to the kernels, but launch nothing, on one thread.

    Waking a second thread would take longer than all else.
    """
    from ..kernels.resources import without_launches

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with without_launches():
            yield
    finally:
        torch.set_num_threads(threads)


def measure(device: torch.device, rounds: int) -> Iterator[Result]:
    """Yields the times of all works in all settings."""
    widths = (3, *[_WIDTH[device.type]] * 4, 2)
    network = perceptron_layers(widths, nn.PReLU()).to(device)
    for setting in SETTINGS:
        plain = deepcopy(network) if setting.autocast else deepcopy(network).to(setting.dtype)
        x = torch.randn(_ROWS[device.type], 3, device=device)
        x = x if setting.autocast else x.to(setting.dtype)
        for name, make in DROP_INS.items():
            model = make(plain)
            if device.type == "cuda":
                check(model, plain, x, setting)
            for work, run in WORKS.items():
                ours = repeated(partial(run, job(model, x, setting)))
                peer = repeated(partial(run, job(plain, x, setting)))
                timing = paired(ours, peer, rounds, device, clock=time.thread_time)
                yield Result(work, setting.name, name, timing)


def job(module: nn.Module, x: Tensor, setting: Setting) -> Job:
    """Returns the job of calling a module."""
    return Job(module, x, setting, list(module.parameters()))


def repeated(work: Work, works: int = 100) -> Runner:
    """Returns a runner of many works one after the other, which find their code in the cache."""

    def run() -> None:
        for _ in range(works):
            work()

    return Runner(run, works)


def check(model: nn.Module, plain: nn.Module, x: Tensor, setting: Setting) -> None:
    """Raises unless a drop-in agrees with the float64 network, before it is timed."""
    expected = deepcopy(plain).double()(x.double())
    error = relative_error(inference(job(model, x, setting)), expected)
    if not error <= TOLERANCE[setting.precision]:
        raise SystemExit(f"wrong in {setting.name}: error {error:.1e}")


@click.command()
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@rounds_option(30)
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@record_option
def main(device: str | None, rounds: int, busy: bool, folder: Path | None) -> None:
    """Time eager calls of the drop-in on the host, beside nn.Sequential."""
    if find_spec("triton") is None:
        raise UserError("triton must be installed: the drop-in is timed up to its launches")
    device, record, results = free_device(device, busy), Record(folder), []
    torch.manual_seed(0)
    if device.type != "cuda":
        click.echo("The launches of our kernels are left out.")
    with nullcontext() if device.type == "cuda" else host_alone():
        for result in measure(device, rounds):
            results.append(result)
            click.echo(result.line)
            record.put("host", results=[asdict(one) for one in results])
