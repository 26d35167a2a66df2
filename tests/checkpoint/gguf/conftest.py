"""Small .gguf files, written by the gguf package from tiny transformers models as llama.cpp's converters write them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "pad_token_id": 3,
}
MODEL_TYPES = {"gemma3": "gemma3_text", "qwen35": "qwen3_5_text"}
INTERLEAVED = ("llama", "granite", "smollm3")
OFFSET = ("gemma", "gemma2", "gemma3", "nemotron")
FLOAT32 = GGMLQuantizationType.F32


@dataclasses.dataclass
class Spec:
    """What a .gguf file will hold; a test changes it before `write`."""

    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]
    types: dict[str, GGMLQuantizationType] = dataclasses.field(default_factory=dict)

    def set(self, **values: Any) -> "Spec":
        """Set keys of the architecture; a double underscore stands for a dot."""
        for name, value in values.items():
            self.metadata[f"{self.architecture}.{name.replace('__', '.')}"] = value
        return self

    def write(self, path: Path, parts: int = 1) -> Path:
        """Write one file, or that many parts; returns the first."""
        per_part = -(-len(self.tensors) // parts) if parts > 1 else 0
        writer = GGUFWriter(path, self.architecture, split_max_tensors=per_part)
        for key, value in self.metadata.items():
            add(writer, key, value)
        for name, values in self.tensors.items():
            kind = self.types.get(name, FLOAT32)
            if values.dtype == np.uint8:
                writer.add_tensor(name, values, raw_dtype=kind)
            else:
                writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path if parts == 1 else path.with_name(f"{path.stem}-00001-of-{parts:05d}.gguf")


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


@torch.no_grad()
def random_model(model_type: str, **settings: Any) -> PreTrainedModel:
    """A model whose weights are multiples of 1/1024, so that float16 and 1 + weight are exact."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES | settings), dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name else 0.0
        values = centre + 0.1 * torch.randn(parameter.shape, generator=generator)
        parameter.copy_((values * 1024).round() / 1024)
    return model.eval()


def interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head (first half, second half) as llama.cpp rotates them: pair by pair."""
    rows = [[head * len(values) // heads + part for part in range(len(values) // heads)] for head in range(heads)]
    half = len(values) // heads // 2
    order = [row[index + part * half] for row in rows for index in range(half) for part in range(2)]
    return values[order]


def stored_tensors(model: PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    """Every parameter under its name in a .gguf file, changed as the converter of the architecture changes it."""
    config = model.config
    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    table = get_tensor_name_map(numbers[architecture], config.num_hidden_layers)
    tensors = {}
    for name, parameter in model.named_parameters():
        stored, values = (
            table.get_name(name.replace("dt_bias", "dt_proj.bias"), try_suffixes=(".weight", ".bias")),
            parameter.detach().numpy(),
        )
        if architecture in INTERLEAVED and ".q_proj." in name:
            values = interleave(values, config.num_attention_heads)
        if architecture in INTERLEAVED and ".k_proj." in name:
            values = interleave(values, config.num_key_value_heads)
        if architecture in OFFSET and name.endswith("norm.weight"):
            values = values + np.float32(1)
        tensors[stored] = values.squeeze(1) if values.ndim == 3 else values
    return tensors


def stored_metadata(model: PreTrainedModel, architecture: str, tokenizer: Any) -> dict[str, Any]:
    """The keys that converters write for every architecture, and the vocabulary."""
    config = model.config
    eps = next(
        getattr(config, key)
        for key in ("rms_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_eps")
        if hasattr(config, key)
    )
    norm = "layer_norm_epsilon" if architecture in ("starcoder2", "stablelm", "nemotron") else "layer_norm_rms_epsilon"
    own = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        f"attention.{norm}": eps,
        "vocab_size": config.vocab_size,
    }
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    merges = [" ".join(pair) for pair in _merges(tokenizer)]
    return {
        "general.type": "model",
        "general.name": "tiny",
        **{f"{architecture}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3 if token in tokenizer.all_special_tokens else 1 for token in vocabulary],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 3,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
        "general.quantization_version": 2,
    }


def _merges(tokenizer: Any) -> list[list[str]]:
    import json

    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


@pytest.fixture(scope="session")
def tokenizer(tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="session")
def make_spec(tokenizer: Any) -> Callable[..., tuple[PreTrainedModel, Spec]]:
    """make_spec(architecture, **config): a random model, and the file that its converter would write."""

    def make(architecture: str, **settings: Any) -> tuple[PreTrainedModel, Spec]:
        model = random_model(MODEL_TYPES.get(architecture, architecture), **settings)
        metadata = stored_metadata(model, architecture, tokenizer)
        return model, Spec(architecture, metadata, stored_tensors(model, architecture))

    return make


@pytest.fixture
def llama(make_spec: Callable[..., Any]) -> Spec:
    """A fresh file of a plain llama."""
    return make_spec("llama", rope_parameters={"rope_type": "default", "rope_theta": 5000.0})[1].set(
        rope__freq_base=5000.0, rope__dimension_count=16
    )
