"""The type of MODEL, TEACHER and CKPT on the command line: a folder, or a model on the Hugging Face hub."""

from pathlib import Path
from typing import Any

import click


class FilledPath(click.Path):
    """A path. Usage error for empty text, which would mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty; give a file or a folder.", param, ctx)
        return super().convert(value, param, ctx)


class ModelPath(FilledPath):
    """A path, or a hub id such as Qwen/Qwen2.5-1.5B-Instruct or ORG/NAME@REVISION, which is downloaded."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from compress.checkpoint.hub import resolve_model

        return super().convert(resolve_model(value) if value != "" else value, param, ctx)


MODEL = ModelPath()


def as_typed(path: Path) -> str:
    """A model as a user types it: the hub id of a downloaded one, else the path."""
    from compress.checkpoint.hub import hub_name

    return hub_name(path) or str(path)
