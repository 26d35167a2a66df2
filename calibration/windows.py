"""Convert documents to windows: (n_samples, seq_len) token ids, a loss mask, and a manifest.

Each source contributes its share of the tokens, document by document in a seeded order. Documents are joined, with an
end-of-sequence token after each, and cut into windows of equal length. A window may begin inside a document.
Held-out windows are cut in the same way from the text that follows in each source.
"""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from calibration.chat import encode_chat, encode_text, has_template
from calibration.corpus import TextSource, digest_documents, load_documents, parse_source
from calibration.document import Document
from calibration.errors import CalibrationError, TooShortError

CHARACTERS = 16  # characters encoded per needed token, at first; ordinary text has about four characters per token
REACH = 65_536  # characters in which a line should end
SETTLED = 32  # tokens dropped before a cut in a text, because the text after the cut could change them

Encoded = tuple[list[int], list[bool]]
Piece = tuple[list[int], list[bool], str]  # ids and mask of a document's used part, and the document's name


@dataclass(frozen=True)
class Windows:
    """Windows of token ids, and a mask of the tokens that count in a loss.

    `ids` is (n_samples + held_out, seq_len) int64. `mask` has the same shape, bool. In a conversation, the assistant's
    tokens count, end-of-turn tokens included. In plain text, all tokens count. The start token never counts.

    `documents` has the same shape, int64: the document of each token, as an index into `names`. A start token has the
    document of the token after it. `documents` is None if the documents are unknown.

    `manifest` is plain data for JSON: the arguments, a digest of the ids, totals, and one row per source. In a row,
    `tokens_counted` is the number of tokens that count in a loss. `tokens_dropped` were encoded but not used.
    """

    ids: Tensor
    mask: Tensor
    manifest: dict[str, Any]
    documents: Tensor | None = None
    names: tuple[str, ...] = ()


@dataclass
class _Share:
    """The tokens that one source contributes.

    `quota` is the number of tokens to contribute; the last `held_out` of them form held-out windows. `pieces` holds
    the `tokens` tokens taken so far, from `documents` documents. `tokens_dropped` were encoded but not used.
    """

    source: TextSource
    digest: str
    quota: int
    held_out: int
    answers_only: bool
    pieces: list[Piece] = field(default_factory=list)
    documents: int = 0
    tokens: int = 0
    tokens_dropped: int = 0

    def row(self) -> dict[str, Any]:
        return {
            "name": self.source.label,
            "digest": self.digest,
            "weight": self.source.weight,
            "documents": self.documents,
            "tokens": self.tokens,
            "tokens_counted": sum(sum(mask) for _, mask, _ in self.pieces),
            "tokens_dropped": self.tokens_dropped,
        }


def build_windows(
    sources: Sequence[str],
    tokenizer: Any,
    *,
    n_samples: int,
    seq_len: int,
    seed: int = 0,
    start_token: int | None = None,
    held_out: int = 0,
    answers_only: bool = True,
) -> Windows:
    """Pack `sources` into windows. The same arguments give the same bytes.

    A source is "NAME" or "FILE", each optionally with "=WEIGHT". Tokens are divided among sources by weight. `held_out`
    more windows follow the `n_samples` windows and do not change them. A `start_token` begins every window and is one
    of its `seq_len` tokens. A single document is cut into consecutive windows, with the ids of the whole document.
    With `answers_only`, the mask is True only on the assistant's tokens of a conversation. Without it, the mask is True
    on all tokens of text, and the chat template may render a turn differently when later turns follow.

    Raises CalibrationError if text cannot be read or is too short, or if a size is too small.
    """
    body = seq_len - (start_token is not None)
    if n_samples < 1 or body < 1 or held_out < 0 or not sources:
        sizes = f"n_samples={n_samples}, seq_len={seq_len}, held_out={held_out}, {len(sources)} sources"
        raise CalibrationError(
            f"{sizes}: a size is too small; use at least 1 source, 1 sample and 1 token of text per window"
        )
    rng = random.Random(seed)
    texts = [parse_source(source) for source in sources]
    shares = _shares(texts, tokenizer, (n_samples, held_out), body, rng, answers_only)
    pieces = _in_order(shares, rng)
    ids, mask, documents = _cut(pieces, n_samples + held_out, body, start_token)
    names = tuple(name for _, _, name in pieces)
    settings = {"n_samples": n_samples, "seq_len": seq_len, "seed": seed, "start_token": start_token}
    if held_out:
        settings["held_out"] = held_out
    return Windows(ids, mask, _manifest(shares, ids, settings), documents, names)


def _shares(
    sources: list[TextSource],
    tokenizer: Any,
    counts: tuple[int, int],
    body: int,
    rng: random.Random,
    answers_only: bool,
) -> list[_Share]:
    """The tokens that each source contributes. Raises TooShortError if a source has too few tokens.

    `counts` are the numbers of calibration windows and held-out windows. A window has `body` tokens of text.
    """
    shares: list[_Share] = []
    quotas, held = (divide_tokens([source.weight for source in sources], count * body) for count in counts)
    for source, quota, more in zip(sources, quotas, held, strict=True):
        documents = load_documents(source.name)
        share = _Share(source, digest_documents(documents), quota + more, more, answers_only)
        _check_twin(share, shares)
        rng.shuffle(documents)
        _fill(share, documents, tokenizer)
        if share.tokens < share.quota:
            raise too_short(source.name, share.tokens, share.quota, sum(counts), body)
        shares.append(share)
    return shares


def _in_order(shares: list[_Share], rng: random.Random) -> list[Piece]:
    """All pieces for calibration, then all held-out pieces. The pieces of all sources are mixed within each part."""
    parts = zip(*(_split_at(share.pieces, share.quota - share.held_out) for share in shares), strict=True)
    pieces: list[Piece] = []
    for part in parts:
        mixed = [piece for source_pieces in part for piece in source_pieces]
        if len(shares) > 1:
            rng.shuffle(mixed)
        pieces += mixed
    return pieces


def _split_at(pieces: list[Piece], tokens: int) -> tuple[list[Piece], list[Piece]]:
    """The pieces split in two: the first `tokens` tokens, and the rest. A piece across the border is cut."""
    before: list[Piece] = []
    for number, (ids, mask, name) in enumerate(pieces):
        if tokens < len(ids):
            start = [(ids[:tokens], mask[:tokens], name)] if tokens else []
            return before + start, [(ids[tokens:], mask[tokens:], name), *pieces[number + 1 :]]
        before.append(pieces[number])
        tokens -= len(ids)
    return before, []


def divide_tokens(weights: list[float], total: int) -> list[int]:
    """The number of tokens for each weight. The numbers are whole and add up to `total`."""
    ends = [round(total * sum(weights[:count]) / sum(weights)) for count in range(len(weights) + 1)]
    return [end - start for start, end in pairwise(ends)]


def _fill(share: _Share, documents: Iterable[Document], tokenizer: Any) -> None:
    """Add documents to `share` until it has `quota` tokens. The unused rest of the last document counts as dropped."""
    for document in documents:
        needed = share.quota - share.tokens
        if needed == 0:
            return
        ids, mask = encode_document(document, tokenizer, needed, share.answers_only)
        share.pieces.append((ids[:needed], mask[:needed], document.source))
        share.documents += 1
        share.tokens += min(needed, len(ids))
        share.tokens_dropped += max(0, len(ids) - needed)


def encode_document(document: Document, tokenizer: Any, needed: int, answers_only: bool) -> Encoded:
    """The ids and mask of a document, ending with the end-of-sequence token. Long text may stop at `needed` tokens."""
    end = getattr(tokenizer, "eos_token_id", None)
    if document.messages is not None and (has_template(tokenizer) or document.text is None):
        ids, mask = encode_chat(tokenizer, document.messages, document.source, answers_only=answers_only)
        boundary = [] if end is None or end in ids else [end]  # most templates already end with it
        return ids + boundary, mask + [False] * len(boundary)
    ids = _encode_beginning(tokenizer, document.text or "", needed) + ([] if end is None else [end])
    return ids, [True] * len(ids)


def _encode_beginning(tokenizer: Any, text: str, needed: int) -> list[int]:
    """The first ids of a text: at least `needed`, or all ids if the text is shorter.

    They equal the first ids of the whole text, for two reasons: the text is cut at the end of a line, so that no word
    and no run of blanks is split; and the tokens next to the cut are dropped.

    If a line does not end within REACH characters, the cut is inside the line. Then the ids are accepted only if a text
    of twice the length begins with the same ids.
    """
    characters, shorter = needed * CHARACTERS, None
    while True:
        cut, ends_line = _cut_place(text, characters)
        if cut == len(text):
            return encode_text(tokenizer, text)
        ids = encode_text(tokenizer, text[:cut])[:-SETTLED]
        if len(ids) >= needed and (ends_line or ids[:needed] == shorter):
            return ids
        characters, shorter = 2 * characters, ids[:needed]


def _cut_place(text: str, position: int) -> tuple[int, bool]:
    """The place of a cut near `position`, and whether a line or the text ends there.

    If a line or the text ends within REACH characters, the cut is at this end, without trailing blanks. Otherwise the
    cut is at the next blank within REACH characters, or at `position` itself.
    """
    newline = text.find("\n", position, position + REACH)
    if newline >= 0:
        return len(text[:newline].rstrip()), True
    if position + REACH >= len(text):
        return len(text), True
    blank = text.find(" ", position, position + REACH)
    return position if blank < 0 else len(text[:blank].rstrip()), False


def _cut(pieces: list[Piece], n_samples: int, body: int, start_token: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The windows cut from the joined pieces: ids, mask, and each token's piece by index, all (n_samples, seq_len)."""
    ids = torch.tensor([token for piece, _, _ in pieces for token in piece]).view(n_samples, body)
    mask = torch.tensor([flag for _, flags, _ in pieces for flag in flags]).view(n_samples, body)
    lengths = torch.tensor([len(piece) for piece, _, _ in pieces])
    documents = torch.arange(len(pieces)).repeat_interleave(lengths).view(n_samples, body)
    if start_token is None:
        return ids, mask, documents
    start = torch.full((n_samples, 1), start_token)
    ids, mask = torch.cat([start, ids], dim=1), torch.cat([torch.zeros_like(start, dtype=torch.bool), mask], dim=1)
    return ids, mask, torch.cat([documents[:, :1], documents], dim=1)


def _manifest(shares: list[_Share], ids: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "sources": [share.row() for share in shares],
        "tokens": sum(share.tokens for share in shares),
        "tokens_dropped": sum(share.tokens_dropped for share in shares),
        **settings,
        "digest": "sha256:" + hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest(),
    }


def _check_twin(share: _Share, others: list[_Share]) -> None:
    for other in others:
        if other.digest == share.digest:
            raise CalibrationError(
                f"{share.source.name}: is the same text as {other.source.name} and would count twice; "
                f"name only one of them, with weight {other.source.weight + share.source.weight:g}"
            )


def too_short(name: str, available: int, quota: int, n_samples: int, body: int) -> TooShortError:
    """The error for a source that has `available` tokens, but must contribute `quota` tokens.

    `n_samples` windows of `body` tokens each are built from all sources together.
    """
    fitting, alone = n_samples * available // quota, quota == n_samples * body
    facts: dict[str, Any] = {"source": name, "tokens": available, "body": body, "fitting": fitting}
    if alone and available < body:
        return TooShortError(
            f"{name}: the text has {available} tokens, but a window needs {body}; add text or lower --seq-len", **facts
        )
    cure = f"lower --samples to {fitting}" if fitting else "lower --seq-len"
    needs = f"{n_samples} windows of {body} tokens need {quota}" if alone else f"its weight requires {quota} tokens"
    return TooShortError(
        f"{name}: the text has {available} tokens, but {needs}; {cure}{'' if alone else ', lower its weight'}, "
        "or add text",
        **facts,
    )
