"""Load a checkpoint of any supported format as a transformers model, and measure how its windows should begin."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from calibration.start import StartToken, choose_start
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint, open_checkpoint, read_json
from compress.core.errors import QCompressError
from compress.model.blocks import BlockModel, load_all, make_config

START_WINDOWS, START_LENGTH = 4, 128  # enough for a stable comparison, and short next to a job


def open_causal_lm(source: PathOrCheckpoint) -> Checkpoint:
    """The checkpoint at a path; a `Checkpoint` is returned unchanged. QCompressError unless it is a causal LM."""
    checkpoint = open_checkpoint(source)
    check_causal_lm(checkpoint.path, checkpoint.config)
    return checkpoint


def check_causal_lm(path: Path, config: dict[str, Any]) -> None:
    """QCompressError unless a config.json describes a causal language model of transformers."""
    architectures = config.get("architectures") or ["nothing"]
    supported = config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not supported or not architectures[0].endswith("ForCausalLM"):
        model = f"{architectures[0]} (model_type {config.get('model_type')})"
        raise QCompressError(f"{path / 'config.json'}: {model} is not a causal language model; give one")
    try:
        make_config(config)
    except ValueError as error:
        raise QCompressError(f"{path / 'config.json'}: {' '.join(str(error).split())}; fetch it again") from None


def load_model(source: PathOrCheckpoint, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The whole model in eval mode, packed linears dequantized. ValueError if shapes and config disagree."""
    checkpoint = open_causal_lm(source)
    return load_all(checkpoint.config, weight_reader(checkpoint), dtype)


def stop_tokens(checkpoint: Checkpoint) -> set[int]:
    """Token ids that end an answer: those of the tokenizer, config.json and generation_config.json."""
    ids: list[Any] = [checkpoint.tokenizer.eos_token_id]
    generation = checkpoint.path / "generation_config.json"
    for config in (checkpoint.config, read_json(generation) if generation.is_file() else {}):
        value = config.get("eos_token_id")
        ids += value if isinstance(value, list) else [value]
    return {token for token in ids if isinstance(token, int)}


def spell_vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a text made of 256 sampled tokens. Equal vocabularies can still split it differently."""
    size = len(tokenizer.get_vocab())
    return list(tokenizer(tokenizer.decode(list(range(0, size, max(1, size // 256)))))["input_ids"])


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the vocabulary and a sample encoding; it does not depend on the layout of the files."""
    text = json.dumps([sorted(tokenizer.get_vocab().items()), spell_vocabulary(tokenizer)], ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the chat template; "none" without one."""
    template = getattr(tokenizer, "chat_template", None)
    text = json.dumps(template, sort_keys=True, ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if template else "none"


def start_candidate(tokenizer: PreTrainedTokenizerBase, config: dict[str, object]) -> int | None:
    """The beginning-of-sequence id of the tokenizer, else of the config; None if both lack it."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else config.get("bos_token_id")
    return token if isinstance(token, int) else None


@torch.no_grad()
def window_nll(model: PreTrainedModel, ids: Tensor, skip: int, vocabulary: int) -> float:
    """Mean nll in nats of (n_samples, seq_len) ids[:, skip:], each token predicted from those before it.

    Only the first `vocabulary` logits are used; the others are padding.
    """
    logits = model(ids, use_cache=False).logits[:, skip - 1 : -1, :vocabulary].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, skip:].flatten()).item()


def measure_blocks_start(blocks: BlockModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> StartToken:
    """Whether windows should begin with the start token: the lower nll on a few of `ids` decides."""
    candidate = start_candidate(tokenizer, blocks.model.config.to_dict())
    return choose_start(ids[:START_WINDOWS, :START_LENGTH], candidate, blocks.nll)


def measure_start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> StartToken:
    """Like `measure_blocks_start`, for a model that is in memory as a whole."""
    candidate = start_candidate(tokenizer, model.config.to_dict())
    size = max(tokenizer.get_vocab().values()) + 1
    return choose_start(ids, candidate, lambda windows, skip: window_nll(model, windows, skip, size))
