"""The `qcompress plan` command for a smaller layout of a checkpoint."""

import shlex
from pathlib import Path

from compress.checkpoint.formats import model_dtype
from compress.checkpoint.read import Checkpoint
from compress.core.config import FORMAT_NAMES, STORAGE_DTYPES, QuantizeConfig
from compress.core.dtypes import Dtype
from compress.model.config_keys import plain_config
from compress.model.shapes import parameter_shapes
from compress.quantize.layout.budget import plan_layouts
from compress.quantize.layout.plan import SourceModel

MEGABYTE = 1_000_000


def fitting_plan(checkpoint: Checkpoint, size: int) -> str | None:
    """The command that lists layouts of at most `size` bytes, or None if the model has no layout that small."""
    megabytes = size // MEGABYTE
    if megabytes <= 0 or smallest_layout(checkpoint) > megabytes * MEGABYTE:
        return None
    return f"qcompress plan {shlex.quote(source_of(checkpoint))} --max-size {megabytes}MB"


def smallest_layout(checkpoint: Checkpoint) -> int:
    """The bytes of the smallest 4-bit layout of the model that vLLM loads."""
    config = plain_config(checkpoint.config)
    dtype = model_dtype(config)
    stored = dtype if dtype in STORAGE_DTYPES else Dtype.float16
    source = SourceModel(str(checkpoint), parameter_shapes(config), config, stored)
    return min(plan.bytes for _, plan in plan_layouts(source, QuantizeConfig(method="rtn"), FORMAT_NAMES))


def source_of(checkpoint: Checkpoint) -> str:
    """The path of the 16-bit model that the checkpoint was made from, "MODEL" if it is unknown."""
    if checkpoint.quantization is None:
        return str(checkpoint.path)
    origin = checkpoint.record.get("source")
    path = origin.get("path") if isinstance(origin, dict) else None
    return path if isinstance(path, str) and Path(path).is_dir() else "MODEL"
