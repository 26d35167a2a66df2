"""Shared fixtures: tiny random models on disk, each a whole FP16 checkpoint with a tokenizer and a chat template.

They are written once per session, and all tests share them. A test that changes a checkpoint copies it first.
Tests see no GPU, so that they pass on every machine. `pytest -m gpu` shows it to the tests that need one.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HIDDEN = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
if not re.search(r"(^| )-m ?gpu\b", " ".join(sys.argv)):
    os.environ.update(HIDDEN)  # also for the processes that tests start; torch and Triton read them when imported

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from compress.checkpoint.gguf.importer import import_config, tokenizer_files
from compress.checkpoint.write import TensorSpec, save_checkpoint
from tests.pretend.device import PretendedGpu, pretended_gpu
from tests.pretend.guard import load_guard, missing

VOCAB = 128
SPECIAL = ["<unk>", "<s>", "<|im_start|>", "<|im_end|>"]
TEXT = ["the quick brown fox jumps over the lazy dog; a model answers the question that the user asks in a few words"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Load the guard of the pretended GPU before any test runs a backward pass."""
    if not missing() and any("gpu" in getattr(item, "fixturenames", ()) for item in session.items):
        load_guard()


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    """A pretended GPU: torch has a device cuda:0 during the test."""
    if reason := missing():
        pytest.skip(reason)
    with pretended_gpu() as one:
        yield one


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of exactly VOCAB tokens. It encodes all ASCII text; any other byte is <unk>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ascii_text = "".join(map(chr, [9, 10, *range(32, 127)]))
    letters = sorted({c for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(ascii_text) for c in word})
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=letters, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=SHAPE["max_position_embeddings"],
    )


@torch.no_grad()
def save_random(model: PreTrainedModel, out: Path, seed: int, dtype: torch.dtype = torch.float16) -> Path:
    """Fill all parameters of a model with random numbers, norms and biases too, and save it with a tokenizer."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name else 0.0
        parameter.copy_(centre + 0.1 * torch.randn(parameter.shape, generator=generator))
    tokenizer = make_tokenizer()
    config = import_config(model, tokenizer, dtype)
    tensors = {name: parameter.to(dtype) for name, parameter in model.named_parameters()}
    pairs = [(TensorSpec.of(name, tensor), tensor) for name, tensor in tensors.items()]
    save_checkpoint(out, config, pairs, extra=tokenizer_files(tokenizer, out))
    return out


@pytest.fixture(scope="session")
def save_model() -> Callable[..., Path]:
    """save_model(model, out, seed, dtype) writes a transformers model with random parameters as a checkpoint."""
    return save_random


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain FP16 llama with 2 blocks, a tied head and no biases."""
    config = LlamaConfig(**SHAPE, tie_word_embeddings=True)
    return save_random(LlamaForCausalLM(config), tmp_path_factory.mktemp("tiny") / "llama", seed=1)


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain FP16 qwen2 with 2 blocks, an untied head, and biases in q, k and v."""
    config = Qwen2Config(**SHAPE, tie_word_embeddings=False)
    return save_random(Qwen2ForCausalLM(config), tmp_path_factory.mktemp("tiny") / "qwen2", seed=2)
