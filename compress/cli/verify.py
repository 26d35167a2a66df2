"""qcompress verify: is a candidate close enough to its reference?"""

from pathlib import Path

import click

from compress.cli.compare import (
    cache_option,
    locate_option,
    refuse_broken,
    seq_len_option,
    show_rows,
    text_option,
    windows_option,
    with_verdicts,
)
from compress.cli.console import emit, json_option, progress, report
from compress.cli.history import history_options, keep_verdicts, need_history
from compress.evaluate.drift.limits import judge_rows


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
    from calibration.start import format_start_token
    from compress.checkpoint.load import open_causal_lm
    from compress.evaluate.drift.compare import drift_row
    from compress.evaluate.drift.windows import evaluation_windows

    need_history(history, tag)
    first, second = (open_causal_lm(path) for path in (reference, candidate))
    read = evaluation_windows(first, [second], text, n_samples=windows, seq_len=seq_len, cache=cache)
    report({"text": text, "windows": windows, "start_token": format_start_token(read.manifest["start_token"])})
    row = drift_row(first, second, read, cache=cache, locate=locate, report=report)
    limits = {"max_kl": max_kl, "max_perplexity_ratio": max_perplexity_ratio}
    rows = with_verdicts([row], judge_rows([row], [], limits))
    if history:
        keep_verdicts(history, tag, "verify", [rows[0] | {"reference_digest": first.digest}])
    if as_json:
        emit(rows[0] | {"limits": limits}, as_json=True)
    else:
        show_rows(rows, as_json=False)
    if "passed" not in rows[0]:
        progress.print("no limit was given, so nothing was verified; see --max-kl and --max-perplexity-ratio")
    refuse_broken(rows)
