"""Where the drift is: by position in a window, by document, and at the worst tokens, in context.

    positions   [{"start", "end", "tokens", "reference_nll", "nll", "kl"}]      positions start ≤ p < end of the token
    documents   [{"document", "tokens", "reference_nll", "nll", "kl"}]          the furthest from the reference first
    worst       [{"kl", "window", "position", "document", "before", "token", "reference_nll", "nll",
                  "reference", "candidate"}]      the last two: [{"token", "probability"}], the likeliest first

The first positions have little to lean on, the last all of the window; a document in another language or a table
drifts otherwise than prose.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.evaluate.drift.hidden_states import Row
from compress.evaluate.drift.metrics import TokenDrift

FIRST_EDGE = 16  # the first bucket ends there, each next one at twice that
DOCUMENTS = 100
CONTEXT_TOKENS = 32  # shown before a worst token


def break_down(drift: TokenDrift, windows: Windows, tokenizer: Any) -> Row:
    """The three lists; `documents` is empty where the windows do not know theirs."""
    return {
        "positions": position_rows(drift, windows.ids.shape[1]),
        "documents": document_rows(drift, windows),
        "worst": worst_rows(drift, windows, tokenizer),
    }


def position_rows(drift: TokenDrift, seq_len: int) -> list[Row]:
    """A row per bucket of positions that holds a scored token."""
    edges = position_edges(seq_len)
    bucket = torch.bucketize(drift.places[:, 1] + 1, torch.tensor(edges[1:]), right=True)
    about = [{"start": start, "end": end} for start, end in pairwise(edges)]
    return group_rows(drift, bucket, about)


def position_edges(seq_len: int) -> list[int]:
    """0, 16, 32, 64, … and the windows' length."""
    edges = [0, FIRST_EDGE]
    while edges[-1] < seq_len:
        edges.append(2 * edges[-1])
    return [*edges[:-1], seq_len]


def document_rows(drift: TokenDrift, windows: Windows) -> list[Row]:
    """A row per document, the DOCUMENTS with the highest mean KL."""
    if windows.documents is None:
        return []
    about = [{"document": name} for name in windows.names]
    rows = group_rows(drift, documents_at(drift.places, windows.documents), about)
    return sorted(rows, key=lambda row: -row["kl"])[:DOCUMENTS]


def documents_at(places: Tensor, documents: Tensor) -> Tensor:
    """(count,) the document of the token that came at each of (count, 2) places."""
    return documents[places[:, 0], places[:, 1] + 1]


def group_rows(drift: TokenDrift, group: Tensor, about: Sequence[Row]) -> list[Row]:
    """Means over the tokens of each group, (count,) int64. `about` begins the row of each; empty ones are left out."""
    tokens = torch.bincount(group, minlength=len(about)).double()
    columns = {"reference_nll": drift.reference_nll, "nll": drift.nll, "kl": drift.kl}
    means = {
        name: torch.zeros_like(tokens).index_add_(0, group, column.double()) / tokens
        for name, column in columns.items()
    }
    return [
        {**row, "tokens": int(tokens[index]), **{name: mean[index].item() for name, mean in means.items()}}
        for index, row in enumerate(about)
        if tokens[index]
    ]


def worst_rows(drift: TokenDrift, windows: Windows, tokenizer: Any) -> list[Row]:
    """The tokens with the highest KL, the worst first, as a person reads them."""
    if drift.worst is None:
        return []
    found = drift.worst
    rows = []
    for number, index in enumerate(found.index.tolist()):
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
                "reference": spelled(found.reference_ids[number], found.reference_probabilities[number], tokenizer),
                "candidate": spelled(found.candidate_ids[number], found.candidate_probabilities[number], tokenizer),
            }
        )
    return rows


def spelled(ids: Tensor, probabilities: Tensor, tokenizer: Any) -> list[Row]:
    pairs = zip(ids.tolist(), probabilities.tolist(), strict=True)
    return [{"token": tokenizer.decode([token]), "probability": value} for token, value in pairs]
