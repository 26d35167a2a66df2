"""qcompress verify: measure the drift of a candidate from its reference, and check limits."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from compress.cli.compare import show_rows
from compress.cli.console import emit, progress, report
from compress.cli.history import append_history, check_history_options, history_options
from compress.cli.model_path import MODEL
from compress.cli.options import Command, json_option, make_settings, settings_options
from compress.evaluate.drift.limits import add_verdicts, check_verdicts, make_verdicts
from compress.evaluate.drift.settings import DriftLimits, DriftSettings


@click.command("verify", cls=Command)
@click.argument("reference", type=MODEL)
@click.argument("checkpoint", metavar="CKPT", type=MODEL)
@settings_options(DriftSettings, DriftLimits)
@history_options
@json_option
def command(
    reference: Path, checkpoint: Path, history: Path | None, tag: str | None, as_json: bool, **options: Any
) -> None:
    """Measure how far CKPT has drifted from REFERENCE. Exit code 3 if a limit is broken.

    Drift is the mean KL divergence of the next-token probabilities, in nats per token. Both checkpoints may be 16-bit,
    awq, gptq or compressed-tensors. Text that was used to calibrate either checkpoint is refused. With --locate, each
    block also runs alone, and a damaged block causes exit code 3.

    \b
    qcompress verify smollm2 smollm2-awq --max-kl 0.1
    qcompress verify qwen qwen-gptq --eval-text notes.txt --max-kl 0.05 --max-perplexity-ratio 1.05 --json
    qcompress verify qwen qwen-awq --reference-cache qwen-states --locate
    """
    from compress.checkpoint.load import open_causal_lm
    from compress.evaluate.drift.job import measure_drift

    check_history_options(history, tag)
    limits = asdict(make_settings(DriftLimits, options))
    checkpoints = [open_causal_lm(path) for path in (reference, checkpoint)]
    rows = measure_drift(checkpoints, make_settings(DriftSettings, options), report)
    rows = add_verdicts(rows, make_verdicts(rows[1:], [], limits))
    digests = {f"reference_{key}": dict(rows[0])[key] for key in ("digest", "small_files_digest")}
    append_history(history, tag, "verify", [{**rows[1], **digests}])
    if as_json:
        emit({**rows[1], "limits": limits}, as_json=True)
    else:
        show_rows(rows)
    if "passed" not in rows[1]:
        progress.print("No limit was set, so nothing was verified. Set --max-kl or --max-perplexity-ratio.")
    check_verdicts(rows)
