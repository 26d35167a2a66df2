"""The plan of a quantization, before any work.

If the model's architecture is in the table of `compress/model/architectures.py`, neither torch nor transformers is
imported.
"""

from typing import Any

from compress.checkpoint.door.tokenizer import has_tokenizer
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint, open_checkpoint
from compress.core.config import QuantizeConfig
from compress.model.shapes import parameter_shapes
from compress.quantize.layout.budget import plan_within
from compress.quantize.layout.plan import LayoutPlan, SourceModel, check_not_refused, checkpoint_source, storage_dtype
from compress.quantize.layout.tensor_parallel import pad_for_ranks


def plan_quantize(model: PathOrCheckpoint, config: QuantizeConfig) -> tuple[Checkpoint, LayoutPlan]:
    """The open checkpoint and its exact plan. No weights are read.

    Raises QCompressError if the model cannot be quantized. The tokenizer is copied to the result, so it is checked even
    if the method reads no text.
    """
    checkpoint = open_checkpoint(model)
    check_not_refused(checkpoint.path, checkpoint.config)  # the reason, not what transformers makes of the model
    open_causal_lm(checkpoint)
    if config.reads_text or has_tokenizer(checkpoint.path):
        checkpoint.check_tokenizer()
    checkpoint = pad_for_ranks(checkpoint, config)
    return checkpoint, plan_within(checkpoint_source(checkpoint, config.dtype, text_only=config.text_only), config)


def plan_without_weights(name: str, model: dict[str, Any], config: QuantizeConfig) -> LayoutPlan:
    """The plan that `plan_quantize` returns, made from the content of a config.json. Errors call the model `name`."""
    source = SourceModel(name, parameter_shapes(model), model, storage_dtype(model, config.dtype))
    return plan_within(source, config)
