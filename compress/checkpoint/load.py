"""A checkpoint of any of our formats as a transformers model and tokenizer, and how its windows must begin."""

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

START_WINDOWS, START_LENGTH = 4, 128  # enough to tell, and little beside the work that follows


def open_causal_lm(source: PathOrCheckpoint) -> Checkpoint:
    """The checkpoint at a path; a `Checkpoint` is returned unchanged. QCompressError unless it is a causal LM."""
    checkpoint = open_checkpoint(source)
    check_causal_lm(checkpoint.path, checkpoint.config)
    return checkpoint


def check_causal_lm(path: Path, config: dict[str, Any]) -> None:
    """QCompressError when a config.json is not that of a causal language model of transformers."""
    architectures = config.get("architectures") or ["nothing"]
    known = config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not known or not architectures[0].endswith("ForCausalLM"):
        found = f"{architectures[0]} (model_type {config.get('model_type')})"
        raise QCompressError(f"{path / 'config.json'}: {found} is not a causal language model")
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
    """How a tokenizer spells a text of its own: equal vocabularies may still cut a text differently."""
    size = len(tokenizer.get_vocab())
    return list(tokenizer(tokenizer.decode(list(range(0, size, max(1, size // 256)))))["input_ids"])


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the vocabulary and how it is used, the same however its files are laid out."""
    text = json.dumps([sorted(tokenizer.get_vocab().items()), spell_vocabulary(tokenizer)], ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the chat template, "none" where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    text = json.dumps(template, sort_keys=True, ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if template else "none"


def start_candidate(tokenizer: PreTrainedTokenizerBase, config: dict[str, object]) -> int | None:
    """The id that windows might have to begin with: the tokenizer's, else the config's."""
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else config.get("bos_token_id")
    return found if isinstance(found, int) else None


@torch.no_grad()
def window_nll(model: PreTrainedModel, ids: Tensor, skip: int, vocabulary: int) -> float:
    """Mean nll in nats of the tokens of (n, seq) ids after the first `skip`, each given those before it.

    Only the first `vocabulary` logits count: rows that pad a vocabulary are no tokens.
    """
    logits = model(ids, use_cache=False).logits[:, skip - 1 : -1, :vocabulary].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, skip:].flatten()).item()


def measure_blocks_start(blocks: BlockModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> StartToken:
    """Whether windows of a model read block by block begin with its start token; a few of `ids` (n, seq) tell."""
    candidate = start_candidate(tokenizer, blocks.model.config.to_dict())
    return choose_start(ids[:START_WINDOWS, :START_LENGTH], candidate, blocks.nll)


def measure_start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> StartToken:
    """Whether this model's windows begin with its start token: the nll of `ids` (n, seq) with and without decides."""
    candidate = start_candidate(tokenizer, model.config.to_dict())
    size = max(tokenizer.get_vocab().values()) + 1
    return choose_start(ids, candidate, lambda windows, skip: window_nll(model, windows, skip, size))
