"""Versions of installed packages, from their metadata: nothing is imported."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

SOFTWARE = ("qcompress", "torch", "transformers", "vllm")  # what can change a measurement of the same files


def installed_versions(names: Sequence[str] = SOFTWARE) -> dict[str, str]:
    """The version of each package by name. Packages that are not installed are left out."""
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
