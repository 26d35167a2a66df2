"""Install a backend: a new environment under a temporary name, its packages, an import, and the final name.

Every package comes from the lock and is compared with its hash, except torch. Its build (CPU, CUDA, ROCm) depends on
the machine, so it comes from the index or the folder that pip is configured for, in the version that the driver pins.
uv is used if it is on the PATH, else venv and pip.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet

from compress.backends.environment import (
    MARKER,
    environment_path,
    interpreter_of,
    lock_digest,
    remove_environment,
)
from compress.backends.log import begin_log, last_error
from compress.backends.table import Backend
from compress.core.atomic import file_errors, free_space
from compress.core.errors import QCompressError
from compress.core.guard import guarded
from compress.core.lock import output_lock
from compress.core.report import Report, silent

UV_NAMES = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS"}
SETTING = re.compile(r"^[\w:.]*?\.?(index-url|extra-index-url|find-links)='(.*)'$", re.MULTILINE)
VERSION = "import sys; print('.'.join(map(str, sys.version_info[:3])))"


@dataclass(frozen=True)
class Tool:
    """The program that makes environments: uv, or Python's own venv and pip. `variables` are its settings."""

    uv: str | None
    python: Path
    variables: dict[str, str]

    def create(self, folder: Path) -> list[str]:
        """The command that creates an empty environment."""
        if self.uv:
            return [self.uv, "venv", "--quiet", "--allow-existing", "--python", str(self.python), str(folder)]
        return [str(self.python), "-m", "venv", str(folder)]

    def install(self, folder: Path, *arguments: str) -> list[str]:
        """The command that installs packages."""
        python = str(interpreter_of(folder))
        if self.uv:
            return [self.uv, "pip", "install", "--python", python, *arguments]
        return [python, "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off", *arguments]


def install(backend: Backend, *, python: Path | None = None, report: Report = silent) -> Path:
    """Install a backend, unless it is installed. Returns the folder of its environment.

    `python` is the interpreter to build on, by default this one. Raises QCompressError before any download if its
    version does not fit or the disk lacks room, and later, with the last error line, if a step fails.
    """
    base = python or Path(sys.executable)
    folder = environment_path(backend, check_python(backend, base))
    with output_lock(folder):
        if (folder / MARKER).is_file():
            return folder
        check_disk(backend, folder)
        partial = folder.with_name(f"{folder.name}.tmp")
        if partial.exists():
            remove_environment(partial)
        try:
            build(backend, partial, make_tool(base), report)
            with file_errors(folder):
                partial.rename(folder)
        except BaseException:
            if (partial / MARKER).is_file():
                remove_environment(partial)
            raise
    return folder


def check_python(backend: Backend, python: Path) -> str:
    """The version of an interpreter, such as "3.11". Raises QCompressError if the backend does not run on it."""
    try:
        version = subprocess.run(
            [python, "-I", "-c", VERSION], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise QCompressError(f"--python {python}: is not a Python that runs; give the path of one") from None
    if version not in SpecifierSet(backend.python):
        raise QCompressError(
            f"{backend.name}: needs Python {backend.python}, but {python} is {version}; give another one by --python"
        )
    return ".".join(version.split(".")[:2])


def check_disk(backend: Backend, folder: Path) -> None:
    """Raises QCompressError if the disk has no room for the environment."""
    place, free = free_space(folder)
    if free < backend.gigabytes * 1e9:
        raise QCompressError(
            f"{place}: has {free / 1e9:.1f} GB free, but {backend.name} needs {backend.gigabytes:g} GB; free some "
            "space, or set QCOMPRESS_BACKENDS to a folder on another disk"
        )


def make_tool(python: Path) -> Tool:
    """uv, with pip's indexes where uv has none of its own, or venv and pip."""
    uv = shutil.which("uv")
    return Tool(uv, python, uv_variables(python) if uv else {})


def uv_variables(python: Path) -> dict[str, str]:
    """pip's indexes and folders as variables of uv, without those that are set."""
    listed = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    settings = {UV_NAMES[name]: value for name, value in SETTING.findall(listed)}
    if "UV_INDEX" in settings:
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip chooses; the hashes keep other files out
    return {name: value for name, value in settings.items() if name not in os.environ}


def build(backend: Backend, folder: Path, tool: Tool, report: Report) -> None:
    """Create the environment in `folder`, install all packages, and import the backend's modules."""
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(json.dumps(marker(backend, tool)) + "\n")
    log = folder.parent / f"{folder.name.removesuffix('.tmp')}.log"
    begin_log(log, backend.name)
    lock = ["--no-deps", "--require-hashes", "-r", str(backend.lock)]
    lock += ["--no-build-isolation"] if backend.build_tools else []
    first = [*backend.build_tools, *([backend.torch] if backend.torch else [])]
    imports = f"import {', '.join(('json', *backend.modules))}"
    steps = {"a new environment": tool.create(folder)}
    steps |= {" ".join(first): tool.install(folder, *first)} if first else {}
    steps |= {backend.lock.name: tool.install(folder, *lock)}
    steps |= {imports: [str(interpreter_of(folder)), "-I", "-W", "ignore", "-c", imports]}
    scratch = folder / "scratch"
    scratch.mkdir()
    for name, command in steps.items():
        report({"installs": backend.name, "step": name})
        run_step(command, log, backend, tool.variables | {"TMPDIR": str(scratch)})
    shutil.rmtree(scratch)


def marker(backend: Backend, tool: Tool) -> dict[str, str]:
    """What the file in an environment's folder says about it."""
    return {"backend": backend.name, "lock": lock_digest(backend), "python": str(tool.python)}


def run_step(command: list[str], log: Path, backend: Backend, variables: dict[str, str]) -> None:
    """Run one command, which ends with this process. Raises QCompressError with the last error line if it fails."""
    hidden = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    with log.open("ab") as output:
        done = subprocess.run(
            guarded(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=hidden | backend.variables | variables,
            start_new_session=True,
            check=False,
        )
    if done.returncode:
        raise QCompressError(f"{backend.name}: the installation failed: {last_error(log)}; see {log}")
