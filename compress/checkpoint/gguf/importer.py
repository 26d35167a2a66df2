"""Import a .gguf file as a 16-bit Hugging Face checkpoint with tokenizer and chat template.

Headers alone decide whether the file is a whole model that config.json can describe. Then tensors are dequantized one
at a time by the `gguf` package, and every one is compared with the file again before the checkpoint is published.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from compress.checkpoint.digest import files_digest
from compress.checkpoint.finite import cast_finite
from compress.checkpoint.gguf.architectures import Config
from compress.checkpoint.gguf.config import find_architecture, read_config
from compress.checkpoint.gguf.shards import GgufModel
from compress.checkpoint.gguf.tensors import CHUNK, Parameter, gguf_names, match_tensors
from compress.checkpoint.gguf.tokenizer import read_tokenizer
from compress.checkpoint.gguf.vocabulary import stop_ids, token_id
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import record_text
from compress.checkpoint.write import CheckpointWriter, TensorSpec, both_spellings, check_room
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.core.lock import output_lock
from compress.model.blocks import make_skeleton

MIN_TIED_COSINE = 0.99  # two roundings of one matrix (4 and 6 bits) reach 0.997, different matrices stay far below
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # an absent token is none, not the default of a class


def import_gguf(
    file: Path, out: Path, *, dtype: torch.dtype = torch.float16, tokenizer: Path | None = None
) -> dict[str, Any]:
    """Write `file` as a checkpoint in `dtype`; returns a row with file, out, architecture and parameters.

    `file` may be one part of a split model. `tokenizer` is a folder with the tokenizer of the original model. It is
    compared with the file's vocabulary, and written in place of the file's tokenizer. Raises QCompressError if anything
    in the file is missing, unknown or damaged.
    """
    check_package(file)
    with output_lock(out):
        check_room(out, 0)
        model = GgufModel(file)
        config = read_config(model)
        parameters, skeleton = plan_parameters(model, config)
        cosine = tie_head(parameters)
        if cosine is not None:
            del parameters["lm_head.weight"]
            skeleton.config.tie_word_embeddings = True
        chosen, facts = read_tokenizer(model, tokenizer)
        written = import_config(skeleton, chosen, dtype) | stop_token_list(model, tokenizer)
        record = record_text("import", {"dtype": str(dtype).removeprefix("torch.")}, source=files_digest(model.files))
        extra = {"qcompress.json": record, **tokenizer_files(chosen, out)}
        write_parameters(out, list(parameters.values()), written, extra, dtype)
    total = sum(int(np.prod(parameter.shape)) for parameter in parameters.values())
    row = {"file": str(file), "out": str(out), "architecture": written["architectures"][0], "parameters": total}
    tied = {} if cosine is None else {"tied": f"head and embedding were one matrix, cosine {cosine:.4f}"}
    left_out = {"left_out": f"{model.left_out} tensors of multi-token prediction"} if model.left_out else {}
    return row | tied | left_out | facts


def check_package(file: Path) -> None:
    """Raises QCompressError if the gguf package is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise QCompressError(
            f"{file}: .gguf files need the gguf package ({error}): pip install qcompress[gguf]"
        ) from None


def plan_parameters(model: GgufModel, config: Config) -> tuple[dict[str, Parameter], PreTrainedModel]:
    """{name: parameter with the tensor that stores it}, and the model without weights.

    Raises QCompressError unless the file has exactly the tensors of the model.
    """
    prefix, architecture = find_architecture(model)
    check_blocks(model, config["num_hidden_layers"])
    check_sizes(model, prefix, config)
    try:
        skeleton = make_skeleton(dict.fromkeys(TOKEN_IDS) | config)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise model.fail(f"transformers cannot build a model from its metadata ({reason})") from None
    shapes = {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()}
    names = gguf_names(prefix, config["num_hidden_layers"], list(shapes))
    tensors = match_tensors(model, names, shapes)
    heads = {".attn_q.": config["num_attention_heads"], ".attn_k.": config["num_key_value_heads"]}
    parameters = {}
    for name, tensor in tensors.items():
        per_head = next((count for part, count in heads.items() if part in tensor.name), None)
        parameters[name] = Parameter(
            name,
            shapes[name],
            tensor,
            heads=per_head if architecture.interleaved else None,
            offset=architecture.offset if tensor.name.endswith("norm.weight") and "ssm_" not in tensor.name else 0.0,
            **(architecture.layout(tensor.name, config) if architecture.layout else {}),
        )
    note_origin(model, skeleton.config)
    return parameters, skeleton


def check_blocks(model: GgufModel, blocks: int) -> None:
    """Raises QCompressError unless the file has tensors of every block that its metadata counts."""
    numbers = {name.split(".")[1] for name in model.tensors if name.startswith("blk.")}
    if str(blocks - 1) not in numbers or len(numbers) != blocks:
        raise model.fail(f"has tensors of {len(numbers)} blocks, but its metadata gives {blocks}")


def check_sizes(model: GgufModel, prefix: str, config: Config) -> None:
    """Raises QCompressError if a size in the metadata exceeds all sizes of tensors, before memory is allocated."""
    largest = max(size for tensor in model.tensors.values() for size in tensor.shape)
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    sizes = {
        f"{prefix}.embedding_length": config["hidden_size"],
        f"{prefix}.feed_forward_length": config["intermediate_size"],
        f"{prefix}.attention.head_count times the size of a head": config["num_attention_heads"] * width,
        f"{prefix}.shortconv.l_cache": config.get("conv_L_cache", 1),
    }
    for name, size in sizes.items():
        if size > largest:
            raise model.fail(f"{name} is {size:,}, but no tensor has a size above {largest:,}")


def note_origin(model: GgufModel, config: PretrainedConfig) -> None:
    """Add the model's name and the id of the token for unknown text to `config`, after the model type."""
    name = model.metadata.get("general.name")
    notes: Config = {"model_type": config.model_type, "_model_name_or_path": name if isinstance(name, str) else None}
    if "tokenizer.ggml.tokens" in model.metadata:
        notes["unk_token_id"] = token_id(model, "unknown")
    for key, value in notes.items():
        if value is not None:
            setattr(config, key, value)


def stop_token_list(model: GgufModel, reference: Path | None) -> Config:
    """`eos_token_id` as a list, if several tokens end an answer; {} if only one does."""
    ids = stop_ids(model) if reference is None else []
    return {"eos_token_id": ids} if len(ids) > 1 else {}


def tie_head(parameters: dict[str, Parameter]) -> float | None:
    """Tie head and embedding if both were rounded from one matrix. Returns their lowest cosine, or None if they differ.

    llama.cpp stores a tied matrix twice, with more bits in the head than in the embedding. So the parameter of the
    embedding then reads the head's tensor.
    """
    by_tensor = {parameter.tensor.name: parameter for parameter in parameters.values()}
    embedding, head = by_tensor[EMBEDDING], by_tensor.get(HEAD)
    if head is None or head.shape != embedding.shape:
        return None
    cosine = lowest_cosine(embedding, head)
    if cosine < MIN_TIED_COSINE:
        return None
    parameters[embedding.name] = replace(embedding, tensor=head.tensor)
    return cosine


def lowest_cosine(one: Parameter, other: Parameter) -> float:
    """The lowest mean cosine between the rows of two matrices, over parts of CHUNK values."""
    pairs = zip(one.parts(), other.parts(), strict=True)
    cosines = [torch.cosine_similarity(torch.from_numpy(a), torch.from_numpy(b)).mean().item() for a, b in pairs]
    return min(cosines)


def write_parameters(
    out: Path, parameters: list[Parameter], config: Config, extra: dict[str, str], dtype: torch.dtype
) -> None:
    """Write the checkpoint, tensor by tensor. Nothing remains at `out` if it fails."""
    writer = CheckpointWriter(out, [TensorSpec(one.name, Dtype.of(dtype), one.shape) for one in parameters])
    try:
        for parameter in parameters:
            writer.write(parameter.name, parameter.read(dtype))
        writer.publish(both_spellings(config), extra=extra, inspect=lambda folder: compare(folder, parameters, dtype))
    except BaseException:
        writer.discard()
        raise


def compare(folder: Path, parameters: list[Parameter], dtype: torch.dtype) -> None:
    """Compare the written checkpoint with gguf's own dequantization of the file, bit by bit.

    Here a tensor is dequantized before its rows are reordered. `Parameter.read` reorders rows first and works in parts,
    so the comparison finds mistakes in both. Raises ValueError if a bit differs.
    """
    checkpoint = Checkpoint(folder)
    if checkpoint.tensors.keys() != {parameter.name for parameter in parameters}:
        raise ValueError(f"{folder}: the written tensors differ from those of the .gguf file")
    for parameter in parameters:
        written = checkpoint.tensor(parameter.name).reshape(parameter.tensor.shape[0], -1)
        for start, values in reference_rows(parameter):
            values = cast_finite(parameter.label, values, dtype)
            if not torch.equal(written[start : start + len(values)], values):
                raise ValueError(f"{parameter.label}: the written values of {parameter.name} differ from the file")


def reference_rows(parameter: Parameter) -> Iterator[tuple[int, Tensor]]:
    """(first row, float32 values) of each part of a tensor. A tensor with reordered rows or columns is one part."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    tensor, heads = parameter.tensor, parameter.heads
    count, width = tensor.shape[0], tensor.bytes // tensor.rows
    moved = parameter.rows is not None or parameter.columns is not None
    whole = heads is not None or moved or len(tensor.shape) == 1
    step = tensor.rows if whole else max(1, CHUNK // tensor.shape[-1])
    for start in range(0, tensor.rows, step):
        size = min(step, tensor.rows - start) * width
        stored = np.fromfile(tensor.file, np.uint8, size, offset=tensor.offset + start * width).reshape(-1, width)
        values = torch.from_numpy(dequantize(stored, GGMLQuantizationType(tensor.type))) - parameter.offset
        if heads is not None:
            values = values.reshape(heads, count // heads // 2, 2, -1).transpose(1, 2)
        values = values.reshape(count, -1) if whole else values
        if parameter.rows is not None:
            values = values[torch.from_numpy(parameter.rows)]
        if parameter.columns is not None:
            values = values[:, torch.from_numpy(parameter.columns)]
        yield start, torch.from_numpy(np.log(-values.numpy())) if parameter.logarithm else values


def import_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Config:
    """config.json of an unquantized checkpoint, without GGUF keys and with the tokenizer's special token ids."""
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(dtype).removeprefix("torch.")
    for key in TOKEN_IDS:
        if getattr(tokenizer, key) is not None:
            config[key] = getattr(tokenizer, key)
    return json.loads(json.dumps(config, default=str))


def tokenizer_files(tokenizer: PreTrainedTokenizerBase, out: Path) -> dict[str, str]:
    """The tokenizer's files as {name: text}, with a class name that transformers 4 and 5 can both load."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        texts = {file.name: file.read_text(encoding="utf-8") for file in Path(folder).iterdir()}
    settings = json.loads(texts["tokenizer_config.json"])
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    texts["tokenizer_config.json"] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    return texts
