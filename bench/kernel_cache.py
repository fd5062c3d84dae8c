"""What Triton compiled, packed into one file, for a machine that keeps nothing between visits.

Triton keeps each kernel in a folder that is named by a hash of its source, its specialisation, the
compiler and the chip, with a list of the kernel's files by their absolute paths. The lists are
written anew when an archive is unpacked, so it does not matter where that is.
"""

import importlib
import json
import tarfile
import tempfile
import zlib
from pathlib import Path

import click

from ..diffusion.files import make_folder

FILE = "compiled.tar.gz"
LIMIT = 15 * 2**20  # bytes: a little less than the 16 MiB that can be carried
_LIST = "__grp__*.json"


def unpack(archive: Path, cache: Path) -> str | None:
    """Adds what an archive holds to Triton's cache; why that cannot be done, or None."""
    make_folder(cache)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            for folder in Path(scratch).iterdir():
                if not (cache / folder.name).exists():
                    _list_anew(folder, cache / folder.name)
                    folder.rename(cache / folder.name)
        except (OSError, EOFError, ValueError, KeyError, tarfile.TarError, zlib.error) as error:
            return f"{archive} cannot be read ({error!r}), so everything is compiled anew"
    return None


def _list_anew(folder: Path, place: Path) -> None:
    """Makes a folder's lists name its files by the paths that they are going to have."""
    for listing in folder.glob(_LIST):
        content = json.loads(listing.read_text())
        content["child_paths"] = {name: str(place / name) for name in content["child_paths"]}
        listing.write_text(json.dumps(content))


def kernels_in(cache: Path) -> set[str]:
    """Folders of Triton's cache that are whole: of kernels, and of modules that launch them."""
    return {path.parent.name for pattern in (_LIST, "*.so") for path in cache.glob(f"*/{pattern}")}


def pack(cache: Path, archive: Path, limit: int = LIMIT) -> int:
    """Packs Triton's cache, the newest first, into a file of at most ``limit`` bytes.

    Returns:
        how many folders had no room in it.
    """
    folders = [cache / name for name in kernels_in(cache)]
    left_out, temporary = 0, archive.with_name(f".{archive.name}")
    # Half the effort of the most that gzip can do: as small to a percent, in a third of the time.
    with (
        temporary.open("wb") as file,
        tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar,
    ):
        for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True):
            # As if nothing could be compressed, because the compressor holds some of it back.
            if file.tell() + sum(path.stat().st_size for path in folder.iterdir()) > limit:
                left_out += 1
            else:
                tar.add(folder, folder.name, filter=_whole)
    temporary.replace(archive)
    return left_out


def _whole(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leaves out what a process that was killed had begun to write."""
    return None if "/tmp.pid_" in member.name else member


@click.command()
def main() -> None:
    """Compile the optimiser's kernels for sm_90 into Triton's cache; no GPU is needed."""
    # Only who compiles needs triton.
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
