"""``flashpoint info``: versions, devices, and the form of each operation."""

import platform

import click
import torch

from ...kernels.forms import forms_on
from ..device import choose_device
from ..versions import version_of


def print_info() -> None:
    """Prints versions, devices and the form in which each operation runs."""
    click.echo(f"python       {platform.python_version()} on {platform.platform()}")
    for package in ("flashpoint", "torch", "triton", "numpy", "scipy", "matplotlib"):
        click.echo(f"{package:<12} {version_of(package)}")
    click.echo(
        f"cpu          {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    click.echo(f"cuda         {torch.version.cuda or 'not in this build of torch'}")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = gpu.total_memory / 2**30
        click.echo(
            f"cuda:{index}       {gpu.name}, compute capability {gpu.major}.{gpu.minor}, "
            f"{memory:.0f} GiB, {gpu.multi_processor_count} multiprocessors"
        )
    device = choose_device()
    try:
        forms = forms_on(device)
    except ValueError as error:  # a wrong file of tile sizes
        click.echo(f"\nforms of kernels: {error}")
        return
    click.echo(f"\n{'operation':<21}  {'form':<8} why, on {device} in half precision")
    for operation, (name, why) in forms:
        click.echo(f"{operation:<21}  {name.replace('hopper', 'Hopper'):<8} {why}")
