"""The types of paths on the command line. MODEL, TEACHER and CKPT are folders or models on the Hugging Face hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from compress.core.atomic import check_parent
from compress.core.errors import QCompressError


class FilledPath(click.Path):
    """A path. Empty text is a usage error, because it would mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty; give a file or a folder.", param, ctx)
        return super().convert(value, param, ctx)


class OutPath(FilledPath):
    """A path to write. A path whose parent is a file is an error."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        check_parent(Path(path))
        return path


class ModelPath(FilledPath):
    """A path or a hub id, such as Qwen/Qwen2.5-1.5B-Instruct or ORG/NAME@REVISION. A hub id is downloaded."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from compress.checkpoint.hub import resolve_model

        return super().convert(resolve_model(value) if value != "" else value, param, ctx)


MODEL = ModelPath()


def check_models(command: click.Command, values: Mapping[str, Any]) -> None:
    """Raises QCompressError if a MODEL among the command's parameters does not exist, before any long import."""
    for param in command.params:
        value = values.get(param.name or "") if isinstance(param.type, ModelPath) else None
        for path in value if isinstance(value, tuple) else [value]:
            if path is not None and not path.exists() and not path.is_symlink():
                raise QCompressError(f"{path}: no such directory; give a folder with config.json and *.safetensors")


def as_typed(path: Path) -> str:
    """A model as a user would type it: the hub id if it was downloaded, else the path."""
    from compress.checkpoint.hub import hub_name

    return hub_name(path) or str(path)
