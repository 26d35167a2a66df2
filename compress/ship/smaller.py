"""The layouts of a checkpoint's model that a board reads, and the smallest of them."""

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
from compress.ship.features import reads_layout


def smallest_layout(checkpoint: Checkpoint, vllm: str | None) -> int:
    """The bytes of the smallest 4-bit layout of the model that this version of vLLM reads."""
    config = plain_config(checkpoint.config)
    dtype = model_dtype(config)
    stored = dtype if dtype in STORAGE_DTYPES else Dtype.float16
    source = SourceModel(str(checkpoint), parameter_shapes(config), config, stored)
    plans = plan_layouts(source, QuantizeConfig(method="rtn"), FORMAT_NAMES)
    return min(plan.bytes for layout, plan in plans if reads_layout(layout, vllm))


def source_of(checkpoint: Checkpoint) -> str:
    """The path of the 16-bit model that the checkpoint was made from, "MODEL" if it is unknown. Quoted for a shell."""
    if checkpoint.quantization is None:
        return shlex.quote(str(checkpoint.path))
    origin = checkpoint.record.get("source")
    path = origin.get("path") if isinstance(origin, dict) else None
    return shlex.quote(path) if isinstance(path, str) and Path(path).is_dir() else "MODEL"
