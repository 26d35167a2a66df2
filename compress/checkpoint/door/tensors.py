"""Compare the stored tensors with the parameters of the model that config.json describes: none missing, none unknown.

No weight is read, except to compare a stored head with the embedding if config.json ties the two.
"""

import re
from typing import TYPE_CHECKING

from compress.checkpoint.door.dtypes import unreadable_faults
from compress.checkpoint.door.fault import Fault, Faults
from compress.checkpoint.door.files import CONFIG
from compress.checkpoint.door.sizes import BLOCK, BLOCK_KEYS, first_size
from compress.model.shapes import ModelShapes

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint.read import Checkpoint

PACKED = ("qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
CODES = ("qweight", "weight_packed")
HARMLESS = re.compile(  # computed buffers of old checkpoints, and scales of a quantized KV cache
    r"(rotary_emb\.inv_freq|\.[qkv]_scale|\.(output|input)_scale|\.(self_)?attn\.(masked_)?bias"
    r"|\.attention\.(masked_)?bias|position_ids)$"
)
ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)\b")
ROWS = 16384


def tensor_faults(checkpoint: "Checkpoint", model: ModelShapes) -> Faults:
    """Tensors that are missing, unknown or of another shape, and a head that differs from the embedding it is tied to.

    Experts whose names in files are unknown are skipped, and so are models whose tensors transformers renames when it
    loads them.
    """
    if model.renamed:
        return
    yield from tie_faults(checkpoint, model)
    if any(unreadable_faults(checkpoint)):
        return  # the names of packed tensors are unknown
    yield from unknown_tensors(checkpoint, model)
    yield from missing_tensors(checkpoint, model)


def tie_faults(checkpoint: "Checkpoint", model: ModelShapes) -> Faults:
    """A stored head that differs from the embedding it is tied to: some loaders drop it, others use it."""
    head, table, tensors = f"{model.vocabulary.head}.weight", f"{model.vocabulary.embedding}.weight", checkpoint.tensors
    if not model.vocabulary.tied or head not in tensors or table not in tensors:
        return
    if tensors[head].shape == tensors[table].shape and same_rows(checkpoint.tensor(head), checkpoint.tensor(table)):
        return
    text = f"true, but {head} differs from {table}"
    yield Fault(CONFIG, "tie_word_embeddings", text, f"set it to false to keep {head}, or delete {head} to tie them")


def same_rows(one: "Tensor", other: "Tensor") -> bool:
    """Whether two matrices have the same values. They are compared ROWS rows at a time."""
    pairs = zip(one.split(ROWS), other.split(ROWS), strict=True)
    return all(rows.to(others.dtype).equal(others) for rows, others in pairs)


def unknown_tensors(checkpoint: "Checkpoint", model: ModelShapes) -> Faults:
    """Tensors that belong to no parameter of the model: vLLM stops at them."""
    state = model.state_names | {f"{model.vocabulary.head}.weight"}
    patterns = [re.compile(text) for text in model.ignored]
    suffixes = PACKED if checkpoint.quantization is None else (*PACKED, "bias")  # AutoGPTQ writes biases of zeros
    for name, info in checkpoint.tensors.items():
        module, _, suffix = name.rpartition(".")
        packed = suffix in suffixes and f"{module}.weight" in state
        if name in state or packed or (model.stacked and ".experts." in name) or HARMLESS.search(name):
            continue
        if any(pattern.search(name) for pattern in patterns):
            continue
        yield Fault(info.file.name, name, *unknown_reason(name, checkpoint))


def unknown_reason(name: str, checkpoint: "Checkpoint") -> tuple[str, str]:
    """What an unknown tensor is, and what to do."""
    blocks, block = first_size(checkpoint.config, BLOCK_KEYS), BLOCK.search(name)
    if ADAPTER.search(name):
        return "a tensor of a LoRA adapter", "merge the adapter into the model first"
    if blocks and block and int(block[1]) >= blocks[1]:
        cure = f"correct {blocks[0]}, or remove the tensors of the further blocks"
        return f"belongs to block {int(block[1])}, but {blocks[0]} is {blocks[1]}", cure
    return f"is not part of {model_name(checkpoint)}, and vLLM stops at it", "remove it, or correct config.json"


def model_name(checkpoint: "Checkpoint") -> str:
    architectures = checkpoint.config.get("architectures") or [str(checkpoint.config.get("model_type"))]
    return str(architectures[0])


def missing_tensors(checkpoint: "Checkpoint", model: ModelShapes) -> Faults:
    """Parameters without a tensor, or with one of another shape."""
    tensors, head = checkpoint.tensors, f"{model.vocabulary.head}.weight"
    for name, shape in model.parameters.items():
        module = name.removesuffix(".weight")
        if (model.stacked and ".experts." in name) or (
            name not in tensors and any(f"{module}.{codes}" in tensors for codes in CODES)
        ):
            continue
        if name not in tensors:
            tie = "set tie_word_embeddings to true if the head is the embedding, or " if name == head else ""
            yield Fault("", name, "missing, though config.json requires it", f"{tie}fetch the checkpoint again")
        elif tensors[name].shape != shape:
            stored, needed = list(tensors[name].shape), list(shape)
            text = f"stored with shape {stored}, but config.json requires {needed}"
            yield Fault(tensors[name].file.name, name, text, "correct config.json, or fetch the checkpoint again")
