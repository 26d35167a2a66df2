"""Checkpoints of real sizes: headers without data, in any layout."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

from compress.checkpoint.read import Checkpoint

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"


@pytest.fixture(scope="session")
def boards_page() -> ModuleType:
    """The script that makes docs/reference/boards.md."""
    spec = importlib.util.spec_from_file_location("boards_page", ROOT / "scripts" / "boards_page.py")
    assert spec and spec.loader
    module = sys.modules["boards_page"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def headers(boards_page: ModuleType) -> Iterator[Callable[..., Checkpoint]]:
    """headers(model, layout, **settings): a checkpoint of a config in recipes/configs, whose files have no data."""
    with ExitStack() as stack:
        yield lambda model, layout="awq", **settings: stack.enter_context(
            boards_page.header_checkpoint(CONFIGS / f"{model}.json", layout, **settings)
        )
