"""The tokenizer for a .gguf file: built from the file, or taken from the original model and compared with the file.

transformers builds a tokenizer from the file's tokens and merges. This module adds what transformers does not read: the
rule that splits text into words, added tokens, and whether a space is put before a text.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from compress.checkpoint.gguf.keys import shown
from compress.checkpoint.gguf.shards import GgufModel
from compress.checkpoint.gguf.splits import NAMES, UNNAMED, SplitRule, apply_rule, byte_letters, drop_space
from compress.checkpoint.gguf.vocabulary import CURE, adds, check_keys, read_tokens
from compress.core.errors import QCompressError

DERIVED = ("gemma", "gemma2", "gemma3")  # transformers derives the merges from the order of tokens

CONTROL, ADDED = 3, (3, 4)  # types of special tokens, and of all tokens that are matched whole in a text
SAMPLED, MIN_REACHABLE = 400, 0.5  # tokens that must encode to themselves; a sound tokenizer reaches nearly all

SAMPLE = (
    "The café's 1,234,567 users paid $3.50 each; we've DON'T I'LL they're.\n\n\tif x >= 10**6: return x_y[0]  # ok",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Où est l'hôtel? ¿Qué pasó en el año 1999?",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "我能吞下玻璃而不伤身体，2025年3月14日。いろはにほへと ちりぬるを カナ。키스의 고유조건은 입술이다.",
    "نص حكيم له سر قاطع وذو شأن عظيم. דג סקרן שט בים. ऋषियों को सताने वाले दुष्ट राक्षसों। เป็นมนุษย์สุดประเสริฐ",
    "e\u0301tude na\u0308ive 👩\u200d🚀🇪🇺😀😀 ½ ² ① Ⅷ ﬁ ＡＢＣ   three   spaces\r\n \u00a0 \u200b end",
)


def read_tokenizer(model: GgufModel, reference: Path | None) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """The tokenizer, and report values about it. Raises QCompressError if its ids would differ from the original's.

    With `reference`, the tokenizer in that folder is taken. It must have the vocabulary of the file.
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
    """How many lines of SAMPLE the file's tokenizer encodes like `original`; {} if the file's cannot be built."""
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


def check_name(model: GgufModel) -> str | None:
    """A warning if ids may differ from the original's, or None. Raises QCompressError for an unknown splitting rule."""
    architecture = model.metadata.get("general.architecture")
    if model.metadata["tokenizer.ggml.model"] != "gpt2":
        derived = architecture in DERIVED and "tokenizer.ggml.merges" not in model.metadata
        return f"the merges follow from the order of tokens: token ids may differ; {CURE}" if derived else None
    name = model.metadata.get("tokenizer.ggml.pre")
    if name in UNNAMED:
        return f"the file has no tokenizer.ggml.pre: token ids may differ from the original's; {CURE}"
    if name not in NAMES:
        raise model.fail(f"tokenizer.ggml.pre is {shown(name)}, an unknown rule for splitting text", CURE)
    return None


def build_tokenizer(model: GgufModel) -> PreTrainedTokenizerBase:
    """The tokenizer that the file describes."""
    byte_level = model.metadata["tokenizer.ggml.model"] == "gpt2"
    rule = NAMES.get(model.metadata.get("tokenizer.ggml.pre") or "", SplitRule("gpt2"))
    ends = {
        "add_bos_token": adds(model, "bos", default=rule.add_bos or not byte_level),
        "add_eos_token": adds(model, "eos", default=False),
    }
    tokenizer = load_gguf(model, {name: True for name, value in ends.items() if value})
    mend_added(model, tokenizer, byte_level=byte_level)
    backend = tokenizer.backend_tokenizer
    if byte_level:
        apply_rule(backend, rule)
    elif model.metadata.get("tokenizer.ggml.add_space_prefix") is False:
        drop_space(backend)
    check_reachable(model, backend)
    return tokenizer


def check_reachable(model: GgufModel, backend: Tokenizer) -> None:
    """Raises QCompressError if most tokens do not encode to themselves, but to several shorter tokens."""
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
    """The text that encodes to `token` alone; None if no text does, because a space is put before each text."""
    if model.metadata["tokenizer.ggml.model"] == "gpt2":
        letters = byte_letters()
        return bytes(letters[letter] for letter in token if letter in letters).decode(errors="replace")
    spaced = model.metadata.get(
        "tokenizer.ggml.add_space_prefix", model.metadata["general.architecture"] not in DERIVED
    )
    if not spaced:
        return token.replace("▁", " ")
    return token[1:].replace("▁", " ") if token.startswith("▁") else None


def mend_added(model: GgufModel, tokenizer: Any, *, byte_level: bool) -> None:
    """Give special and added tokens their ids, and remove tokens beyond the vocabulary.

    transformers spells a token such as <｜User｜> in bytes, and adds it a second time with a new id. It also adds the
    token <|endoftext|> of GPT-2 to vocabularies that lack it, such as that of Llama 3.
    """
    tokens, types = model.metadata["tokenizer.ggml.tokens"], model.metadata.get("tokenizer.ggml.token_type")
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    special = (
        {} if types is None else {index: types[index] == CONTROL for index in np.flatnonzero(np.isin(types, ADDED))}
    )
    lost = [index for index in special if byte_level and backend.token_to_id(tokens[index]) != index]
    kept = [token for token in state["added_tokens"] if token["id"] < len(tokens) and token["id"] not in lost]
    if not lost and len(kept) == len(state["added_tokens"]):
        return
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    mended = [{"id": int(one), "content": tokens[one], **plain, "special": bool(special[one])} for one in lost]
    state["added_tokens"] = sorted(kept + mended, key=lambda token: token["id"])
    if lost:
        state["model"]["vocab"] = {
            token if index in special else spell_bytes(token): index for index, token in enumerate(tokens)
        }
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def spell_bytes(token: str) -> str:
    """A token in the letters of the byte-level alphabet; unchanged if it already has these letters only."""
    letters = byte_letters()
    if all(letter in letters for letter in token):
        return token
    spelling = {byte: letter for letter, byte in letters.items()}
    return "".join(spelling[byte] for byte in token.encode())


def load_gguf(model: GgufModel, settings: dict[str, Any]) -> Any:
    """The tokenizer that transformers builds from the file. It sees the file in a folder without any other file."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "model.gguf").symlink_to(model.files[0].resolve())
        try:
            return PreTrainedTokenizerFast.from_pretrained(
                folder, gguf_file="model.gguf", local_files_only=True, **settings
            )
        except Exception as error:  # the tokenizers package raises nothing narrower
            raise model.fail(f"transformers cannot build its tokenizer ({one_line(error)})", CURE) from None


def load_reference(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises QCompressError if there is none. No code in the folder is run."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise QCompressError(f"{folder}: has no tokenizer.json; give the folder of the original's tokenizer")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise whatever the files provoke
        raise QCompressError(f"{folder}: the tokenizer cannot be read ({one_line(error)}); fetch it again") from None


def check_vocabulary(model: GgufModel, folder: Path, original: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    """Raises QCompressError unless each token of the original has the same id in the file."""
    for token, index in sorted(original.get_vocab().items(), key=lambda item: item[1]):
        stored = tokens[index] if index < len(tokens) else None
        spellings = (stored, (stored or "").replace(" ", "▁"), spell_bytes(stored or ""))
        if token not in spellings:
            raise QCompressError(
                f"{folder}: token {index} is {shown(token)}, but {shown(stored)} in {model.path}; "
                "give the tokenizer of the same model"
            )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
