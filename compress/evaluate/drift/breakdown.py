"""Drift by position in a window, by document, and at the worst tokens with their context.

Tokens early in a window have little context, and late tokens have much. Tables, and documents in another language,
drift differently from prose.
"""

from itertools import pairwise
from typing import Any, TypedDict

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.core.rows import BreakdownPart, DocumentRow, GuessRow, PositionRow, WorstRow
from compress.evaluate.drift.metrics import TokenDrift

FIRST_EDGE = 16  # the first range of positions ends here; each later range ends at twice the end of the previous one
DOCUMENTS = 100
CONTEXT_TOKENS = 32  # tokens of context that are shown before a worst token


class Means(TypedDict):
    """Mean values over the tokens of one group, in nats per token."""

    tokens: int
    reference_nll: float
    nll: float
    kl: float


def break_down(drift: TokenDrift, windows: Windows, tokenizer: Any) -> BreakdownPart:
    """Drift by position, by document and at the worst tokens. `documents` is [] if windows have no document names."""
    return {
        "positions": position_rows(drift, windows.ids.shape[1]),
        "documents": document_rows(drift, windows),
        "worst": worst_rows(drift, windows, tokenizer),
    }


def position_rows(drift: TokenDrift, seq_len: int) -> list[PositionRow]:
    """One row per range of positions. Ranges without a scored token are left out."""
    edges = position_edges(seq_len)
    group = torch.bucketize(drift.places[:, 1] + 1, torch.tensor(edges[1:]), right=True)
    ranges = list(pairwise(edges))
    return [
        {"start": ranges[index][0], "end": ranges[index][1], **means}
        for index, means in group_means(drift, group, len(ranges)).items()
    ]


def position_edges(seq_len: int) -> list[int]:
    """The borders of the ranges of positions, in tokens: 0, 16, 32, 64, …, `seq_len`."""
    edges = [0, FIRST_EDGE]
    while edges[-1] < seq_len:
        edges.append(2 * edges[-1])
    return [*edges[:-1], seq_len]


def document_rows(drift: TokenDrift, windows: Windows) -> list[DocumentRow]:
    """One row for each of the DOCUMENTS documents with the highest mean KL, the highest first."""
    if windows.documents is None:
        return []
    group = documents_at(drift.places, windows.documents)
    rows: list[DocumentRow] = [
        {"document": windows.names[index], **means}
        for index, means in group_means(drift, group, len(windows.names)).items()
    ]
    return sorted(rows, key=lambda row: -row["kl"])[:DOCUMENTS]


def documents_at(places: Tensor, documents: Tensor) -> Tensor:
    """The document number of each predicted token, (count,).

    A row of `places` (count, 2) is the window and the position of the logits. The predicted token is one position
    later.
    """
    return documents[places[:, 0], places[:, 1] + 1]


def group_means(drift: TokenDrift, group: Tensor, count: int) -> dict[int, Means]:
    """Number of tokens, mean nlls and mean KL of each group. Groups without tokens are left out.

    `group` (tokens,) int64 assigns each token to a group, 0 to `count` - 1.
    """
    tokens = torch.bincount(group, minlength=count).double()

    def mean(values: Tensor) -> Tensor:
        return torch.zeros_like(tokens).index_add_(0, group, values.double()) / tokens

    reference_nll, nll, kl = mean(drift.reference_nll), mean(drift.nll), mean(drift.kl)
    return {
        index: {
            "tokens": int(tokens[index]),
            "reference_nll": reference_nll[index].item(),
            "nll": nll[index].item(),
            "kl": kl[index].item(),
        }
        for index in range(count)
        if tokens[index]
    }


def worst_rows(drift: TokenDrift, windows: Windows, tokenizer: Any) -> list[WorstRow]:
    """The tokens with the largest KL, as text with context. The largest KL comes first."""
    worst = drift.worst
    if worst is None:
        return []
    rows: list[WorstRow] = []
    for number, index in enumerate(worst.index.tolist()):
        window, position = drift.places[index].tolist()
        ids, document = windows.ids[window, : position + 2].tolist(), None
        if windows.documents is not None:
            document = windows.names[int(windows.documents[window, position + 1])]
        rows.append(
            {
                "kl": drift.kl[index].item(),
                "window": window,
                "position": position + 1,
                "document": document,
                "before": tokenizer.decode(ids[-CONTEXT_TOKENS - 1 : -1]),
                "token": tokenizer.decode(ids[-1:]),
                "reference_nll": drift.reference_nll[index].item(),
                "nll": drift.nll[index].item(),
                "reference": guess_rows(worst.reference_ids[number], worst.reference_probabilities[number], tokenizer),
                "candidate": guess_rows(worst.candidate_ids[number], worst.candidate_probabilities[number], tokenizer),
            }
        )
    return rows


def guess_rows(ids: Tensor, probabilities: Tensor, tokenizer: Any) -> list[GuessRow]:
    """One row per token id: the token as text, and its probability."""
    pairs = zip(ids.tolist(), probabilities.tolist(), strict=True)
    return [{"token": tokenizer.decode([token]), "probability": value} for token, value in pairs]
