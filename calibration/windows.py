"""Documents and a tokenizer become windows: (n_samples, seq_len) token ids, a loss mask, and a manifest.

Each source gives its share of the tokens, whole documents in a seeded order until the share is full; the documents
follow one another, an end-of-sequence token after each, and are cut into windows without regard to their borders.
Windows that are held out are made in the same way from what follows in every source.
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
from calibration.corpus import Source, digest_documents, load_documents, parse_source
from calibration.document import Document
from calibration.errors import CalibrationError, TooShortError

CHARACTERS = 16  # read at first for each token needed; ordinary text needs about four
SETTLED = 32  # last tokens of a text that was cut short: not trusted, for what follows might have changed them

Encoded = tuple[list[int], list[bool]]
Piece = tuple[list[int], list[bool], str]  # what was used of a document, and where that stands


@dataclass(frozen=True)
class Windows:
    """`ids` (n_samples + held_out, seq_len) int64; `mask`, the same shape, bool: True where a token counts in a loss.

    In a conversation the assistant's tokens count, end-of-turn included; in plain text all do; the start token never.
    `manifest` is plain data for JSON: sources with name, digest, weight, documents, tokens, tokens_counted (that count
    in a loss) and tokens_dropped (encoded but not used; what was never needed was never encoded), the totals, the
    arguments, and a digest of the ids.
    `documents`, the same shape, int64, index `names`, where each document stands; a start token counts to the
    document after it. None where nobody knows.
    """

    ids: Tensor
    mask: Tensor
    manifest: dict[str, Any]
    documents: Tensor | None = None
    names: tuple[str, ...] = ()


@dataclass
class _Share:
    """What one source gives: `pieces` hold `tokens` tokens of `documents` documents, all of its quota. `held_out` of
    them, the last, are not for calibration."""

    source: Source
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
    """Pack `sources` into windows. The same arguments give the same bytes; `held_out` windows more come last, and
    change nothing in those before them.

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
    sources: list[Source], tokenizer: Any, counts: tuple[int, int], body: int, rng: random.Random
) -> list[_Share]:
    """What every source gives to so many windows of `body` tokens, and to so many that are held out."""
    shares: list[_Share] = []
    quotas, held = (_quotas([source.weight for source in sources], count * body) for count in counts)
    for source, quota, more in zip(sources, quotas, held, strict=True):
        documents = load_documents(source.name)
        share = _Share(source, digest_documents(documents), quota + more, more)
        _refuse_twin(share, shares)
        rng.shuffle(documents)
        _fill(share, documents, tokenizer)
        if share.tokens < share.quota:
            raise _too_short(share, sum(counts), body)
        shares.append(share)
    return shares


def _in_order(shares: list[_Share], rng: random.Random) -> list[Piece]:
    """All pieces: those to calibrate on, then those held out, several sources mixed in each of the two."""
    parts = zip(*(_parted(share.pieces, share.quota - share.held_out) for share in shares), strict=True)
    pieces: list[Piece] = []
    for part in parts:
        mixed = [piece for own in part for piece in own]
        if len(shares) > 1:
            rng.shuffle(mixed)
        pieces += mixed
    return pieces


def _parted(pieces: list[Piece], tokens: int) -> tuple[list[Piece], list[Piece]]:
    """The pieces that hold the first so many tokens, and the others; one that lies across is cut."""
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
    """Take documents until the quota is full; the last one is cut, and the rest of it counted as dropped."""
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
    """Ids and mask of a document and the end-of-sequence token after it; a long text only as far as `needed`."""
    end = getattr(tokenizer, "eos_token_id", None)
    if document.messages is not None and (has_template(tokenizer) or document.text is None):
        ids, mask = encode_chat(tokenizer, document.messages, document.source)
        boundary = [] if end is None or end in ids else [end]  # most templates write it themselves
        return ids + boundary, mask + [False] * len(boundary)
    ids = _encode_beginning(tokenizer, document.text or "", needed) + ([] if end is None else [end])
    return ids, [True] * len(ids)


def _encode_beginning(tokenizer: Any, text: str, needed: int) -> list[int]:
    """The first ids of a text: `needed` of them or more, or all it has.

    They equal the first ids of the whole text: it is cut after the last word of a line, so that no word and no run
    of blanks is split, and the tokens next to the cut are not used.
    """
    characters = needed * CHARACTERS
    while (cut := _line_end(text, characters)) < len(text):
        ids = encode_text(tokenizer, text[:cut])[:-SETTLED]
        if len(ids) >= needed:
            return ids
        characters *= 2
    return encode_text(tokenizer, text)


def _line_end(text: str, position: int) -> int:
    """The end of the last visible character before the first newline from `position` on; else of the whole text."""
    newline = text.find("\n", position)
    return len(text) if newline < 0 else len(text[:newline].rstrip())


def _cut(pieces: list[Piece], n_samples: int, body: int, start_token: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask, and which of the pieces every token is of."""
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


def _refuse_twin(share: _Share, others: list[_Share]) -> None:
    for other in others:
        if other.digest == share.digest:
            raise CalibrationError(
                f"{share.source.name}: the same text as {other.source.name}, so it would count twice; "
                f"name it once, with weight {other.source.weight + share.source.weight:g}"
            )


def _too_short(share: _Share, n_samples: int, body: int) -> TooShortError:
    name, had, quota = share.source.name, share.tokens, share.quota
    fitting = n_samples * had // quota
    if had < body <= quota:
        return TooShortError(
            f"{name}: {had} tokens, but one window needs {body}; give more text or a smaller --seq-len", fitting
        )
    whole = quota == n_samples * body
    cure = f"ask for --n-samples {fitting} at most" if fitting else "ask for fewer or shorter windows"
    return TooShortError(
        f"{name}: {had} tokens, but {quota} are needed for {'' if whole else 'its share of '}"
        f"n_samples={n_samples} windows of {body}; {cure}{'' if whole else ', give it less weight'}, or add text",
        fitting,
    )
