"""Find the models that a recipe names: a hub id becomes its downloaded folder, and a folder is opened at first use."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoint.digest import files_digest
from compress.checkpoint.hub import resolve_model
from compress.pipeline.digests import Digests

if TYPE_CHECKING:
    from compress.checkpoint.read import Checkpoint
    from compress.recipe import Recipe


class OpenCheckpoints(dict[Path, "Checkpoint"]):
    """Checkpoints by path. Each is opened at its first use, and `digests` hashes its weights.

    Before a path is written again, its entry must be removed.
    """

    def __init__(self, digests: Digests) -> None:
        self.digests = digests

    def __missing__(self, path: Path) -> "Checkpoint":
        from compress.checkpoint.load import open_causal_lm

        checkpoint = open_causal_lm(path)
        checkpoint.digest = files_digest(checkpoint.digest_files, self.digests.raw)
        self[path] = checkpoint
        return checkpoint


def resolve_models(recipe: "Recipe", *, planned: bool = False) -> "Recipe":
    """The recipe with a folder in place of each hub id. Models that are not in the hub's cache are downloaded.

    If the recipe is only `planned`, a model whose config.json the recipe names is not downloaded and keeps its hub id.
    """
    changes: dict[str, Any] = {}
    if not (planned and recipe.teacher_config):
        changes["teacher"] = resolve_model(recipe.teacher)
    student = getattr(recipe.distill, "student", None)
    if recipe.distill is not None and student is not None and not (planned and recipe.student_config):
        changes["distill"] = recipe.distill.model_copy(update={"student": str(resolve_model(student))})
    return recipe.model_copy(update=changes)
