"""Write the lock of every backend from the header of its driver: python scripts/lock_backends.py [NAME ...]

Needs uv. A lock has every package that the header's pins lead to, for all platforms and versions of Python that the
header permits, with the hashes of all files of each version. torch is left out with the packages that only its CUDA
builds need: their choice depends on the machine. Packages in `without-dependencies` are listed alone.
"""

import subprocess
import sys
from typing import Any

import click

from compress.backends.table import BACKENDS, Backend

TOP = """# The pins of {driver}, with hashes. Made by: python scripts/lock_backends.py {name}
# It is installed by `pip install --no-deps --require-hashes -r` after {torch}, which has no hash here: its build
# (CPU, CUDA, ROCm) depends on the machine and comes from the index that pip is configured for.
"""
TOP_ALONE = """# The pins of {driver}, with hashes. Made by: python scripts/lock_backends.py {name}
# It is installed by `pip install --no-deps --require-hashes -r`.
"""
OF_TORCH = ("torch", "triton")
PREFIXES = ("nvidia-", "cuda-")


def package(pin: str) -> str:
    return pin.partition("==")[0]


def resolve(pins: list[str], python: str, *options: str) -> str:
    """The lock of some pins, as uv writes it."""
    command = ["uv", "pip", "compile", "--universal", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    result = subprocess.run(
        [*command, "--python-version", python, *options, "-"], input="\n".join(pins), capture_output=True, text=True
    )
    if result.returncode:
        raise click.ClickException(result.stderr.strip())
    return result.stdout


def entries(lock: str) -> list[str]:
    """The entries of a lock: the line of a package with the lines of its hashes."""
    parts: list[str] = []
    for line in lock.splitlines(keepends=True):
        if line.startswith((" ", "\t")):
            parts[-1] += line
        elif line.strip() and not line.startswith("#"):
            parts.append(line)
    return parts


def belongs_to_torch(entry: str) -> bool:
    name = package(entry)
    return name in OF_TORCH or name.startswith(PREFIXES)


def lock_text(backend: Backend) -> str:
    """The text of a backend's lock."""
    header: dict[str, Any] = backend.pins
    alone = set(header["tool"]["qcompress"]["without-dependencies"])
    python = header["requires-python"].partition(",")[0].removeprefix(">=")
    pins = [pin for pin in header["dependencies"] if package(pin) not in alone]
    single = [pin for pin in header["dependencies"] if package(pin) in alone]
    found = entries(resolve(pins, python)) if pins else []
    found += entries(resolve(single, python, "--no-deps")) if single else []
    kept = sorted(entry for entry in found if not belongs_to_torch(entry))
    driver = backend.lock.with_suffix(".py").name
    top = TOP if backend.torch else TOP_ALONE
    return top.format(driver=driver, name=backend.name, torch=backend.torch) + "".join(kept)


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(BACKENDS)))
def main(names: tuple[str, ...]) -> None:
    for name in names or BACKENDS:
        backend = BACKENDS[name]
        if backend.environment:
            continue
        backend.lock.write_text(lock_text(backend), encoding="utf-8")
        click.echo(f"{name}: {len(entries(backend.lock.read_text()))} packages", file=sys.stdout)


if __name__ == "__main__":
    main()
