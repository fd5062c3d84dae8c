"""The versions of packages."""

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """Returns the version of a package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
