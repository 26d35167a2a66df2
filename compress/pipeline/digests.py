"""Digests of checkpoints, texts and result files. A file is read again only if its size, times or inode changed."""

import hashlib
from pathlib import Path
from typing import Any

from calibration.corpus import parse_source, source_digest
from compress.checkpoint.door.files import check_folder
from compress.core.atomic import file_errors

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")  # config, tokenizer and template of a checkpoint


class Digests:
    """Digests by path. `files` holds the digests that this run and earlier runs have computed.

    `files` is plain data, which `stages.json` stores.
    """

    def __init__(self, files: dict[str, Any] | None = None) -> None:
        self.files = dict(files or {})

    def file(self, path: Path) -> str:
        """sha256 of a file's bytes, as "sha256:HEX". Raises QCompressError if the file cannot be read."""
        with file_errors(path):
            stat = path.stat()
            state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            entry = self.files.get(str(path))
            if not (isinstance(entry, dict) and entry.get("state") == state):
                with path.open("rb") as stream:
                    entry = {"state": state, "digest": f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"}
                self.files[str(path)] = entry
        return str(entry["digest"])

    def raw(self, path: Path) -> bytes:
        """The 32 bytes of a file's sha256."""
        return bytes.fromhex(self.file(path).removeprefix("sha256:"))

    def checkpoint(self, folder: Path) -> str:
        """One digest of all weights, config, tokenizer and template files of a checkpoint."""
        check_folder(folder)
        files = {file for pattern in ("*.safetensors", *SMALL_FILES) for file in folder.glob(pattern)}
        lines = [f"{file.name} {self.file(file)}" for file in sorted(files)]
        return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def output(self, path: Path) -> str:
        """The digest of a stage's output: a checkpoint's folder or a result file."""
        return self.checkpoint(path) if path.is_dir() else self.file(path)

    def text(self, source: str) -> str:
        """The digest of a text: of the file's bytes, or of the documents behind a built-in name or a hub dataset."""
        name = parse_source(source).name
        return self.file(Path(name)) if Path(name).is_file() else source_digest(name)
