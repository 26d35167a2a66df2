"""The vocabulary of a .gguf file from tokenizer.json: tokens, types, merges, and the name of the splitting rule.

llama.cpp does not store how text is split into words. It stores a name, and a wrong name gives wrong token ids without
an error. So the name follows from the whole pre-tokenizer in tokenizer.json, and an unknown one is refused.
"""

import json
from functools import cache
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from compress.checkpoint.gguf.splits import NAMES, apply_rule
from compress.core.errors import BadValueError
from compress.ship.gguf.metadata import Metadata
from compress.ship.gguf.pieces import check_ids, find_way, piece_values

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
PREFERRED = ("llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o", "smollm", "gpt-2", "dbrx")
ROLES = {"bos_token_id": "bos", "eos_token_id": "eos", "unk_token_id": "unknown", "pad_token_id": "padding"}


def export_tokens(tokenizer: Any, config: Any) -> Metadata:
    """All metadata keys of the tokenizer.

    Raises ValueError if the tokenizer is not BPE, or splits text in a way that llama.cpp has no name for.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"].get("type") != "BPE":
        raise BadValueError(f"tokenizer.json: {state['model'].get('type')} models cannot be written as .gguf, only BPE")
    pieces = bool(state["model"].get("byte_fallback"))
    values = (piece_values if pieces else byte_level_values)(state, *token_list(state, config.vocab_size))
    for role, name in ROLES.items():
        token = getattr(tokenizer, role, None)
        if token is not None:
            values[f"{name}_token_id"] = int(token)
    around = list(tokenizer("a")["input_ids"])
    values["add_bos_token"] = bool(around) and around[0] == tokenizer.bos_token_id
    values["add_eos_token"] = len(around) > 1 and around[-1] == tokenizer.eos_token_id
    if pieces:
        check_ids(tokenizer, values)
    keys = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    template = getattr(tokenizer, "chat_template", None)
    return keys | ({"tokenizer.chat_template": template} if isinstance(template, str) else {})


def byte_level_values(state: dict[str, Any], tokens: list[str], types: list[int]) -> Metadata:
    """The keys of a byte-level vocabulary, which llama.cpp calls "gpt2", without their prefix."""
    return {
        "model": "gpt2",
        "pre": splitting_name(state),
        "tokens": tokens,
        "token_type": types,
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]],
    }


def differences(tokenizer: Any) -> list[str]:
    """Texts for which llama.cpp gives other token ids, in words: settings that a .gguf file cannot store."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    difference = find_way(state)[1] if state["model"].get("byte_fallback") else None
    keys = ("lstrip", "rstrip", "single_word")
    special = next((token["content"] for token in state["added_tokens"] if any(token.get(key) for key in keys)), None)
    stripped = f"the token {special} takes the blanks around it, which llama.cpp keeps" if special else None
    return [one for one in (difference, stripped) if one is not None]


def token_list(state: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Text and type of the token of each embedding row. Rows without a token get a placeholder."""
    tokens, types = [f"[PAD{index}]" for index in range(rows)], [UNUSED] * rows
    for token, index in state["model"]["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for added in state["added_tokens"]:
        if added["id"] < rows:
            tokens[added["id"]] = added["content"]
            types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return tokens, types


def splitting_name(state: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which a tokenizer.json splits text. Raises ValueError if it has none."""
    stored = (plain(state["pre_tokenizer"]), normalizer(state), bool(state["model"].get("ignore_merges")))
    for name in PREFERRED:
        if stored == signature(name):
            return name
    raise BadValueError("tokenizer.json: llama.cpp has no name for this pre_tokenizer, so it would split text wrongly")


def normalizer(state: dict[str, Any]) -> str:
    """The type of the normalizer; "" for none."""
    return str((state.get("normalizer") or {}).get("type", ""))


@cache
def signature(name: str) -> tuple[str, str, bool]:
    """Pre-tokenizer, normalizer and `ignore_merges` of the tokenizer.json that llama.cpp's `name` stands for."""
    rule = NAMES[name]
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    apply_rule(backend, rule)
    state = json.loads(backend.to_str())
    return plain(state["pre_tokenizer"]), normalizer(state), rule.ignore_merges


def plain(pre_tokenizer: Any) -> str:
    """A pre-tokenizer as comparable text, without settings that do not change token ids."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    kept = [{key: value for key, value in (step or {}).items() if key != "trim_offsets"} for step in steps]
    return json.dumps(kept, sort_keys=True)
