"""Packs the kernels that Triton compiled, for a machine that keeps no files between visits.

Triton stores each kernel in a folder named by a hash of its source, its specialisation, the
compiler and the chip. A list there names the kernel's files by their absolute paths. Unpacking
rewrites the lists, so that an archive can be unpacked anywhere.
"""

import importlib
import json
import tarfile
import tempfile
import zlib
from importlib.util import find_spec
from pathlib import Path

import click

from ..diffusion.errors import UserError
from ..diffusion.files import make_folder

FILE = "compiled.tar.gz"
LIMIT = 15 * 2**20  # bytes; a little less than the 16 MiB that can be transferred
_LIST = "__grp__*.json"


def unpack(archive: Path, cache: Path) -> str | None:
    """Adds the kernels of an archive to Triton's cache; returns None, or why that is impossible."""
    make_folder(cache)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            for folder in Path(scratch).iterdir():
                if not (cache / folder.name).exists():
                    _rewrite_lists(folder, cache / folder.name)
                    folder.rename(cache / folder.name)
        except (OSError, EOFError, ValueError, KeyError, tarfile.TarError, zlib.error) as error:
            return f"{archive} cannot be read ({error!r}), so everything is compiled again"
    return None


def _rewrite_lists(folder: Path, place: Path) -> None:
    """Rewrites the lists of a folder with the paths that its files are going to have."""
    for listing in folder.glob(_LIST):
        content = json.loads(listing.read_text(encoding="utf-8"))
        content["child_paths"] = {name: str(place / name) for name in content["child_paths"]}
        listing.write_text(json.dumps(content), encoding="utf-8")


def kernels_in(cache: Path) -> set[str]:
    """Returns the complete folders of Triton's cache, of kernels and their launchers."""
    return {path.parent.name for pattern in (_LIST, "*.so") for path in cache.glob(f"*/{pattern}")}


def pack(cache: Path, archive: Path, limit: int = LIMIT) -> int:
    """Packs Triton's cache, newest folders first, into a file of at most ``limit`` bytes.

    Returns:
        the number of folders for which there was no room.
    """
    folders = [cache / name for name in kernels_in(cache)]
    left_out, temporary = 0, archive.with_name(f".{archive.name}")
    # The highest level of gzip would save one percent and take three times as long.
    with (
        temporary.open("wb") as file,
        tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar,
    ):
        for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True):
            # Compression is not counted, because the compressor has not written everything yet.
            if file.tell() + sum(path.stat().st_size for path in folder.iterdir()) > limit:
                left_out += 1
            else:
                tar.add(folder, folder.name, filter=_whole)
    temporary.replace(archive)
    return left_out


def _whole(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leaves out the incomplete files of a process that was killed."""
    return None if "/tmp.pid_" in member.name else member


@click.command()
def main() -> None:
    """Compile the optimiser's kernels for sm_90 into Triton's cache; no GPU is needed."""
    if find_spec("triton") is None:
        raise UserError("triton must be installed to compile its kernels")
    # Only this command needs triton.
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ..kernels.resources import MAIN, launches

    found = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: found.append(cache_hit)
    for launch in launches(90, {"adamw": MAIN["adamw"]}).values():
        kernel = getattr(importlib.import_module(launch.module), launch.kernel)
        source = ASTSource(kernel, launch.signature, launch.constants, launch.attributes)
        triton.compile(source, target=GPUTarget("cuda", launch.arch, 32), options=launch.options)
    click.echo(f"{len(found)} kernels, {found.count(False)} compiled now")
