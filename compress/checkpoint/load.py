"""Open a checkpoint after all rules of the door, and load it as a transformers model.

transformers is imported to build models, and for a config.json that the table of architectures does not cover.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoint.door.config_values import ACTIVATION_KEYS
from compress.checkpoint.door.dtypes import unreadable_faults
from compress.checkpoint.door.fault import refuse
from compress.checkpoint.door.files import CONFIG
from compress.checkpoint.door.rules import settings_faults
from compress.checkpoint.door.tensors import tensor_faults
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint, open_checkpoint, read_json
from compress.core.errors import QCompressError
from compress.model.architectures import find_architecture
from compress.model.shapes import model_shapes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_causal_lm(source: PathOrCheckpoint, *, readable: bool = True) -> Checkpoint:
    """The checkpoint at a path, after all rules of the door. An open `Checkpoint` is checked if it was not checked yet.

    Raises QCompressError with the first broken rule: it is not a causal LM of transformers, its files contradict each
    other, or its weights cannot be read as they are. No weights are read, except to compare a head with the embedding
    it is tied to. Without `readable`, formats are allowed that only another runtime can read, such as FP8 in vLLM.
    """
    checkpoint = open_checkpoint(source)
    if not checkpoint.settled:
        settle(checkpoint)
    if readable:
        refuse(checkpoint.path, unreadable_faults(checkpoint))
    return checkpoint


def open_for_text(source: PathOrCheckpoint, *, readable: bool = True) -> Checkpoint:
    """`open_causal_lm` for commands that read or write text: the tokenizer is loaded and checked too."""
    checkpoint = open_causal_lm(source, readable=readable)
    checkpoint.tokenizer  # noqa: B018  fails here, before any work
    return checkpoint


def settle(checkpoint: Checkpoint) -> None:
    """Apply the rules of the door that need the model's code. Raises QCompressError with the first broken rule."""
    check_causal_lm(checkpoint.path, checkpoint.config)
    try:
        shapes = model_shapes(checkpoint.config)
    except ValueError as error:
        raise QCompressError(f"{checkpoint.path / CONFIG}: {one_line(error)}; fetch it again") from None
    refuse(checkpoint.path, tensor_faults(checkpoint, shapes))
    checkpoint.settled = True


def check_causal_lm(path: Path, config: dict[str, Any]) -> None:
    """Raises QCompressError if a config.json does not describe a causal language model that transformers can make."""
    refuse(path, settings_faults(config))
    if find_architecture(config) is None:
        check_with_transformers(path, config)


def check_with_transformers(path: Path, config: dict[str, Any]) -> None:
    """`check_causal_lm` for a config.json that the table of architectures does not cover."""
    from transformers.activations import ACT2FN
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from compress.model.blocks import make_config

    architectures = config.get("architectures") or ["no architecture"]
    supported = config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not supported or not architectures[0].endswith("ForCausalLM"):
        model = f"{architectures[0]} (model_type {config.get('model_type')})"
        raise QCompressError(f"{path / CONFIG}: {model} is not a causal language model; give one")
    for key in ACTIVATION_KEYS:
        if config.get(key) is not None and config[key] not in ACT2FN:
            raise QCompressError(f"{path / CONFIG}: {key}: {config[key]!r:.60} is unknown to transformers; correct it")
    try:
        make_config(config)
    except ValueError as error:
        raise QCompressError(f"{path / CONFIG}: {one_line(error)}; fetch it again") from None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def load_model(source: PathOrCheckpoint, dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """The whole model in eval mode, in float32 if `dtype` is None, packed linears dequantized.

    Raises ValueError if shapes and config disagree.
    """
    import torch

    from compress.model.blocks import load_all

    checkpoint = open_causal_lm(source)
    return load_all(checkpoint.config, weight_reader(checkpoint), dtype or torch.float32)


def stop_tokens(checkpoint: Checkpoint) -> set[int]:
    """Token ids that end an answer: those of the tokenizer, config.json and generation_config.json."""
    ids: list[Any] = [checkpoint.tokenizer.eos_token_id]
    generation = checkpoint.path / "generation_config.json"
    for config in (checkpoint.config, read_json(generation) if generation.is_file() else {}):
        value = config.get("eos_token_id")
        ids += value if isinstance(value, list) else [value]
    return {token for token in ids if isinstance(token, int)}


def spell_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of a text that is made of 256 tokens. Tokenizers with equal vocabularies may split it differently."""
    size = len(tokenizer.get_vocab())
    return list(tokenizer(tokenizer.decode(list(range(0, size, max(1, size // 256)))))["input_ids"])


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 over the vocabulary and a sample encoding; it does not depend on the layout of the files."""
    text = json.dumps([sorted(tokenizer.get_vocab().items()), spell_vocabulary(tokenizer)], ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def template_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of the chat template, or "none" if the tokenizer has no template."""
    template = getattr(tokenizer, "chat_template", None)
    text = json.dumps(template, sort_keys=True, ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if template else "none"


def tokenizer_size(tokenizer: Any) -> int:
    """The highest token id plus one; the rest of a model's vocabulary is padding."""
    return max(tokenizer.get_vocab().values()) + 1


def start_candidate(tokenizer: "PreTrainedTokenizerBase", config: dict[str, object]) -> int | None:
    """The beginning-of-sequence id of the tokenizer, or else of the config. None means that neither has one."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else config.get("bos_token_id")
    return token if isinstance(token, int) else None
