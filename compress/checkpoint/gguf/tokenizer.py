"""The tokenizer of a .gguf file, or that of the original model, compared with the file's vocabulary.

transformers builds it from tokens and merges. The file only names the rule that splits text into words; where
transformers does not follow that name, it is applied here. Names and rules: llama.cpp's src/llama-vocab.cpp.
"""

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from compress.checkpoint.gguf.keys import Key, check_only, elsewhere, harmless, only, shown
from compress.checkpoint.gguf.shards import GgufModel
from compress.core.errors import QCompressError

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
    "tekken": rf"{CASED[0]}|{CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}",
    "gpt4o": rf"{CASED[0]}{CONTRACTIONS}?|{CASED[1]}{CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}",
}


@dataclass(frozen=True)
class SplitRule:
    """How text is split, whether a word that is a token stays whole, what is put before it, and NFC normalization.

    `warning` states where ids differ from the original's.
    """

    split: str
    ignore_merges: bool = False
    add_bos: bool = False
    normalize: bool = False
    warning: str = ""


LLAMA3 = SplitRule("llama3", ignore_merges=True, add_bos=True)
NAMES = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0", "lfm2"), LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), SplitRule("llama3")),
    "tekken": SplitRule("tekken", ignore_merges=True, add_bos=True),
    "qwen2": SplitRule("qwen2", normalize=True),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez", "kormo", "hunyuan", "solar-open"), SplitRule("qwen2")),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), SplitRule("gpt4o")),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), SplitRule("digits")),
    "smollm": SplitRule("gpt2", warning="a number after two spaces, and numerals such as ², have other token ids"),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "gigachat"), SplitRule("gpt2")),
}
UNNAMED = (None, "", "default")  # llama.cpp guesses, and warns
DERIVED = ("gemma", "gemma2", "gemma3")  # transformers derives the merges from the order of tokens
SAMPLED, MIN_REACHABLE = 400, 0.5  # tokens that must encode to themselves; a sound tokenizer reaches nearly all

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
SAMPLE = (
    "The café's 1,234,567 users paid $3.50 each; we've DON'T I'LL they're.\n\n\tif x >= 10**6: return x_y[0]  # ok",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Où est l'hôtel? ¿Qué pasó en el año 1999?",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "我能吞下玻璃而不伤身体，2025年3月14日。いろはにほへと ちりぬるを カナ。키스의 고유조건은 입술이다.",
    "نص حكيم له سر قاطع وذو شأن عظيم. דג סקרן שט בים. ऋषियों को सताने वाले दुष्ट राक्षसों। เป็นมนุษย์สุดประเสริฐ",
    "e\u0301tude na\u0308ive 👩\u200d🚀🇪🇺😀😀 ½ ² ① Ⅷ ﬁ ＡＢＣ   three   spaces\r\n \u00a0 \u200b end",
)


def read_tokenizer(model: GgufModel, reference: Path | None) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """The tokenizer and what to report about it. QCompressError if its token ids would differ from the original's.

    With a `reference` folder that tokenizer is taken; its vocabulary must be that of the file.
    """
    tokens = read_tokens(model)
    if reference is None:
        check_keys(model)
        warning = check_name(model)
        return build_tokenizer(model), {"warning": warning} if warning else {}
    original = load_reference(reference)
    check_vocabulary(model, reference, original, tokens)
    return original, {"tokenizer": str(reference)} | compare_ids(model, original)


def compare_ids(model: GgufModel, original: PreTrainedTokenizerBase) -> dict[str, Any]:
    """How many lines of SAMPLE the file's own tokenizer encodes like the original's; nothing if it cannot be built."""
    try:
        check_keys(model)
        check_name(model)
        built = build_tokenizer(model)
    except QCompressError:
        return {}
    equal = sum(encode(built, line) == encode(original, line) for line in SAMPLE)
    return {"sample_lines_equal": f"{equal}/{len(SAMPLE)}"}


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def read_tokens(model: GgufModel) -> list[str]:
    """The vocabulary. QCompressError if it is missing, has a token twice, or is larger than the embedding."""
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise model.fail("has no list tokenizer.ggml.tokens", "give a file with a vocabulary")
    embedding = model.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding is not None else 0
    if len(tokens) > rows:
        raise model.fail(f"has {len(tokens):,} tokens, token_embd.weight has {rows:,} rows")
    if len(set(tokens)) != len(tokens):
        twice, _ = Counter(tokens).most_common(1)[0]
        raise model.fail(f"tokenizer.ggml.tokens has {shown(twice)} twice")
    return tokens


def check_keys(model: GgufModel) -> None:
    """QCompressError for an unknown or refused tokenizer key, or a list whose length or values do not fit."""
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
    """QCompressError for a merge that is not two tokens of the vocabulary that join to a third."""
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
    """A special token's id; None without the key. QCompressError if it is not an id of the vocabulary."""
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


def check_name(model: GgufModel) -> str | None:
    """A warning if token ids may differ from the original's. QCompressError if the splitting rule is unknown."""
    architecture = model.metadata.get("general.architecture")
    if model.metadata["tokenizer.ggml.model"] != "gpt2":
        derived = architecture in DERIVED and "tokenizer.ggml.merges" not in model.metadata
        return f"the merges follow from the order of tokens: token ids may differ; {CURE}" if derived else None
    name = model.metadata.get("tokenizer.ggml.pre")
    if name in UNNAMED:
        return f"the file has no tokenizer.ggml.pre: token ids may differ from the original's; {CURE}"
    if name not in NAMES:
        raise model.fail(f"tokenizer.ggml.pre is {shown(name)}: it is unknown how it splits text", CURE)
    warning = NAMES[name].warning
    return f"{warning} than in the original; {CURE}" if warning else None


def build_tokenizer(model: GgufModel) -> PreTrainedTokenizerBase:
    """The tokenizer that the file describes."""
    byte_level = model.metadata["tokenizer.ggml.model"] == "gpt2"
    rule = NAMES.get(model.metadata.get("tokenizer.ggml.pre") or "", SplitRule("gpt2"))
    ends = {
        "add_bos_token": adds(model, "bos", default=rule.add_bos or not byte_level),
        "add_eos_token": adds(model, "eos", default=False),
    }
    tokenizer = load_gguf(model, {name: True for name, value in ends.items() if value})
    drop_surplus(tokenizer, len(model.metadata["tokenizer.ggml.tokens"]))
    backend = tokenizer.backend_tokenizer
    if byte_level:
        apply_rule(backend, rule)
    elif model.metadata.get("tokenizer.ggml.add_space_prefix") is False:
        drop_space(backend)
    check_reachable(model, backend)
    return tokenizer


def check_reachable(model: GgufModel, backend: Tokenizer) -> None:
    """QCompressError if most tokens cannot come out of their own text, so that words fall into single characters."""
    tokens, types = model.metadata["tokenizer.ggml.tokens"], model.metadata.get("tokenizer.ggml.token_type")
    texts = {
        index: token_text(model, token) for index, token in enumerate(tokens) if types is None or types[index] == 1
    }
    longer = {index: text for index, text in texts.items() if text and len(text.strip()) > 1 and "\ufffd" not in text}
    sample = list(longer.items())[:: max(1, len(longer) // SAMPLED)]
    reached = sum(backend.encode(text, add_special_tokens=False).ids == [index] for index, text in sample)
    if reached < MIN_REACHABLE * len(sample):
        raise model.fail(f"only {reached} of {len(sample)} sampled tokens encode to themselves", CURE)


def token_text(model: GgufModel, token: str) -> str | None:
    """The text that should encode to one token; None where a space put before each text is in the way."""
    if model.metadata["tokenizer.ggml.model"] == "gpt2":
        letters = byte_letters()
        return bytes(letters[letter] for letter in token if letter in letters).decode(errors="replace")
    spaced = model.metadata.get(
        "tokenizer.ggml.add_space_prefix", model.metadata["general.architecture"] not in DERIVED
    )
    if not spaced:
        return token.replace("▁", " ")
    return token[1:].replace("▁", " ") if token.startswith("▁") else None


def drop_surplus(tokenizer: Any, count: int) -> None:
    """Remove the tokens that transformers adds beyond the vocabulary, such as GPT-2's <|endoftext|> for Llama 3."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    inside = [token for token in state["added_tokens"] if token["id"] < count]
    if len(inside) < len(state["added_tokens"]):
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state | {"added_tokens": inside}))


def adds(model: GgufModel, name: str, *, default: bool) -> bool:
    """Whether a token is put at an end of each text. QCompressError if it is, but the file does not say which."""
    value = model.metadata.get(f"tokenizer.ggml.add_{name}_token", default)
    if not isinstance(value, bool):
        raise model.fail(f"tokenizer.ggml.add_{name}_token is {shown(value)}, not true or false")
    known = token_id(model, name) is not None
    if value and not known and f"tokenizer.ggml.add_{name}_token" in model.metadata:
        raise model.fail(f"tokenizer.ggml.add_{name}_token is true, but {name}_token_id is missing")
    return value and known


def load_gguf(model: GgufModel, settings: dict[str, Any]) -> Any:
    """transformers' reading of the file, alone in a folder, so that no file beside it is taken for a part of it."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "model.gguf").symlink_to(model.files[0].resolve())
        try:
            return PreTrainedTokenizerFast.from_pretrained(
                folder, gguf_file="model.gguf", local_files_only=True, **settings
            )
        except Exception as error:  # the tokenizers package raises nothing narrower
            raise model.fail(f"no tokenizer can be built from it ({one_line(error)})", CURE) from None


def apply_rule(backend: Tokenizer, rule: SplitRule) -> None:
    """Split as the rule does."""
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
        from tokenizers import decoders

        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(parts)


def load_reference(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. QCompressError if there is none; no code of the folder is run."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise QCompressError(f"{folder}: has no tokenizer.json; give the folder of the original's tokenizer")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise whatever the files provoke
        raise QCompressError(f"{folder}: the tokenizer cannot be read ({one_line(error)}); fetch it again") from None


def check_vocabulary(model: GgufModel, folder: Path, original: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    """QCompressError unless each token of the original has its id in the file too."""
    alphabet = {byte: letter for letter, byte in byte_letters().items()}
    for token, index in sorted(original.get_vocab().items(), key=lambda item: item[1]):
        stored = tokens[index] if index < len(tokens) else None
        spellings = (stored, (stored or "").replace(" ", "▁"), "".join(alphabet[b] for b in (stored or "").encode()))
        if token not in spellings:
            raise QCompressError(
                f"{folder}: token {index} is {shown(token)}, {model.path} has {shown(stored)}; "
                "give the tokenizer of the same model"
            )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
