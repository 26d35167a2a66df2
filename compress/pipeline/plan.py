"""The plan of a recipe: parameters, exact bytes, memory and tokens. Only config.json files are read."""

from typing import TYPE_CHECKING, Any

from compress.pipeline.quantize import plan_by

if TYPE_CHECKING:
    from compress.recipe import Recipe, VariantSection

Row = dict[str, Any]


def plan_recipe(recipe: "Recipe") -> list[Row]:
    """One row for each checkpoint that the recipe writes. The key "stage" names it."""
    from compress.checkpoint.hub import resolve_model
    from compress.checkpoint.read import read_json
    from compress.distill.student.plan import make_plan, plan_row

    model = read_json(recipe.teacher_config or resolve_model(recipe.teacher) / "config.json")
    rows: list[Row] = []
    config = recipe.distill_config()
    if config is not None:
        file = recipe.student_config or (resolve_model(config.student) / "config.json" if config.student else None)
        plan = make_plan(model, config, read_json(file) if file else None)
        rows.append({"stage": "student", **plan_row(plan, config)})
        model = plan.student | {"dtype": config.dtype}  # as it will be stored
    return rows + [plan_variant(recipe, part, model) for part in recipe.quantize]


def plan_variant(recipe: "Recipe", part: "VariantSection", model: Row) -> Row:
    """The plan of one variant. `model` is the config.json of the checkpoint that is quantized."""
    return {"stage": part.name, **plan_by(str(recipe.student_path), model, part.config())}
