"""Read and write `stages.json`, and replace the output of a stage."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from compress.checkpoint.door.files import read_json
from compress.checkpoint.ownership import check_written_here, remove_checkpoint
from compress.core.atomic import write_atomic
from compress.core.errors import QCompressError
from compress.core.file_kind import json_kind
from compress.pipeline.digests import Digests
from compress.pipeline.stage import BuildState, RecipeStage

STATE = "stages.json"
STATES = json_kind("started", "finished", "files", option="`out`")


def load_state(folder: Path) -> BuildState:
    """The state in a recipe's folder; an empty one if the folder has none. Raises QCompressError for a damaged file."""
    file = folder / STATE
    if not file.is_file():
        return BuildState()
    value = read_json(file)
    if not all(isinstance(value.get(key), dict) for key in ("started", "finished", "files")):
        raise QCompressError(f"{file}: not the state of a recipe; remove it to begin with an empty state")
    return BuildState(value["started"], value["finished"], value["files"])


def save_state(folder: Path, state: BuildState, digests: Digests) -> None:
    """Write `stages.json` with the digests of all files that this run has read."""
    state.files = digests.files
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / STATE, (json.dumps(asdict(state), indent=1, ensure_ascii=False) + "\n").encode(), kind=STATES)


@contextmanager
def replaced(stage: RecipeStage) -> Iterator[None]:
    """Context that moves an old checkpoint aside, and removes it when the new one is complete.

    If the stage fails, the old checkpoint returns to its place. Raises QCompressError for files of another program.
    """
    old = stage.out.with_name(f".{stage.out.name}.replaced")
    if stage.writes_checkpoint and stage.out.exists():
        remove_checkpoint(old)
        check_written_here(stage.out)
        stage.out.rename(old)
    try:
        yield
    except BaseException:
        if old.exists() and not stage.out.exists():
            old.rename(stage.out)
        raise
    remove_checkpoint(old)
