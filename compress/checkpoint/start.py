"""Measure whether a model's windows should begin with its start token."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibration.start import StartToken, choose_start
from compress.checkpoint.load import start_candidate, tokenizer_size
from compress.model.blocks import BlockModel

START_WINDOWS, START_LENGTH = 4, 128  # enough for a stable comparison, and short next to a job


@torch.no_grad()
def window_nll(model: PreTrainedModel, ids: Tensor, skip: int, vocabulary: int) -> float:
    """Mean nll of the tokens ids[:, skip:], in nats per token, for ids (n_samples, seq_len).

    Each token is predicted from those before it. Only the first `vocabulary` logits are used; the others are padding.
    """
    logits = model(ids, use_cache=False).logits[:, skip - 1 : -1, :vocabulary].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, skip:].flatten()).item()


def measure_blocks_start(blocks: BlockModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> StartToken:
    """Choose whether windows begin with the start token, by the lower nll on a few of the windows `ids`."""
    candidate = start_candidate(tokenizer, blocks.model.config.to_dict())
    return choose_start(ids[:START_WINDOWS, :START_LENGTH], candidate, blocks.nll)


def measure_start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> StartToken:
    """Like `measure_blocks_start`, for a model that is in memory as a whole."""
    candidate = start_candidate(tokenizer, model.config.to_dict())
    size = tokenizer_size(tokenizer)
    return choose_start(ids, candidate, lambda windows, skip: window_nll(model, windows, skip, size))
