"""qcompress verify: is a candidate close enough to its reference?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from compress.cli.compare import (
    cache_option,
    locate_option,
    seq_len_option,
    shown,
    text_option,
    windows_option,
    with_verdicts,
)
from compress.cli.console import emit, json_option, progress, report
from compress.cli.history import history_options, keep_verdicts, need_history
from compress.errors import GateFailure

CURE = "quantize with another method, a smaller group size or more calibration text, or raise"
CURE_DAMAGE = "its weights are damaged: quantize it again, or fetch it again"


@click.command("verify")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@text_option
@windows_option
@seq_len_option
@click.option("--max-kl", type=click.FloatRange(min=0), help="Limit on the mean KL(reference ‖ candidate), nats.")
@click.option("--max-perplexity-ratio", type=click.FloatRange(min=0), help="Limit on the ratio of perplexities.")
@cache_option
@locate_option
@history_options
@json_option
def command(
    reference: Path,
    candidate: Path,
    text: str,
    windows: int,
    seq_len: int,
    max_kl: float | None,
    max_perplexity_ratio: float | None,
    cache: Path | None,
    locate: bool,
    history: Path | None,
    tag: str | None,
    as_json: bool,
) -> None:
    """Measure how far CANDIDATE has drifted from REFERENCE; exit code 3 when a limit is passed.

    With --locate each block also runs alone on what REFERENCE feeds it, and a block that departs otherwise than the
    rest ends with 3 too: noise leaves the gain of a block near 1, a damaged tensor does not.
    Both may be plain, awq, gptq or compressed-tensors; packed weights are unpacked here, no other library is needed.
    Text that one of them was calibrated on is refused.

    \b
    qcompress verify smollm2 smollm2-awq --max-kl 0.1
    qcompress verify qwen qwen-gptq --text notes.txt --max-kl 0.05 --max-perplexity-ratio 1.05 --json
    qcompress verify qwen qwen-awq --reference-cache qwen-read --locate
    """
    from compress.checkpoint.record import digest
    from compress.evaluate.compare import drift_row
    from compress.evaluate.text import evaluation_windows

    need_history(history, tag)
    read = evaluation_windows(reference, [candidate], text, n_samples=windows, seq_len=seq_len, cache=cache)
    report({"text": text, "windows": windows, "start_token": read.manifest["start"]["token"]})
    row = drift_row(reference, candidate, read, cache=cache, locate=locate, report=report)
    limits = {"kl": max_kl, "perplexity_ratio": max_perplexity_ratio}
    if history:
        keep_verdicts(history, tag, "verify", with_verdicts([row], judge(row, limits), digest(reference)))
    emit({**row, "limits": limits} if as_json else shown(row), as_json=as_json)
    if locate and not as_json:
        emit(row["blocks"], as_json=False)
        progress.print(standing_out(row["blocks"]) or "no block stands out")
    if not locate and all(limit is None for limit in limits.values()):
        progress.print("no limit was given, so nothing was verified; see --max-kl and --max-perplexity-ratio")
    refuse_drift(candidate, row, limits)


def judge(row: dict[str, Any], limits: dict[str, float | None]) -> list[dict[str, Any]]:
    """The verdict on a candidate's limits and, where they were located, its blocks; [] where nothing was asked."""
    from compress.evaluate.limits import judge_rows

    verdicts = judge_rows([row], [], {f"max_{key}": limit for key, limit in limits.items()})
    if "blocks" not in row:
        return verdicts
    reasons = [standing_out(row["blocks"]), *(verdict["reason"] for verdict in verdicts)]
    told = "; ".join(reason for reason in reasons if reason)
    return [{"name": row["name"], "passed": not told, "reason": told or None}]


def refuse_drift(candidate: Path, row: dict[str, Any], limits: dict[str, float | None]) -> None:
    """GateFailure for a block that stands out, else for the first figure above its limit. A limit of None holds."""
    where = standing_out(row.get("blocks") or ())
    if where:
        raise GateFailure(f"{candidate}: {where}; {CURE_DAMAGE}")
    for key, limit in limits.items():
        if limit is not None and not row[key] <= limit:
            option = f"--max-{key.replace('_', '-')}"
            raise GateFailure(f"{candidate}: {key} {row[key]:.4g} is above the limit {limit:g}; {CURE} {option}")


def standing_out(blocks: Sequence[dict[str, Any]]) -> str:
    """The blocks that depart further than the others, "" where none does."""
    found = [f"{row['block']} (gain {row['gain']:.3f}, error {row['error']:.3f})" for row in blocks if row["outlier"]]
    return f"block {', '.join(found)} stands out from the others" if found else ""
