"""The nearest valid name for one that is unknown, as the end of an error."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, names: Iterable[object]) -> str:
    """ "; did you mean NAME?" with the nearest name, or "" if none is near."""
    near = difflib.get_close_matches(str(word), [str(name) for name in names], n=1)
    return f"; did you mean {near[0]}?" if near else ""
