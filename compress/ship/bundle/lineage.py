"""The models from which a checkpoint was made, by its record and by the records of models that are still on disk."""

from collections.abc import Iterator
from pathlib import Path

from compress.checkpoint.digest import weights_digest
from compress.checkpoint.door.files import RECORD, read_json
from compress.core.errors import QCompressError
from compress.core.report import Row

TRAINING = ("distill", "init-student")
GENERATIONS = 8  # a record that names itself would never end


def ancestors(record: Row, generations: int = GENERATIONS) -> Iterator[Row]:
    """Role, name, digest and licence (None: unknown) of each ancestor. `converted` stands for its own source."""
    roles = {
        "source": "teacher" if record.get("command") in TRAINING else "base",
        "student": "student before training",
        "converted": "converted from",
    }
    for key, role in roles.items():
        one = record.get(key)
        if not isinstance(one, dict) or not generations:
            continue
        path = Path(str(one.get("path", "unknown")))
        name = one.get("name") or path.name
        yield {"role": role, "name": str(name), "digest": one.get("digest"), "license": one.get("license")}
        yield from ancestors(record_of(path, one.get("digest")), generations - 1)


def record_of(path: Path, digest: object) -> Row:
    """The record of a model at `path`; {} if it has none, or if another model is there now."""
    try:
        if (path / RECORD).is_file() and weights_digest(path) == digest:
            return read_json(path / RECORD)
    except (QCompressError, OSError):
        pass
    return {}
