"""config.json from the metadata of a .gguf file: every key of its architecture is read, or the file is refused."""

import numpy as np

from compress.checkpoint.gguf.architectures import ARCHITECTURES, Architecture, Config
from compress.checkpoint.gguf.keys import REQUIRED, Key, check_only, optional_count, read_value, shown
from compress.checkpoint.gguf.rope import rope_parameters
from compress.checkpoint.gguf.shards import GgufModel

MAX_BLOCKS = 512  # llama.cpp's limit

OTHER_PROGRAMS = ("adapter", "clip", "diffusion", "xielu")  # namespaces of llama.cpp that change a model


def find_architecture(model: GgufModel) -> tuple[str, Architecture]:
    """The name of the architecture, and its row in ARCHITECTURES.

    Raises QCompressError for an adapter, another kind of file, or an unknown architecture.
    """
    kind = model.metadata.get("general.type", "model")
    if kind != "model":
        raise model.fail(f"general.type is {kind!r}, not model", "import the model itself")
    name = model.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise model.fail(f"the architecture {shown(name)} cannot be imported", f"give a file of one of {supported}")
    return name, ARCHITECTURES[name]


def read_config(model: GgufModel) -> Config:
    """The keys of config.json that the file describes.

    Raises QCompressError if a metadata key is unknown or has a bad value.
    """
    prefix, architecture = find_architecture(model)
    config: Config = {"model_type": architecture.model_type}
    for name in REQUIRED:
        if f"{prefix}.{name}" not in model.metadata:
            raise model.fail(f"lacks the metadata key {prefix}.{name}")
    check_namespaces(model, prefix)
    for name, key in architecture_keys(model, prefix, architecture).items():
        if key.kind == "only":
            check_only(model, name, key)
        elif key.config is not None:
            config[key.config] = read_value(model, name, key)
    check_norm(model, prefix, architecture)
    if config["num_hidden_layers"] > MAX_BLOCKS:
        raise model.fail(f"{prefix}.block_count is {config['num_hidden_layers']:,}, more than {MAX_BLOCKS}")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config |= vocabulary(model, config)
    size = head_size(model, prefix, architecture, config)
    config |= {"head_dim": size} if architecture.head_dim else {}
    config |= rotary(model, prefix, architecture, size)
    config |= {key: tensor in model.tensors for key, tensor in architecture.switches.items()}
    config["tie_word_embeddings"] = "output.weight" not in model.tensors
    return config | (architecture.finish(model, config) if architecture.finish else {})


def check_namespaces(model: GgufModel, prefix: str) -> None:
    """Raises QCompressError for a metadata key of another architecture. Notes such as quantize.* are harmless."""
    from gguf.constants import MODEL_ARCH_NAMES

    for name in model.metadata:
        space = name.partition(".")[0]
        if space != prefix and (space in OTHER_PROGRAMS or space in MODEL_ARCH_NAMES.values()):
            raise model.fail(f"has the metadata key {name}, but its architecture is {prefix}", "import another model")


def architecture_keys(model: GgufModel, prefix: str, architecture: Architecture) -> dict[str, Key]:
    """{metadata key of this architecture: its row in the tables}. Raises QCompressError for a key without a row."""
    names = [name for name in model.metadata if name.startswith(f"{prefix}.")]
    for name in names:
        if name.removeprefix(f"{prefix}.") not in architecture.keys:
            value = shown(model.metadata[name])
            raise model.fail(f"{name} is {value}: this key is unknown and may change the model", "import another model")
    return {name: architecture.keys[name.removeprefix(f"{prefix}.")] for name in names}


def check_norm(model: GgufModel, prefix: str, architecture: Architecture) -> None:
    """Raises QCompressError if the file lacks the epsilon of its norms."""
    name = next(f"{prefix}.{name}" for name, key in architecture.keys.items() if key.kind == "epsilon")
    if name not in model.metadata:
        raise model.fail(f"lacks the metadata key {name}")


def vocabulary(model: GgufModel, config: Config) -> Config:
    """`vocab_size`, the number of rows of the embedding. Raises QCompressError if the metadata contradicts it."""
    embedding = model.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise model.fail("lacks the tensor token_embd.weight with two dimensions")
    rows = embedding.shape[0]
    if config.get("vocab_size", rows) != rows:
        raise model.fail(f"token_embd.weight has {rows:,} rows, but vocab_size is {config['vocab_size']:,}")
    return {"vocab_size": rows}


def head_size(model: GgufModel, prefix: str, architecture: Architecture, config: Config) -> int:
    """The number of channels of a head. Raises QCompressError if config.json cannot express it."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    stated = optional_count(model, f"{prefix}.attention.key_length")
    if stated is None and architecture.head_dim and not architecture.partial:
        stated = optional_count(model, f"{prefix}.rope.dimension_count")
    size = stated or hidden // heads
    if not architecture.head_dim and (size != hidden // heads or hidden % heads):
        raise model.fail(f"{heads} heads of {size} channels differ from {prefix}.embedding_length {hidden}")
    value = optional_count(model, f"{prefix}.attention.value_length") or size
    if value != size:
        raise model.fail(f"{prefix}.attention.value_length is {value}, but keys have {size}", "import another model")
    if heads % one_kv(model, prefix, config):
        raise model.fail(f"{heads} heads are not a multiple of {prefix}.attention.head_count_kv")
    return size


def one_kv(model: GgufModel, prefix: str, config: Config) -> int:
    """The number of key-value heads in a block. Blocks without attention, which have 0, do not count."""
    heads = model.metadata.get(f"{prefix}.attention.head_count_kv")
    return max(1, int(max(heads))) if isinstance(heads, np.ndarray) and len(heads) else config["num_key_value_heads"]


def rotary(model: GgufModel, prefix: str, architecture: Architecture, size: int) -> Config:
    """`rope_parameters` and, if only a part of a head is rotated, `partial_rotary_factor`: the rotated share.

    transformers reads `partial_rotary_factor` at the top level of config.json too. Raises QCompressError if the
    metadata rotates a part of a head, but the architecture always rotates all of it.
    """
    channels = optional_count(model, f"{prefix}.rope.dimension_count") or size
    if channels % 2 or channels > size or (channels != size and not architecture.partial):
        raise model.fail(f"{prefix}.rope.dimension_count is {channels}, but heads have {size} channels")
    parameters = rope_parameters(model, prefix, channels)
    share = {"partial_rotary_factor": channels / size} if architecture.partial else {}
    return {"rope_parameters": parameters | share, **share}
