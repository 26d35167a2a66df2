"""Verify a bundle: every file has its digest, bundle.json has its schema, and the model runs on its board."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from compress.checkpoint.check.run import check_checkpoint, error_rows
from compress.checkpoint.door.files import read_json
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.core.report import Row
from compress.ship.boards import find_board
from compress.ship.bundle.manifest import MANIFEST, SCHEMA
from compress.ship.bundle.plan import MODEL
from compress.ship.bundle.sums import SUMS, Fault, check_sums, read_sums
from compress.ship.gate import Request, check_fit

FILES = (  # that every bundle has
    *(MANIFEST, "README.md", "compose.yaml", "install.sh", "qcompress.container", "qcompress.service", "sbom.cdx.json"),
    *("smoke.json", "smoke.py", "LICENSES/README.md"),
)


def verify_bundle(folder: Path) -> list[Fault]:
    """The faults of a bundle, each with its file; [] if there are none. A changed bundle is not read any further.

    Raises QCompressError if the folder is no bundle.
    """
    return file_faults(folder) or list(model_faults(folder, read_json(folder / MANIFEST)))


def file_faults(folder: Path) -> list[Fault]:
    """The faults of the files, and of bundle.json if no file was changed. The model itself is not read."""
    if folder.is_symlink() or not folder.is_dir():
        raise QCompressError(f"{folder}: no such folder; give a folder that qcompress ship wrote")
    listed = read_sums(folder)
    faults = check_sums(folder)
    faults += [(name, f"is not listed in {SUMS}, and every bundle has it") for name in FILES if name not in listed]
    return faults or list(manifest_faults(folder))


def manifest_faults(folder: Path) -> Iterator[Fault]:
    """Where bundle.json breaks its schema."""
    try:
        value = read_json(folder / MANIFEST)
    except QCompressError as error:
        yield MANIFEST, error.message
        return
    for problem in sorted(schema().iter_errors(value), key=lambda problem: list(map(str, problem.absolute_path))):
        place = ".".join(map(str, problem.absolute_path)) or "top level"
        yield MANIFEST, f"{place}: {' '.join(problem.message.split())[:200]}"


@cache
def schema() -> Any:
    """The validator of bundle.json."""
    return jsonschema.Draft202012Validator(read_json(SCHEMA))


def model_faults(folder: Path, value: Row) -> Iterator[Fault]:
    """The faults of the model: rules of `check`, another digest, or a board that it does not run on."""
    try:
        board = find_board(value["board"]["name"])
        if value["runtime"]["name"] != "vllm":
            yield from file_fault(folder, value["model"]["path"])
            return
        checkpoint, request = Checkpoint(folder / MODEL), value["request"]
        ranks = request["tensor_parallel_size"]
        for row in error_rows(check_checkpoint(checkpoint, tensor_parallel_size=ranks)):
            place = next((f"{row[key]}: " for key in ("tensor", "key", "file") if key in row), "")
            yield MODEL, f"{row['rule']}: {place}{row['value']} (expected: {row['expected']})"
        if checkpoint.digest != value["model"]["digest"]:
            yield MODEL, f"is another model than {MANIFEST} states: its digest is {checkpoint.digest}"
        check_fit(checkpoint, board, Request(request["context"], request["requests"], request["kv_cache_dtype"], ranks))
    except QCompressError as error:
        yield MODEL, error.message


def file_fault(folder: Path, name: str) -> Iterator[Fault]:
    """The fault of a .gguf file that is not one."""
    path = folder / name
    if not path.is_file() or path.open("rb").read(4) != b"GGUF":
        yield name, "is no .gguf file"
