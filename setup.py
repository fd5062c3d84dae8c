"""Maps the top-level folders into the `flashpoint` namespace; the rest is in pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = ("kernels", "diffusion", "bench")
NAMESPACE = Path("build", "namespace")  # docs/hooks.py makes the same links


def links(root: Path) -> bool:
    """Links the folders under the names that they are installed as; False where links are refused.

    setuptools makes an editable install of mapped folders by a hook of Python's import, which mypy,
    pyright and editors do not run. Folders that stand under their names need only a path, which
    they read.
    """
    folder = root / NAMESPACE / "flashpoint"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FOLDERS:
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(os.path.relpath(root / name, folder), True)
    except OSError:  # Windows without its developer mode
        return False
    return True


package_dir = {f"flashpoint.{folder}": folder for folder in FOLDERS}
packages = [
    name
    for folder in FOLDERS
    for name in (
        f"flashpoint.{folder}",
        *(f"flashpoint.{folder}.{sub}" for sub in find_packages(folder)),
    )
]
if "editable_wheel" in sys.argv and links(Path(__file__).resolve().parent):
    package_dir = {"": NAMESPACE.as_posix()}
    packages.insert(0, "flashpoint")

setup(package_dir=package_dir, packages=packages)
