"""Differences between two sets of settings, for jobs that continue earlier work."""

from collections.abc import Mapping
from typing import Any


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, the old ones first; a missing key counts as None."""
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]
