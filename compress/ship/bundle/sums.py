"""SHA256SUMS: the digest of every other file of a bundle, in the form of `sha256sum`, which needs nothing of qcompress.

`check_sums` compares a bundle with it: no changed, missing or further file, no link, no path that leads outside.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from compress.checkpoint.digest import file_sha256
from compress.core.errors import QCompressError
from compress.ship.signing import RECEIPT, SIGNATURE

SUMS = "SHA256SUMS"
UNLISTED = (SUMS, RECEIPT, SIGNATURE)  # the receipt is written on the device; the signature signs SHA256SUMS too
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
UNSAFE = re.compile(r"[\\\n\r\0]")  # sha256sum escapes such names
SUMS_BYTES = 10_000_000

Fault = tuple[str, str]  # file, what is wrong with it


def write_sums(folder: Path) -> None:
    """Write the digests of all files below a folder, sorted by name. Raises QCompressError for a link or odd name."""
    for name, fault in walk_faults(folder):
        raise QCompressError(f"{folder / name}: {fault}")
    lines = [f"{file_sha256(folder / name).hex()}  {name}\n" for name in listed_files(folder)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def listed_files(folder: Path) -> list[str]:
    """The relative names of all files that SHA256SUMS must list, sorted."""
    return sorted(name for name, path in entries(folder) if not path.is_dir() and name not in UNLISTED)


def entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """Relative name and path of everything below a folder. Links are not followed."""
    for place, folders, files in os.walk(folder, followlinks=False):
        for name in sorted((*folders, *files)):
            path = Path(place) / name
            yield path.relative_to(folder).as_posix(), path


def walk_faults(folder: Path) -> Iterator[Fault]:
    """Links, special files and odd names below a folder."""
    for name, path in entries(folder):
        if path.is_symlink():
            yield name, "is a link, and a bundle has none"
        elif not path.is_file() and not path.is_dir():
            yield name, "is not a regular file"
        elif UNSAFE.search(name):
            yield name, "has a name that sha256sum escapes"


def check_sums(folder: Path) -> list[Fault]:
    """The faults of a bundle's files; [] if every file is listed and has its digest.

    Raises QCompressError if SHA256SUMS is missing or malformed.
    """
    sums, faults = read_sums(folder), list(walk_faults(folder))
    broken = {name for name, _ in faults}
    for name in listed_files(folder):
        if name not in sums and name not in broken:
            faults.append((name, f"is not listed in {SUMS}"))
    for name, digest in sums.items():
        if (fault := sum_fault(folder, name, digest)) and name not in broken:
            faults.append((name, fault))
    return faults


def sum_fault(folder: Path, name: str, digest: str) -> str | None:
    """What is wrong with a listed file, or None."""
    if is_outside(name):
        return f"is listed in {SUMS}, but leads outside the bundle"
    path = folder / name
    if not path.exists():
        return f"is missing, though {SUMS} lists it"
    if not path.is_file() or path.is_symlink():
        return "is not a regular file"
    return None if file_sha256(path).hex() == digest else f"has another content than {SUMS} states"


def is_outside(name: str) -> bool:
    """Whether a listed name is not the plain relative path of a file."""
    return name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/"))


def read_sums(folder: Path) -> dict[str, str]:
    """The listed digests by name. Raises QCompressError if the file is missing or malformed."""
    path = folder / SUMS
    if path.is_symlink() or not path.is_file():
        raise QCompressError(f"{path}: missing; give a folder that qcompress ship wrote")
    if path.stat().st_size > SUMS_BYTES:
        raise QCompressError(f"{path}: has more than {SUMS_BYTES:,} bytes; copy the bundle again")
    sums: dict[str, str] = {}
    text = path.read_bytes().decode("utf-8", "replace")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        match = LINE.fullmatch(line)
        if match is None or match[2] in sums:
            raise QCompressError(
                f"{path}: line {number} is not `DIGEST  FILE`, or repeats a file; copy the bundle again"
            )
        sums[match[2]] = match[1]
    return sums
