"""The vocabulary in a file's metadata: which keys are used, and whether lists and ids fit together."""

from collections import Counter

import numpy as np

from compress.checkpoint.gguf.keys import Key, check_only, elsewhere, harmless, only, shown
from compress.checkpoint.gguf.shards import GgufModel

FIM = ("pre", "suf", "mid", "pad", "rep", "sep")

TOKENIZER_KEYS = {
    "tokenizer.ggml.model": elsewhere("the kind: gpt2 (byte-level BPE) or llama (SentencePiece)"),
    "tokenizer.ggml.pre": elsewhere("the rule that splits text into words"),
    "tokenizer.ggml.tokens": elsewhere("the vocabulary"),
    "tokenizer.ggml.token_type": elsewhere("special and added tokens"),
    "tokenizer.ggml.scores": elsewhere("the order of merges, if the file has no merges"),
    "tokenizer.ggml.merges": elsewhere("the merges"),
    "tokenizer.ggml.bos_token_id": elsewhere("`bos_token_id`"),
    "tokenizer.ggml.eos_token_id": elsewhere("`eos_token_id`"),
    "tokenizer.ggml.eot_token_id": elsewhere("a further `eos_token_id`"),
    "tokenizer.ggml.eom_token_id": elsewhere("a further `eos_token_id`"),
    "tokenizer.ggml.unknown_token_id": elsewhere("`unk_token_id`"),
    "tokenizer.ggml.padding_token_id": elsewhere("`pad_token_id`"),
    "tokenizer.ggml.add_bos_token": elsewhere("whether each text begins with the token of its beginning"),
    "tokenizer.ggml.add_eos_token": elsewhere("whether each text ends with the token of its end"),
    "tokenizer.ggml.add_space_prefix": elsewhere("whether SentencePiece puts a space before a text"),
    "tokenizer.chat_template": elsewhere("the chat template"),
    "tokenizer.ggml.add_sep_token": only(False, meaning="separators are not supported"),
    "tokenizer.ggml.remove_extra_whitespaces": only(False, meaning="removing spaces is not supported"),
    "tokenizer.ggml.normalizer.lowercase": only(False, meaning="lower-casing is not supported"),
    "tokenizer.ggml.precompiled_charsmap": only(meaning="this normalizer is not supported"),
    "tokenizer.ggml.suppress_tokens": only(meaning="suppressed tokens are not supported"),
    "tokenizer.chat_templates": harmless("the names of further templates"),
    "tokenizer.huggingface.json": harmless("the same tokenizer in another form"),
    "tokenizer.ggml.token_type_count": harmless("used by encoders only"),
    **{
        f"tokenizer.ggml.{name}_token_id": harmless("a name of a token, not needed to run the model")
        for name in ("seperator", "mask", "cls", "prefix", "suffix", "middle", *(f"fim_{part}" for part in FIM))
    },
}

SPECIAL = ("bos", "eos", "unknown", "padding", "eot", "eom")

CURE = "give the original's tokenizer with --tokenizer FOLDER"


def read_tokens(model: GgufModel) -> list[str]:
    """The vocabulary. Raises QCompressError if it is missing, has a token twice, or is larger than the embedding."""
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise model.fail("has no list tokenizer.ggml.tokens", "give a file with a vocabulary")
    embedding = model.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding is not None else 0
    if len(tokens) > rows:
        raise model.fail(f"has {len(tokens):,} tokens, but token_embd.weight has {rows:,} rows")
    if len(set(tokens)) != len(tokens):
        twice, _ = Counter(tokens).most_common(1)[0]
        raise model.fail(f"tokenizer.ggml.tokens has {shown(twice)} twice")
    return tokens


def check_keys(model: GgufModel) -> None:
    """Raises QCompressError for an unknown or refused tokenizer key, or a list of the wrong length or type."""
    for name, value in model.metadata.items():
        if not name.startswith("tokenizer.") or name.startswith("tokenizer.chat_template."):
            continue
        key = TOKENIZER_KEYS.get(name)
        if key is None:
            raise model.fail(f"{name} is {shown(value)}: this key is unknown and may change token ids", CURE)
        if key.kind == "only":
            check_refused(model, name, key)
    count = len(model.metadata["tokenizer.ggml.tokens"])
    for name in ("token_type", "scores"):
        values = model.metadata.get(f"tokenizer.ggml.{name}")
        if values is not None and (not isinstance(values, np.ndarray) or len(values) != count):
            raise model.fail(f"tokenizer.ggml.{name} is not one number for each of {count:,} tokens")
    for name in SPECIAL:
        token_id(model, name)
    check_merges(model)
    if not isinstance(model.metadata.get("tokenizer.chat_template", ""), str):
        raise model.fail("tokenizer.chat_template is not text")


def check_refused(model: GgufModel, name: str, key: Key) -> None:
    if not key.values:
        raise model.fail(f"has {name}: {key.meaning}", CURE)
    check_only(model, name, key)


def check_merges(model: GgufModel) -> None:
    """Raises QCompressError unless each merge is two tokens of the vocabulary that together spell a third token."""
    kind = model.metadata.get("tokenizer.ggml.model")
    merges = model.metadata.get("tokenizer.ggml.merges")
    if kind not in ("gpt2", "llama"):
        raise model.fail(f"tokenizer.ggml.model is {shown(kind)}, not gpt2 or llama", CURE)
    if merges is None:
        if kind == "gpt2" or model.metadata.get("tokenizer.ggml.scores") is None:
            raise model.fail("has no tokenizer.ggml.merges" + (" and no scores" if kind == "llama" else ""), CURE)
        return
    if not isinstance(merges, list):
        raise model.fail("tokenizer.ggml.merges is not a list of texts")
    vocabulary = set(model.metadata["tokenizer.ggml.tokens"])
    for index, merge in enumerate(merges):
        parts = merge.split(" ")
        if len(parts) != 2 or not {*parts, "".join(parts)} <= vocabulary:
            raise model.fail(f"tokenizer.ggml.merges[{index}] is {shown(merge)}, not two tokens that join to a third")


def token_id(model: GgufModel, name: str) -> int | None:
    """A special token's id; None if the key is missing. Raises QCompressError if the vocabulary has no such id."""
    key = f"tokenizer.ggml.{name}_token_id"
    value, count = model.metadata.get(key), len(model.metadata["tokenizer.ggml.tokens"])
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise model.fail(f"{key} is {shown(value)}, not one of {count:,} tokens")
    return value


def stop_ids(model: GgufModel) -> list[int]:
    """The ids that end an answer: eos first, then the ends of a turn and of a message."""
    if "tokenizer.ggml.tokens" not in model.metadata:
        return []
    ids = [token_id(model, name) for name in ("eos", "eot", "eom")]
    return list(dict.fromkeys(one for one in ids if one is not None))


def adds(model: GgufModel, name: str, *, default: bool) -> bool:
    """Whether the token `name` (bos or eos) is added to each text.

    Raises QCompressError if the file sets it to true and has no id for the token.
    """
    value = model.metadata.get(f"tokenizer.ggml.add_{name}_token", default)
    if not isinstance(value, bool):
        raise model.fail(f"tokenizer.ggml.add_{name}_token is {shown(value)}, not true or false")
    has_id = token_id(model, name) is not None
    if value and not has_id and f"tokenizer.ggml.add_{name}_token" in model.metadata:
        raise model.fail(f"tokenizer.ggml.add_{name}_token is true, but {name}_token_id is missing")
    return value and has_id
