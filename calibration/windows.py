"""Documents and a tokenizer become windows: (n_samples, seq_len) token ids, a loss mask, and a manifest.

Each source fills its share of the tokens with whole documents in a seeded order. Documents are joined, with an
end-of-sequence token after each, and cut into windows of equal length; a window may begin inside a document.
Held-out windows are made in the same way from the text that follows in every source.
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

CHARACTERS = 16  # encoded per token needed, at first; ordinary text has about four per token
SETTLED = 32  # last tokens of a shortened text: dropped, because the text after the cut could change them

Encoded = tuple[list[int], list[bool]]
Piece = tuple[list[int], list[bool], str]  # the ids and mask taken from a document, and its place


@dataclass(frozen=True)
class Windows:
    """`ids` (n_samples + held_out, seq_len) int64; `mask`, the same shape, bool: True where a token counts in a loss.

    In a conversation the assistant's tokens count, end of turn included. In plain text all tokens count. The start
    token never counts. `manifest` is plain data for JSON: the arguments, a digest of the ids, totals, and per source
    name, digest, weight, documents, tokens, tokens_counted (in a loss) and tokens_dropped (encoded but not used).
    `documents`, the same shape, int64, are indices into `names`, the documents' places. A start token belongs to the
    document after it. None if the documents are unknown.
    """

    ids: Tensor
    mask: Tensor
    manifest: dict[str, Any]
    documents: Tensor | None = None
    names: tuple[str, ...] = ()


@dataclass
class _Share:
    """The part of one source: `pieces` hold `tokens` tokens of `documents` documents, `quota` at the end.

    The last `held_out` tokens are not used for calibration."""

    source: TextSource
    digest: str
    quota: int
    held_out: int
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
) -> Windows:
    """Pack `sources` into windows. The same arguments give the same bytes.

    `held_out` more windows come last and do not change the windows before them.

    A source is "NAME", "FILE" or either with "=WEIGHT"; weights are shares of the tokens. `start_token` begins every
    window, whose length stays `seq_len`. One document alone is cut into consecutive windows from its beginning, the
    same ids as encoding it whole. Raises CalibrationError for text that cannot be read or is too short, ValueError
    for sizes below 1.
    """
    body = seq_len - (start_token is not None)
    if n_samples < 1 or body < 1 or held_out < 0 or not sources:
        raise ValueError(f"calibration.windows: n_samples={n_samples}, seq_len={seq_len}, {len(sources)} sources")
    rng = random.Random(seed)
    shares = _shares([parse_source(source) for source in sources], tokenizer, (n_samples, held_out), body, rng)
    pieces = _in_order(shares, rng)
    ids, mask, documents = _cut(pieces, n_samples + held_out, body, start_token)
    names = tuple(name for _, _, name in pieces)
    settings = {"n_samples": n_samples, "seq_len": seq_len, "seed": seed, "start_token": start_token}
    if held_out:
        settings["held_out"] = held_out
    return Windows(ids, mask, _manifest(shares, ids, settings), documents, names)


def _shares(
    sources: list[TextSource], tokenizer: Any, counts: tuple[int, int], body: int, rng: random.Random
) -> list[_Share]:
    """The part of every source. `counts` are the numbers of calibration and of held-out windows of `body` tokens."""
    shares: list[_Share] = []
    quotas, held = (_quotas([source.weight for source in sources], count * body) for count in counts)
    for source, quota, more in zip(sources, quotas, held, strict=True):
        documents = load_documents(source.name)
        share = _Share(source, digest_documents(documents), quota + more, more)
        _check_twin(share, shares)
        rng.shuffle(documents)
        _fill(share, documents, tokenizer)
        if share.tokens < share.quota:
            raise _too_short(share, sum(counts), body)
        shares.append(share)
    return shares


def _in_order(shares: list[_Share], rng: random.Random) -> list[Piece]:
    """All pieces: first for calibration, then held out. The sources are mixed within each of the two."""
    parts = zip(*(_parted(share.pieces, share.quota - share.held_out) for share in shares), strict=True)
    pieces: list[Piece] = []
    for part in parts:
        mixed = [piece for source_pieces in part for piece in source_pieces]
        if len(shares) > 1:
            rng.shuffle(mixed)
        pieces += mixed
    return pieces


def _parted(pieces: list[Piece], tokens: int) -> tuple[list[Piece], list[Piece]]:
    """The pieces with the first `tokens` tokens, and the rest; a piece on the border is split."""
    before: list[Piece] = []
    for number, (ids, mask, name) in enumerate(pieces):
        if tokens < len(ids):
            start = [(ids[:tokens], mask[:tokens], name)] if tokens else []
            return before + start, [(ids[tokens:], mask[tokens:], name), *pieces[number + 1 :]]
        before.append(pieces[number])
        tokens -= len(ids)
    return before, []


def _quotas(weights: list[float], total: int) -> list[int]:
    """Whole tokens for each weight, adding up to `total`."""
    ends = [round(total * sum(weights[:count]) / sum(weights)) for count in range(len(weights) + 1)]
    return [end - start for start, end in pairwise(ends)]


def _fill(share: _Share, documents: Iterable[Document], tokenizer: Any) -> None:
    """Take documents until the quota is full. The rest of the last one is counted as dropped."""
    for document in documents:
        needed = share.quota - share.tokens
        if needed == 0:
            return
        ids, mask = _encode(document, tokenizer, needed)
        share.pieces.append((ids[:needed], mask[:needed], document.source))
        share.documents += 1
        share.tokens += min(needed, len(ids))
        share.tokens_dropped += max(0, len(ids) - needed)


def _encode(document: Document, tokenizer: Any, needed: int) -> Encoded:
    """Ids and mask of a document and its end-of-sequence token. A long text is encoded up to `needed` tokens."""
    end = getattr(tokenizer, "eos_token_id", None)
    if document.messages is not None and (has_template(tokenizer) or document.text is None):
        ids, mask = encode_chat(tokenizer, document.messages, document.source)
        boundary = [] if end is None or end in ids else [end]  # most templates add it
        return ids + boundary, mask + [False] * len(boundary)
    ids = _encode_beginning(tokenizer, document.text or "", needed) + ([] if end is None else [end])
    return ids, [True] * len(ids)


def _encode_beginning(tokenizer: Any, text: str, needed: int) -> list[int]:
    """The first ids of a text: at least `needed`, or all of a shorter text.

    They equal the first ids of the whole text. The text is cut at the end of a line, which splits no word and no run
    of blanks, and the tokens next to the cut are dropped.
    """
    characters = needed * CHARACTERS
    while (cut := _line_end(text, characters)) < len(text):
        ids = encode_text(tokenizer, text[:cut])[:-SETTLED]
        if len(ids) >= needed:
            return ids
        characters *= 2
    return encode_text(tokenizer, text)


def _line_end(text: str, position: int) -> int:
    """The end of the line at `position`, without trailing blanks; the end of the text in its last line."""
    newline = text.find("\n", position)
    return len(text) if newline < 0 else len(text[:newline].rstrip())


def _cut(pieces: list[Piece], n_samples: int, body: int, start_token: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask, and the index of every token's piece, each (n_samples, seq_len)."""
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
                f"{share.source.name}: the same text as {other.source.name} would count twice; "
                f"name it once, with weight {other.source.weight + share.source.weight:g}"
            )


def _too_short(share: _Share, n_samples: int, body: int) -> TooShortError:
    name, available, quota = share.source.name, share.tokens, share.quota
    fitting = n_samples * available // quota
    if available < body <= quota:
        return TooShortError(
            f"{name}: {available} tokens, but one window needs {body}; give more text or a smaller --seq-len", fitting
        )
    whole = quota == n_samples * body
    cure = f"use --samples {fitting} at most" if fitting else "use fewer or shorter windows"
    return TooShortError(
        f"{name}: {available} tokens, but {quota} are needed for {'' if whole else 'its share of '}"
        f"{n_samples} windows of {body}; {cure}{'' if whole else ', give it less weight'}, or add text",
        fitting,
    )
