"""Cut a student out of a teacher, with fewer blocks or a narrower shape. It has an ordinary config and tensors.

The student belongs to the teacher's family, so every loader supports it. Its parameters are slices of the teacher's.
`depth.py` chooses the blocks, `importance.py` and `width.py` the channels.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from compress.core.errors import BadValueError
from compress.model.architectures import find_architecture, sizes_of
from compress.model.config_keys import plain_config
from compress.model.shapes import Shape, block_lists, model_shapes, parameter_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from compress.model.blocks import Weights
    from compress.model.width import Importance

CONFIG_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}
SIZES = ("hidden", "intermediate", "blocks", "heads", "kv_heads", "head")  # of `sizes_of`, in the order of Shape
NO_HEAD_DIM = ("qwen2",)  # for these types, vLLM computes hidden_size / num_heads and never reads head_dim


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape in a config.json. Raises ValueError if a size is missing or sizes contradict each other."""
    if find_architecture(config):
        return Shape(*(sizes_of(config)[name] for name in SIZES))
    from compress.model.blocks import make_config

    full = make_config(config)
    sizes = {name: getattr(full, key, None) for name, key in CONFIG_KEYS.items()}
    missing = [CONFIG_KEYS[name] for name, value in sizes.items() if not isinstance(value, int)]
    if missing:
        raise BadValueError(
            f"model.student: the config of this {full.model_type} model lacks {', '.join(missing)}, "
            f"so no student can be cut out of it"
        )
    head_dim = getattr(full, "head_dim", None) or full.hidden_size // full.num_attention_heads
    return Shape(**sizes, head_dim=head_dim)  # type: ignore[arg-type]


def student_shape(config: dict[str, Any], **sizes: int | None) -> Shape:
    """The shape of a student. `sizes` are fields of Shape; a size of None keeps the teacher's size.

    Raises ValueError, with both numbers, if the shape cannot be cut out of the teacher.
    """
    teacher = shape_of(config)
    chosen = {name: getattr(teacher, name) if sizes.get(name) is None else sizes[name] for name in CONFIG_KEYS}
    shape = Shape(**chosen, head_dim=teacher.head_dim)  # type: ignore[arg-type]
    for name in CONFIG_KEYS:
        size, limit = getattr(shape, name), getattr(teacher, name)
        if not 1 <= size <= limit:
            raise BadValueError(
                f"{name}={size}: the student is cut out of the teacher, which has {limit}; give 1 to {limit}"
            )
    if shape.num_heads % shape.num_kv_heads:
        raise BadValueError(f"num_heads={shape.num_heads} must be a multiple of num_kv_heads={shape.num_kv_heads}")
    if shape.group > teacher.group:
        ours, theirs = f"{shape.num_heads}/{shape.num_kv_heads}", f"{teacher.num_heads}/{teacher.num_kv_heads}"
        raise BadValueError(
            f"num_heads/num_kv_heads={ours}: each KV head would serve {shape.group} query heads, "
            f"but the limit is {teacher.group}, as in the teacher ({theirs}); "
            f"give num_kv_heads={-(-shape.num_heads // teacher.group)} or more"
        )
    shape = fit_head_dim(shape, teacher, str(config.get("model_type")))
    check_buildable(student_config(config, shape, range(shape.num_layers)))
    return shape


def check_buildable(config: dict[str, Any]) -> None:
    """Raises ValueError if transformers rejects a student's config."""
    if find_architecture(config):
        return
    from compress.model.blocks import make_config

    try:
        make_config(config)
    except (ValueError, TypeError) as error:
        raise BadValueError(f"a {config.get('model_type')} cannot have this shape: {error}") from None


def fit_head_dim(shape: Shape, teacher: Shape, model_type: str) -> Shape:
    """The shape with the head_dim that loaders use: the teacher's, or hidden_size / num_heads for NO_HEAD_DIM types."""
    if model_type not in NO_HEAD_DIM or shape.same_width(teacher):
        return shape
    if shape.hidden_size % (2 * shape.num_heads):
        raise BadValueError(
            f"hidden_size={shape.hidden_size} must be a multiple of {2 * shape.num_heads}, twice "
            f"num_heads={shape.num_heads} (each head of a {model_type} model has an even number of channels); give "
            f"num_heads={shape.hidden_size // teacher.head_dim}, for heads of {teacher.head_dim} channels"
        )
    return replace(shape, head_dim=shape.hidden_size // shape.num_heads)


def student_config(config: dict[str, Any], shape: Shape, blocks: Sequence[int]) -> dict[str, Any]:
    """The config.json of a student with this `shape` that keeps these `blocks` of the teacher."""
    if len(blocks) != shape.num_layers:
        raise BadValueError(f"model.student: {len(blocks)} blocks to keep, but num_layers is {shape.num_layers}")
    student = plain_config(config)
    student.update({key: getattr(shape, name) for name, key in CONFIG_KEYS.items()})
    student |= {name: [entries[block] for block in blocks] for name, entries in block_lists(config).items()}
    if isinstance(student.get("max_window_layers"), int):
        student["max_window_layers"] = sum(block < student["max_window_layers"] for block in blocks)
    student["head_dim"] = shape.head_dim
    if config.get("model_type") in NO_HEAD_DIM and shape.head_dim * shape.num_heads == shape.hidden_size:
        del student["head_dim"]
    student.pop("_name_or_path", None)
    return student


def plan_size(config: dict[str, Any]) -> dict[str, int]:
    """The number of parameters, and their bytes in float16. Only the config is read."""
    total = sum(prod(shape) for shape in parameter_shapes(config).values())
    return {"parameters": total, "float16_bytes": 2 * total}


def cut(
    config: dict[str, Any],
    weights: "Weights",
    shape: Shape,
    blocks: Sequence[int],
    importance: "Importance | None" = None,
) -> tuple[dict[str, Any], "Weights"]:
    """The student's config, and a function that returns the student's parameters by name, cut from the teacher's.

    `importance` is indexed by the student's block numbers. Without it, importance is computed from the weights.
    Raises ValueError if the width changes and a parameter's module is not in AXES.
    """
    from compress.model.width import narrow

    teacher, path = shape_of(config), model_shapes(config).blocks[0].rpartition(".")[0]
    result = student_config(config, shape, blocks)

    def deep(name: str) -> "Tensor":
        """The parameter `name` of a student that has fewer blocks but the teacher's width."""
        rest = name.removeprefix(f"{path}.")
        if rest == name:
            return weights(name)
        index, _, local = rest.partition(".")
        return weights(f"{path}.{blocks[int(index)]}.{local}")

    if shape.same_width(teacher):
        return result, deep
    names = list(parameter_shapes(result))
    return result, narrow(names, path, deep, teacher, shape, importance)
