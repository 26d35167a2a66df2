"""Rules C1–C3, C9, S10 and O1–O3: config.json, tokenizer and other files beside the weights.

Every rule is a generator: it takes a Candidate and yields its findings. The consequences that it states were read in
vLLM's source code, version VLLM_VERSION. "(no error)" marks wrong text without an error message.
"""

import numpy as np

from compress.checkpoint.arrays import read_data
from compress.checkpoint.check.candidate import (
    ABSENT,
    QUANT,
    Candidate,
    Findings,
    declared_quantized,
    error,
    short,
    warning,
)
from compress.checkpoint.door.familiar_tokenizer import TOKENIZER_CLASSES
from compress.checkpoint.formats import FORMATS
from compress.checkpoint.read import read_json
from compress.checkpoint.schemes import ct_groups, flatten
from compress.checkpoint.vllm_models import (
    ARCHITECTURES,
    EMBEDDING_BY_CLASS,
    EMBEDDING_BY_NAME,
    NO_FLOAT16,
    NO_PACKED_HEAD,
    VLLM_VERSION,
)

ONLY_NEW_TOKENIZERS = ("TokenizersBackend", "SentencePieceBackend", "PythonBackend", "MistralCommonBackend")


def supported_method(candidate: Candidate) -> Findings:
    """C1: quantization_config names a supported format, or no module is packed."""
    if candidate.checkpoint.quantization is None:
        packed = next(iter(candidate.packed), None)
        if packed is not None:
            suffix = min(candidate.packed[packed])
            stop = f"vLLM loads the model as unquantized and stops: no module or parameter named {packed}.{suffix}"
            yield error(ABSENT, " or ".join(FORMATS), stop, key=f"{QUANT}.quant_method")
    elif candidate.format is None:
        method = candidate.quant.get("quant_method", ABSENT)
        stop = "vLLM stops: unknown quantization method; if none is named, it loads the model as unquantized"
        yield error(method, " or ".join(FORMATS), stop, key=f"{QUANT}.quant_method")


def supported_model(candidate: Candidate) -> Findings:
    """C2: the architecture and its dtype are supported by vLLM."""
    config, quantized = candidate.config, candidate.checkpoint.quantization is not None
    listed = flatten(config.get("architectures"))
    if not any(name in ARCHITECTURES for name in listed):
        stop = f"vLLM {VLLM_VERSION} does not implement it: it stops, or uses the slower transformers backend"
        yield error(", ".join(listed) or ABSENT, "a text model of vLLM", stop, key="architectures")
    dtype = config.get("dtype", config.get("torch_dtype"))
    if dtype is None:
        guess = "vLLM infers the dtype from the tensors, including packed int32 tensors"
        yield error(ABSENT, "float16 or bfloat16", guess, key="dtype")
    elif dtype == "float32" and not quantized:
        yield warning(dtype, "float16 or bfloat16", "vLLM casts every weight to 16 bits when it loads", key="dtype")
    elif dtype not in ("float16", "bfloat16"):
        yield error(dtype, "float16 or bfloat16", "vLLM stops, or runs in another dtype", key="dtype")
    if dtype == "float16" and config.get("model_type") in NO_FLOAT16:
        stop = f"vLLM rejects float16 for {config['model_type']}: activations overflow"
        yield error(dtype, "bfloat16", stop, key="dtype")
    if candidate.table.stacked:
        yield warning("experts", "experts of a known family", "qcompress does not check them", key="architectures")


def single_quantization_config(candidate: Candidate) -> Findings:
    """C3: no other key or file describes the quantization differently."""
    if (candidate.checkpoint.path / "hf_quant_config.json").exists():
        modelopt = "if config.json names no method, vLLM and TensorRT-LLM load the model as a ModelOpt checkpoint"
        yield error("present", "no such file", modelopt, file="hf_quant_config.json")
    text = candidate.config.get("text_config")
    others = {"compression_config": candidate.config.get("compression_config")}
    if isinstance(text, dict):
        others[f"text_config.{QUANT}"] = text.get(QUANT)
    for key, other in others.items():
        if other is not None and other != candidate.checkpoint.quantization:
            yield error(short(other), f"as {QUANT}, or absent", f"some loaders use it, others {QUANT}", key=key)


def consistent_tie_flags(candidate: Candidate) -> Findings:
    """C9: text_config has the same tie_word_embeddings as config.json."""
    text, flag = candidate.config.get("text_config"), candidate.config.get("tie_word_embeddings")
    other = text.get("tie_word_embeddings") if isinstance(text, dict) else None
    if other is not None and flag is not None and other != flag:
        yield error(other, flag, "vLLM may use either value", key="text_config.tie_word_embeddings")


def tie_flag_matches_tensors(candidate: Candidate) -> Findings:
    """C9: tie_word_embeddings and the quantization flags match the head and embedding on disk."""
    table, names, packed = candidate.table, candidate.checkpoint.tensors, candidate.packed
    head, embedding = f"{table.head}.weight", f"{table.embedding}.weight"
    if candidate.tied and head in names:
        yield from redundant_head(candidate, head, embedding)
    if candidate.tied and table.head in packed:
        silent = "vLLM uses the packed head; transformers and older vLLM use the embedding (no error)"
        yield warning("tied, with a packed head", "tie_word_embeddings false", silent, key="tie_word_embeddings")
    if candidate.tied and table.embedding in packed:
        stop = "vLLM stops: a packed embedding has no weight for a tied head"
        yield error(True, False, stop, key="tie_word_embeddings")
    if candidate.format is None:
        return
    on_disk, in_config = table.head in packed, declared_quantized(candidate, table.head)
    if not on_disk and (in_config or candidate.quant.get("lm_head") is True):
        silent = "a loader that follows the flag builds a packed head with uninitialized codes (no error)"
        yield error("quantized head", f"{table.head}.{candidate.format.packed} on disk", silent, key=f"{QUANT}.lm_head")
    elif on_disk and not in_config:
        stop = f"vLLM builds an unquantized head and stops at {table.head}.{candidate.format.packed}"
        yield error("plain head", "a config that quantizes it", stop, key=f"{QUANT}.lm_head")
    elif on_disk:
        yield from packed_head(candidate)
    if table.embedding in packed:
        yield from packed_embedding(candidate)


def redundant_head(candidate: Candidate, head: str, embedding: str) -> Findings:
    """A head that is stored although config.json ties it to the embedding."""
    tensors = candidate.checkpoint.tensors
    if embedding not in tensors:
        return
    same = tensors[head].shape == tensors[embedding].shape and tensors[head].dtype == tensors[embedding].dtype
    if same and np.array_equal(read_data(head, tensors[head]), read_data(embedding, tensors[embedding])):
        yield warning(
            "stored twice", "the embedding only", "the model works, but its file is larger than needed", tensor=head
        )
    else:
        silent = "transformers and older vLLM use the embedding as the head and ignore this tensor (no error)"
        yield error("tie_word_embeddings true", f"no {head}, or false", silent, key="tie_word_embeddings")


def packed_head(candidate: Candidate) -> Findings:
    """A packed head that vLLM or transformers cannot load."""
    rows, model_type = candidate.table.vocabulary.out, candidate.config.get("model_type")
    assert candidate.format is not None
    if candidate.format.name != "compressed-tensors" and rows % 64:
        stop = "vLLM pads the vocabulary to a multiple of 64 and stops: size mismatch"
        yield error(rows, "a multiple of 64", stop, key="vocab_size")
    if candidate.format.name != "compressed-tensors":
        unset = "transformers packs only the linears of the blocks, so the head gets random weights"
        yield warning("packed head", "compressed-tensors, for transformers", unset, tensor=candidate.table.head)
    if model_type in NO_PACKED_HEAD:
        stop = f"vLLM's {model_type} has no quantized head and stops at the packed tensors"
        yield error("packed head", "a plain head", stop, tensor=candidate.table.head)


def packed_embedding(candidate: Candidate) -> Findings:
    """A packed embedding that vLLM or transformers cannot load."""
    model_type, name = candidate.config.get("model_type"), candidate.table.embedding
    stop = "vLLM builds an unquantized embedding and stops at the packed tensors"
    assert candidate.format is not None
    if candidate.format.name != "compressed-tensors":
        yield error(candidate.format.name, "compressed-tensors", stop, tensor=name)
    elif model_type not in EMBEDDING_BY_CLASS:
        yield error(model_type, f"one of {', '.join(sorted(EMBEDDING_BY_CLASS))}", stop, key="model_type")
    elif model_type not in EMBEDDING_BY_NAME:
        targets = [flatten(group.get("targets")) for group in ct_groups(candidate.quant).values()]
        if not any("Embedding" in listed for listed in targets):
            yield error(targets, 'the class "Embedding"', stop, key=f"{QUANT}.config_groups")
    scheme = candidate.schemes[name]
    if scheme and not scheme.sym:
        asymmetric = "vLLM's lookup has no zero points: it stops at the tensor, or reads uninitialized memory"
        yield error("asymmetric", "symmetric true", asymmetric, tensor=name)
    gpu = "vLLM's lookup needs Triton, which its CPU build lacks; transformers 5.19 cannot load it"
    yield warning("packed embedding", "a plain embedding, unless vLLM runs on a GPU", gpu, tensor=name)
    if not declared_quantized(candidate, name):
        yield error("plain embedding", "a group that targets it", stop, key=f"{QUANT}.config_groups")


def no_unread_keys(candidate: Candidate) -> Findings:
    """S10: no key describes a transformation of the weights that vLLM ignores."""
    for key in ("rotation", "activation", "transform_config"):
        if candidate.quant.get(key):
            silent = "vLLM ignores this key and does not undo the transformation of the weights (no error)"
            row = warning if key == "transform_config" else error
            yield row(short(candidate.quant[key]), "absent", silent, key=f"{QUANT}.{key}")


def rope_in_both_spellings(candidate: Candidate) -> Findings:
    """O1: rope_theta and rope_scaling repeat rope_parameters, for loaders with transformers 4."""
    config = candidate.config
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    theta = rope.get("rope_theta")
    silent = "loaders with transformers 4 use 10000 (no error)"
    if theta is not None and config.get("rope_theta") != theta:
        row = error if "rope_theta" in config or theta != 10000 else warning
        yield row(config.get("rope_theta", ABSENT), theta, silent, key="rope_theta")
    if rope.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
        unscaled = "loaders with transformers 4 do not scale the positions (no error)"
        yield error(ABSENT, short(rope), unscaled, key="rope_scaling")


def dtype_in_both_spellings(candidate: Candidate) -> Findings:
    """O2: torch_dtype equals dtype."""
    dtype, old = candidate.config.get("dtype"), candidate.config.get("torch_dtype")
    if dtype is not None and old is None:
        yield warning(ABSENT, dtype, "loaders with transformers 4 use float32", key="torch_dtype")
    elif dtype is not None and old != dtype:
        yield error(old, dtype, "some loaders use torch_dtype, others dtype", key="torch_dtype")


def is_tokenizer_class(name: str) -> bool:
    """Whether transformers 5 has a tokenizer of this name."""
    if name in TOKENIZER_CLASSES:
        return True
    import transformers

    return hasattr(transformers, name)


def tokenizer_for_both_versions(candidate: Candidate) -> Findings:
    """O3: there is a tokenizer, of a class that both transformers 4 and 5 can load."""
    path = candidate.checkpoint.path
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")):
        yield warning(
            ABSENT, "tokenizer.json", "vLLM stops unless --tokenizer names another tokenizer", file="tokenizer.json"
        )
    settings = path / "tokenizer_config.json"
    if not settings.is_file():
        return
    name = read_json(settings).get("tokenizer_class")
    key = "tokenizer_config.json: tokenizer_class"
    if name in ONLY_NEW_TOKENIZERS:
        stop = f"loaders with transformers 4 stop: Tokenizer class {name} does not exist"
        yield error(name, "PreTrainedTokenizerFast", stop, key=key)
    elif isinstance(name, str) and not is_tokenizer_class(name):
        stop = "transformers 5 has no such class: it stops, or uses the model's default tokenizer"
        yield warning(name, "PreTrainedTokenizerFast", stop, key=key)
