"""Recipes as builds: a stage runs if its output is missing, or if something that the output depends on has changed.

`stages.json` in the recipe's folder stores the settings and digests behind every output. Nothing heavy is imported
until a stage runs, so that an unchanged recipe is done at once.
"""

from compress.pipeline.plan import plan_recipe
from compress.pipeline.run import dry_run, run_recipe

__all__ = ["dry_run", "plan_recipe", "run_recipe"]
