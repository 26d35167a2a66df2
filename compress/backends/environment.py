"""Where the environments of backends lie: one folder per lock, Python version and platform, below a cache folder.

A folder gets its name only when its packages can be imported, so an environment is complete or absent.
"""

import hashlib
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from compress.backends.table import BACKENDS, Backend
from compress.core.errors import QCompressError
from compress.core.file_kind import json_kind
from compress.core.lock import output_lock

VARIABLE = "QCOMPRESS_BACKENDS"
MARKER = "qcompress-backend.json"
MARKERS = json_kind("backend", "lock")
Row = dict[str, Any]


def backends_folder() -> Path:
    """The folder of all environments: $QCOMPRESS_BACKENDS, or ~/.cache/qcompress/backends."""
    folder = os.environ.get(VARIABLE)
    return Path(folder).absolute() if folder else Path.home() / ".cache" / "qcompress" / "backends"


def lock_digest(backend: Backend) -> str:
    """sha256 of a backend's lock, as "sha256:HEX"."""
    return f"sha256:{hashlib.sha256(backend.lock.read_bytes()).hexdigest()}"


def environment_path(backend: Backend, python: str | None = None) -> Path:
    """The folder of a backend's environment for a version of Python (default: this one) on this platform."""
    version = python or f"{sys.version_info.major}.{sys.version_info.minor}"
    pins = f"{backend.pins} {version} {sysconfig.get_platform()} {' '.join(platform.libc_ver())}"
    key = hashlib.sha256(backend.lock.read_bytes() + pins.encode()).hexdigest()[:12]
    return backends_folder() / f"{backend.environment or backend.name}-{key}"


def interpreter_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def installed(backend: Backend) -> list[Path]:
    """The environments of a backend that fit its lock, for any version of Python."""
    versions = [f"3.{minor}" for minor in range(8, 30)]
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    paths = [environment_path(backend, version) for version in dict.fromkeys([own, *versions])]
    return [path for path in paths if (path / MARKER).is_file()]


def find_interpreter(backend: Backend, python: Path | None = None) -> Path:
    """The interpreter to run a backend with: `python`, or that of its environment.

    Raises QCompressError, with the command that installs the backend, if there is none.
    """
    if python is not None:
        if not os.access(python, os.X_OK) or python.is_dir():
            raise QCompressError(f"--backend-python {python}: is not a program; give the path of a Python")
        return python.absolute()  # not resolved: the link is what makes it the Python of its environment
    for folder in installed(backend):
        return interpreter_of(folder)
    raise QCompressError(
        f"--backend {backend.name}: is not installed; run `qcompress backends install {backend.name}` "
        f"(about {backend.gigabytes:g} GB), or add --install"
    )


def list_backends() -> list[Row]:
    """One row per backend: name, methods, state, disk space, versions of Python, and a few words about it."""
    rows = []
    for backend in BACKENDS.values():
        folders = installed(backend)
        rows.append(
            {
                "backend": backend.name,
                "methods": ", ".join(backend.methods),
                "installed": bool(folders),
                "size": folder_bytes(folders[0]) if folders else int(backend.gigabytes * 1e9),
                "python": backend.python,
                "about": backend.about,
            }
        )
    return rows


def folder_bytes(folder: Path) -> int:
    """The bytes on disk of all files below a folder."""
    files = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return sum(512 * file.lstat().st_blocks for file in files)


def remove(backend: Backend) -> list[Path]:
    """Remove all environments of a backend, and those of its older locks. Returns their paths.

    Raises QCompressError if there are none. Folders that another program made stay.
    """
    name = backend.environment or backend.name
    folders = sorted(path for path in backends_folder().glob(f"{name}-*") if (path / MARKER).is_file())
    folders = [path for path in folders if path.name.removeprefix(f"{name}-").isalnum()]
    if not folders:
        raise QCompressError(f"{backends_folder()}: has no environment of {backend.name}; nothing was removed")
    for folder in folders:
        with output_lock(folder):
            remove_environment(folder)
    return folders


def remove_environment(folder: Path) -> None:
    """Remove an environment, finished or not. Raises QCompressError if its marker is missing or foreign."""
    if folder.is_symlink() or not (folder / MARKER).is_file():
        raise QCompressError(f"{folder}: has no {MARKER}, so another program made it; remove it yourself")
    MARKERS.check(folder / MARKER)
    doomed = folder.with_name(f".{folder.name}.removed")  # a half removed environment must not look complete
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)
