"""Compare the drift computation with a plain one: python scripts/check_drift.py MODEL CANDIDATE TEXT

The plain computation has both whole models in memory, and computes all logits of a window at once with transformers.
Then it uses log_softmax and kl_div of torch in float64. A figure may differ by 1e-4, and a perplexity by a factor of
1 ± 1e-4. If a figure differs more, the exit code is 3.
"""

import math
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from calibration.windows import Windows
from compress.checkpoint.load import load_model
from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.windows import evaluation_windows

Row = dict[str, Any]
TOLERANCE = 1e-4


@torch.no_grad()
def plain_tokens(reference: Any, candidate: Any, ids: Tensor, scored: Tensor, vocabulary: int) -> Tensor:
    """The figures of each token in one window of ids (1, seq), as (tokens, 5).

    They are: nll of the reference, nll of the candidate, KL, and whether the reference's most likely token is the most
    likely one, or among the five most likely ones, of the candidate.
    """
    ours, theirs = (
        model(ids, use_cache=False).logits[0, :-1, :vocabulary].double().log_softmax(-1)[scored]
        for model in (reference, candidate)
    )
    tokens = ids[0, 1:][scored][:, None]
    first = ours.argmax(-1, keepdim=True)
    return torch.stack(
        [
            -ours.gather(1, tokens)[:, 0],
            -theirs.gather(1, tokens)[:, 0],
            kl_div(theirs, ours, reduction="none", log_target=True).sum(-1),
            (theirs.argmax(-1, keepdim=True) == first)[:, 0].double(),
            (theirs.topk(5).indices == first).any(-1).double(),
        ],
        dim=1,
    )


def plain_figures(reference: Path, candidate: Path, windows: Windows, vocabulary: int) -> Row:
    """The figures of a `CompareRow`, by the plain computation."""
    models = load_model(reference), load_model(candidate)
    rows = zip(windows.ids, windows.mask, strict=True)
    tokens = torch.cat([plain_tokens(*models, ids[None], mask[1:], vocabulary) for ids, mask in rows])
    ours, theirs, kl, top1, top5 = tokens.mean(0).tolist()
    quantiles = tokens[:, 2].quantile(torch.tensor([0.5, 0.95, 0.99], dtype=torch.float64)).tolist()
    figures = {"reference perplexity": math.exp(ours), "perplexity": math.exp(theirs), "kl": kl}
    figures |= {"perplexity_ratio": math.exp(theirs - ours), "top1": top1, "top5": top5}
    return figures | dict(zip(("kl_median", "kl_p95", "kl_p99"), quantiles, strict=True))


def difference(name: str, plain: float, ours: float) -> float:
    """The difference of two figures: relative for perplexities, absolute for all others."""
    return abs(ours - plain) / (plain if "perplexity" in name else 1.0)


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("candidate", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("text")
@click.option("--samples", type=click.IntRange(1), default=12, show_default=True, help="Number of windows of TEXT.")
@click.option("--seq-len", type=click.IntRange(8), default=512, show_default=True, help="Tokens per window.")
@json_option
def main(model: Path, candidate: Path, text: str, samples: int, seq_len: int, as_json: bool) -> None:
    windows = evaluation_windows(model, [candidate], text, n_samples=samples, seq_len=seq_len)
    reference, row = compare_rows(model, [candidate], windows, report=report)
    ours = row | {"reference perplexity": reference["perplexity"]}
    plain = plain_figures(model, candidate, windows, row["vocabulary"])
    rows = []
    for name, value in plain.items():
        apart = difference(name, value, ours[name])
        rows.append(
            {
                "name": name,
                "plain": value,
                "ours": ours[name],
                "difference": apart,
                "target_at_most": TOLERANCE,
                "met": apart <= TOLERANCE,
            }
        )
    emit(rows, as_json=as_json)
    if not all(row["met"] for row in rows):
        raise click.exceptions.Exit(3)


if __name__ == "__main__":
    main()
