"""A .gguf file stores a tied matrix twice: the import ties it again, and leaves different matrices untied."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.checkpoint.gguf.importer import plain_tensors, tie_head

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 96}


@pytest.fixture
def untied():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))


@torch.no_grad()
def test_two_roundings_of_one_matrix_are_tied_and_the_head_is_kept(untied):
    head = untied.lm_head.weight.clone()
    untied.model.embed_tokens.weight.copy_(head + 0.05 * head.std() * torch.randn_like(head))
    assert tie_head(untied) > 0.99
    tensors = {spec.name: tensor for spec, tensor in plain_tensors(untied, torch.float32)}
    assert untied.config.tie_word_embeddings and "lm_head.weight" not in tensors
    assert torch.equal(tensors["model.embed_tokens.weight"], head)


def test_different_matrices_stay_untied(untied):
    assert tie_head(untied) is None
    assert not untied.config.tie_word_embeddings


def test_a_tied_model_stays_tied():
    tied = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    assert tie_head(tied) is None and tied.config.tie_word_embeddings
