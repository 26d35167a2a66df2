"""Our drift beside a plain computation: python scripts/check_drift.py MODEL CANDIDATE TEXT [--windows 12 --seq-len 512]

Plain means: both models whole in memory, transformers' own forward, all logits of a window at once, log_softmax and
kl_div of torch in float64. Every figure may differ by 1e-4 nats, perplexities by 1e-4 of themselves.
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
    """(tokens, 5) of one window, (1, seq) ids: both nlls, KL, same first token, first token among the five."""
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
    """The figures of a row, by the plain computation."""
    models = load_model(reference), load_model(candidate)
    rows = zip(windows.ids, windows.mask, strict=True)
    tokens = torch.cat([plain_tokens(*models, ids[None], mask[1:], vocabulary) for ids, mask in rows])
    ours, theirs, kl, top1, top5 = tokens.mean(0).tolist()
    quantiles = tokens[:, 2].quantile(torch.tensor([0.5, 0.95, 0.99], dtype=torch.float64)).tolist()
    figures = {"reference perplexity": math.exp(ours), "perplexity": math.exp(theirs), "kl": kl}
    figures |= {"perplexity_ratio": math.exp(theirs - ours), "top1": top1, "top5": top5}
    return figures | dict(zip(("kl_median", "kl_p95", "kl_p99"), quantiles, strict=True))


def difference(name: str, plain: float, ours: float) -> float:
    """Of two perplexities relative, of other figures absolute."""
    return abs(ours - plain) / (plain if "perplexity" in name else 1.0)


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("candidate", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("text")
@click.option("--windows", type=click.IntRange(1), default=12, show_default=True)
@click.option("--seq-len", type=click.IntRange(8), default=512, show_default=True)
@json_option
def main(model: Path, candidate: Path, text: str, windows: int, seq_len: int, as_json: bool) -> None:
    read = evaluation_windows(model, [candidate], text, n_samples=windows, seq_len=seq_len)
    reference, row = compare_rows(model, [candidate], read, report=report)
    ours = row | {"reference perplexity": reference["perplexity"]}
    plain = plain_figures(model, candidate, read, row["vocabulary"])
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
