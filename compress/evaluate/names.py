"""Short, unique names of checkpoints for rows and reports."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from compress.checkpoint.hub import model_name


def short_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each path: its last part, or NAME of the hub id ORG/NAME.

    If several paths have the same short name, each of them is named by its whole path.
    """
    return unique_names([model_name(path) for path in paths], paths)


def unique_names(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """The names; a name that occurs more than once is replaced by its path."""
    count = Counter(names)
    return [name if count[name] == 1 else str(path) for name, path in zip(names, paths, strict=True)]
