"""What checkpoints are called in rows and reports: short, and each by a name of its own."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or the path as given where another checkpoint has the same last part."""
    return tell_apart([path.resolve().name for path in paths], paths)


def tell_apart(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Each name, or its path where another has the same name."""
    count = Counter(names)
    return [name if count[name] == 1 else str(path) for name, path in zip(names, paths, strict=True)]
