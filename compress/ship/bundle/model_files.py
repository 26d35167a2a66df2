"""The files of a checkpoint that a bundle carries: all that belong to the model, each byte for byte.

A checkpoint of qcompress lists its files with digests. From a foreign folder, the files that loaders read are taken,
and licence texts. Never taken: hidden files, pickled weights, code.
"""

import shutil
from pathlib import Path

from compress.checkpoint.door.files import DIGESTS, SMALL_FILES, check_inside, check_regular
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import read_digests
from compress.core.atomic import file_errors

LICENSE_NAMES = ("license", "licence", "notice", "copying", "use_policy")  # beginnings, in lower case


def model_files(checkpoint: Checkpoint) -> list[Path]:
    """The files to carry, sorted. Raises QCompressError if one is no regular file or leads outside the folder."""
    folder = checkpoint.path
    listed = (read_digests(folder) or {}).get("files", {})
    names = {file.name for file in checkpoint.files} | {*SMALL_FILES, DIGESTS, *listed}
    names |= {path.name for path in folder.iterdir() if is_license(path)}
    files = [folder / name for name in sorted(names) if (folder / name).is_symlink() or (folder / name).exists()]
    for file in files:
        check_inside(file, folder)
        check_regular(file)
    return files


def is_license(path: Path) -> bool:
    """Whether a file holds a licence or a notice, by its name."""
    return path.name.lower().startswith(LICENSE_NAMES) and path.is_file()


def copy_model(checkpoint: Checkpoint, target: Path) -> None:
    """Copy the files to the new folder `target`. Copies and not hard links: a change of one never reaches the other."""
    target.mkdir()
    for file in model_files(checkpoint):
        with file_errors(target / file.name):
            shutil.copyfile(file, target / file.name)
