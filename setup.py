"""Maps the top-level folders into the `flashpoint` namespace; the rest is in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = ("kernels", "diffusion", "bench")

package_dir = {f"flashpoint.{folder}": folder for folder in FOLDERS}
packages = [
    name
    for folder in FOLDERS
    for name in (
        f"flashpoint.{folder}",
        *(f"flashpoint.{folder}.{sub}" for sub in find_packages(folder)),
    )
]

setup(package_dir=package_dir, packages=packages)
