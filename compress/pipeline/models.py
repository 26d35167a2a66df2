"""The checkpoints of a run, each opened at first use."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.checkpoint.read import Checkpoint


class OpenCheckpoints(dict[Path, "Checkpoint"]):
    """Checkpoints by path, each opened at first use. Remove the entry of a path before writing there."""

    def __missing__(self, path: Path) -> "Checkpoint":
        from compress.checkpoint.load import open_causal_lm

        self[path] = open_causal_lm(path)
        return self[path]
