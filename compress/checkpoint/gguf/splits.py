"""How a byte-level tokenizer splits text into words: the rules that `tokenizer.ggml.pre` names.

Names and rules: llama.cpp's src/llama-vocab.cpp. The patterns are those of the original tokenizer.json files.
"""

from dataclasses import dataclass
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"

REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"

UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

START = r"[^\r\n\p{L}\p{N}]?"

CASED = (rf"{START}{UPPER}*{LOWER}+", rf"{START}{UPPER}+{LOWER}*")

SPLITS = {
    "gpt2": None,  # the pattern of ByteLevel
    "digits": None,  # each digit alone, then the same pattern
    "llama3": rf"{CONTRACTIONS}|{START}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}",
    "qwen2": rf"{CONTRACTIONS}|{START}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}",
    "qwen35": rf"{CONTRACTIONS}|{START}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{REST}",
    "tekken": rf"{CASED[0]}|{CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}",
    "gpt4o": rf"{CASED[0]}{CONTRACTIONS}?|{CASED[1]}{CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}",
}


@dataclass(frozen=True)
class SplitRule:
    """How text is split into words: by the pattern SPLITS[split].

    With `ignore_merges`, a word that is in the vocabulary stays whole. With `add_bos`, each text begins with the start
    token. With `normalize`, text is normalized to NFC first.
    """

    split: str
    ignore_merges: bool = False
    add_bos: bool = False
    normalize: bool = False


LLAMA3 = SplitRule("llama3", ignore_merges=True, add_bos=True)

NAMES = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0", "lfm2"), LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), SplitRule("llama3")),
    "tekken": SplitRule("tekken", ignore_merges=True, add_bos=True),
    "qwen2": SplitRule("qwen2", normalize=True),
    "qwen35": SplitRule("qwen35", normalize=True),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez", "kormo", "hunyuan", "solar-open"), SplitRule("qwen2")),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), SplitRule("gpt4o")),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), SplitRule("digits")),
    "minerva-7b": SplitRule("digits"),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "gigachat"), SplitRule("gpt2")),
}

UNNAMED = (None, "", "default")  # llama.cpp guesses, and warns


def apply_rule(backend: Tokenizer, rule: SplitRule) -> None:
    """Set the splitting, merging and normalization of a tokenizer to those of `rule`."""
    level = pre_tokenizers.ByteLevel
    if pattern := SPLITS[rule.split]:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, level(add_prefix_space=False, use_regex=False)])
    elif rule.split == "digits":
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, level(add_prefix_space=False)])
    if rule.ignore_merges:
        backend.model.ignore_merges = True
    if rule.normalize:
        backend.normalizer = normalizers.NFC()


@cache
def byte_letters() -> dict[str, int]:
    """The byte that each letter of the byte-level alphabet stands for."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


def drop_space(backend: Tokenizer) -> None:
    """Put no space before a text, and remove none after decoding."""
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(parts)
