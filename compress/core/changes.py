"""Find the settings that differ between two runs, for jobs that continue earlier work."""

from collections.abc import Mapping
from typing import Any


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ. The keys of `old` come first. A missing key counts as None."""
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]
