"""Import a .gguf file as a 16-bit Hugging Face checkpoint with tokenizer and chat template.

transformers dequantizes the tensors and rebuilds config and tokenizer; this needs the `gguf` package.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from compress.checkpoint.finite import cast_finite
from compress.checkpoint.read import files_digest
from compress.checkpoint.record import record_text
from compress.checkpoint.write import TensorSpec, check_room, save_checkpoint
from compress.core.errors import QCompressError

MAGIC = b"GGUF"
MIN_TIED_COSINE = 0.99  # two roundings of one matrix (4 and 6 bits) reach 0.997, different matrices stay far below
ROWS = 4096
WRONG_TOKENIZERS = ("gemma3", "gemma3_text")  # transformers reads a tokenizer that splits text into characters


def import_gguf(file: Path, out: Path, *, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    """Write `file` as a checkpoint in `dtype`; returns a row with file, out, architecture and parameters.

    QCompressError for a file that is no GGUF, an unsupported architecture, or a weight that overflows `dtype`.
    """
    check_magic(file)
    check_room(out, 4 * file.stat().st_size)
    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except ImportError as error:
        raise QCompressError(
            f"{file}: reading it needs the gguf package ({error}): pip install qcompress[gguf]"
        ) from None
    except (ValueError, KeyError, OSError) as error:
        raise QCompressError(f"{file}: cannot be read as a language model ({one_line(error)})") from None
    if model.config.model_type in WRONG_TOKENIZERS:
        raise QCompressError(
            f"{file}: transformers misreads tokenizers of {model.config.model_type} GGUF files; import another"
        )
    cosine = tie_head(model)
    pairs = list(plain_tensors(model, dtype))
    config = import_config(model, tokenizer, dtype)
    record = record_text("import", {"dtype": str(dtype).removeprefix("torch.")}, source=files_digest([file]))
    save_checkpoint(out, config, pairs, extra={"qcompress.json": record, **tokenizer_files(tokenizer, out)})
    parameters = sum(tensor.numel() for _, tensor in pairs)
    row = {"file": str(file), "out": str(out), "architecture": config["architectures"][0], "parameters": parameters}
    return row if cosine is None else row | {"tied": f"head and embedding were one matrix, cosine {cosine:.4f}"}


def check_magic(file: Path) -> None:
    """QCompressError unless the file exists and begins with the GGUF magic bytes."""
    if not file.is_file():
        raise QCompressError(f"{file}: no such file; give a .gguf file")
    with file.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise QCompressError(f"{file}: is no GGUF file: its first four bytes are not GGUF; give a .gguf file")


def tie_head(model: PreTrainedModel) -> float | None:
    """Tie head and embedding if both were rounded from one matrix. The lowest cosine of their rows; None if not tied.

    llama.cpp stores a tied matrix twice, the head in more bits than the embedding, so the head's copy is kept.
    """
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    embedding, head = (module.get_parameter("weight") for module in modules)
    if head is embedding or head.shape != embedding.shape:
        return None
    pairs = zip(embedding.split(ROWS), head.split(ROWS), strict=True)
    cosine = min(torch.cosine_similarity(*rows).mean().item() for rows in pairs)
    if cosine < MIN_TIED_COSINE:
        return None
    model.set_input_embeddings(nn.Embedding.from_pretrained(head.detach()))
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return cosine


def plain_tensors(model: PreTrainedModel, dtype: torch.dtype) -> list[tuple[TensorSpec, Tensor]]:
    """Every parameter once (a tied head is left out) in `dtype`. QCompressError for one that is not finite."""
    pairs = []
    for name, parameter in model.named_parameters():
        pairs.append((TensorSpec(name, dtype, tuple(parameter.shape)), cast_finite(name, parameter.detach(), dtype)))
    return pairs


def import_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of an unquantized checkpoint, without GGUF keys and with the tokenizer's special token ids."""
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(dtype).removeprefix("torch.")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(tokenizer, key) is not None:
            config[key] = getattr(tokenizer, key)
    return json.loads(json.dumps(config, default=str))


def tokenizer_files(tokenizer: PreTrainedTokenizerBase, out: Path) -> dict[str, str]:
    """The tokenizer's files as {name: text}, with a class name that transformers 4 and 5 can both load."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        texts = {file.name: file.read_text(encoding="utf-8") for file in Path(folder).iterdir()}
    settings = json.loads(texts["tokenizer_config.json"])
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    texts["tokenizer_config.json"] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    return texts


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
