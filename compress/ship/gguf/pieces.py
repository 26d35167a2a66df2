"""The vocabulary of a SentencePiece tokenizer: BPE on characters, with bytes for characters that are no tokens.

llama.cpp calls this kind of vocabulary "llama". It has no merges: it joins the two neighbours whose token has the
highest score, the leftmost first, until no two neighbours form a token. Here the score of a token is the negated rank
of its first merge in tokenizer.json. So that no text is split in another way, `check_ids` does what llama.cpp does and
compares token ids. Source: llm_tokenizer_spm_session in llama.cpp's src/llama-vocab.cpp.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any

from compress.checkpoint.gguf.tokenizer import SAMPLE, encode
from compress.core.errors import BadValueError
from compress.ship.gguf.metadata import Metadata

State = dict[str, Any]
Way = tuple[list[State], list[State], bool, str | None]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # types of tokens
SPACE = "▁"  # stands for a space in a token
SPELLED = 256  # tokens of the vocabulary in the text that is compared

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
FIRST_ONLY = "a text that begins with a space, or follows a special token, gets one more space in llama.cpp"


def metaspace(scheme: str) -> State:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}


WAYS: tuple[Way, ...] = (  # normalizer, pre_tokenizer, whether a space is put before a text, where llama.cpp differs
    ([PREPEND, REPLACE], [], True, None),
    ([REPLACE], [SPLIT], False, None),
    ([REPLACE], [], False, None),
    ([], [metaspace("first")], True, FIRST_ONLY),
    ([], [metaspace("always")], True, FIRST_ONLY),
    ([], [metaspace("never")], False, None),
)
UNSUPPORTED = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")  # of the model


def steps(part: Any, key: str) -> list[State]:
    """The steps of a normalizer or pre-tokenizer, of which a sequence has several under `key`."""
    return list(part.get(key, [part])) if part else []


def find_way(state: State) -> tuple[bool, str | None]:
    """Whether a space is put before a text, and where llama.cpp splits text differently, or None.

    Raises ValueError if llama.cpp cannot prepare text in the same way.
    """
    normalizer = steps(state.get("normalizer"), "normalizers")
    pre_tokenizer = steps(state.get("pre_tokenizer"), "pretokenizers")
    for first, second, prefix, difference in WAYS:
        if (normalizer, pre_tokenizer) == (first, second):
            return prefix, difference
    names = ", ".join(step["type"] for step in (*normalizer, *pre_tokenizer)) or "none"
    raise BadValueError(
        f"tokenizer.json: llama.cpp cannot prepare text for this tokenizer with byte_fallback ({names})"
    )


def piece_values(state: State, tokens: list[str], types: list[int]) -> Metadata:
    """The keys of a "llama" vocabulary, without their prefix. `types` are those that every vocabulary has.

    Raises ValueError if llama.cpp has no such vocabulary.
    """
    model = state["model"]
    for key in UNSUPPORTED:
        if model.get(key):
            raise BadValueError(f"tokenizer.json: model.{key} is {model[key]!r}, which a .gguf file cannot store")
    missing = next((one for one in map(byte_token, range(256)) if one not in model["vocab"]), None)
    if missing is not None:
        raise BadValueError(
            f"tokenizer.json: the vocabulary lacks {missing}, and llama.cpp needs a token for each byte"
        )
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    ranks = {"".join(pair): rank for rank, pair in reversed(list(enumerate(merges)))}
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": [float(-ranks.get(token, len(merges))) for token in tokens],
        "token_type": list(piece_types(state, tokens, types, ranks)),
        "merges": [" ".join(pair) for pair in merges],  # `qcompress import` and transformers read them
        "add_space_prefix": find_way(state)[0],
    }


def byte_token(byte: int) -> str:
    return f"<0x{byte:02X}>"


def piece_types(state: State, tokens: list[str], types: list[int], ranks: dict[str, int]) -> Iterator[int]:
    """The type of each token. Added tokens that merges also form, such as runs of spaces, are normal tokens."""
    bytes_, unknown = {byte_token(byte) for byte in range(256)}, state["model"].get("unk_token")
    for token, kind in zip(tokens, types, strict=True):
        if token in bytes_:
            yield BYTE
        elif token == unknown:
            yield UNKNOWN
        else:
            yield NORMAL if kind == USER_DEFINED and token in ranks and SPACE in token else kind


def check_ids(tokenizer: Any, values: Metadata) -> None:
    """Raises ValueError if llama.cpp would split a sample text, or a text of the vocabulary's tokens, differently."""
    count = len(values["tokens"])
    normal = [index for index, kind in enumerate(values["token_type"]) if kind == NORMAL]
    spelled = tokenizer.decode(normal[:: max(1, count // SPELLED)]).strip()
    for text in (*SAMPLE, spelled):
        expected = encode(tokenizer, text)
        ends = expected[:1] * values["add_bos_token"], expected[-1:] * values["add_eos_token"]
        if [*ends[0], *llama_cpp_ids(values, text), *ends[1]] != expected:
            raise BadValueError(f"tokenizer.json: llama.cpp would give other token ids for {text!r:.60}")


def llama_cpp_ids(values: Metadata, text: str) -> list[int]:
    """The token ids that llama.cpp gives a text, without those of its beginning and end."""
    index = {token: place for place, token in enumerate(values["tokens"])}
    whole = [token for token, kind in zip(values["tokens"], values["token_type"], strict=True) if kind == USER_DEFINED]
    pattern = "|".join(re.escape(token) for token in sorted(whole, key=len, reverse=True))
    ids: list[int] = []
    for part in re.split(f"({pattern})", text) if whole else [text]:
        if part in whole:
            ids.append(index[part])
        elif part:
            spaced = " " * values["add_space_prefix"] + part
            ids += join_pieces(list(spaced.replace(" ", SPACE)), index, values["scores"])
    return ids


def join_pieces(pieces: list[str], index: dict[str, int], scores: list[float]) -> list[int]:
    """Join neighbours to tokens, the highest score first and the leftmost of equal ones; the rest become bytes."""
    while True:
        pairs = [
            (scores[index[one + two]], -place)
            for place, (one, two) in enumerate(itertools.pairwise(pieces))
            if one + two in index
        ]
        if not pairs:
            break
        place = -max(pairs)[1]
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    ids = [[index[piece]] if piece in index else [index[byte_token(one)] for one in piece.encode()] for piece in pieces]
    return [one for part in ids for one in part]
