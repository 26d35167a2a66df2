"""qcompress compare: checkpoints side by side, against one reference."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, json_option, report
from compress.errors import QCompressError

Row = dict[str, Any]
text_option = click.option(
    "--text", default="heldout", show_default=True, help="Text that neither was calibrated on: NAME or FILE."
)
windows_option = click.option("--windows", type=click.IntRange(1), default=24, show_default=True, help="How many.")
seq_len_option = click.option(
    "--seq-len", type=click.IntRange(8), default=512, show_default=True, help="Tokens per window."
)
cache_option = click.option(
    "--reference-cache",
    "cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep there what the reference made of the text, and read it there the next time.",
)
locate_option = click.option(
    "--locate", is_flag=True, help="Also run each block alone on the reference's inputs, and say which stands out."
)


@click.command("compare")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidates", metavar="CANDIDATE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@text_option
@windows_option
@seq_len_option
@cache_option
@locate_option
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write the report there, one HTML file.")
@json_option
def command(
    reference: Path,
    candidates: tuple[Path, ...],
    text: str,
    windows: int,
    seq_len: int,
    cache: Path | None,
    locate: bool,
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare each CANDIDATE with REFERENCE: bytes, bits per weight, perplexity, KL, top-1 and top-5 agreement.

    All are run on the same held-out windows, beginning as the reference wants its windows to begin; ± is one standard
    error, with windows as the sampling unit. KL is KL(reference ‖ candidate) in nats per token; top-5: how often the
    reference's likeliest token is among the candidate's five.

    \b
    qcompress compare smollm2 smollm2-awq smollm2-gptq
    qcompress compare qwen qwen-awq --text notes.txt --windows 64 --html report.html
    """
    from compress.evaluate.compare import compare_rows
    from compress.evaluate.report import write_report
    from compress.evaluate.text import evaluation_windows

    if html and not html.absolute().parent.is_dir():
        raise QCompressError(f"{html}: its directory does not exist; make {html.absolute().parent} first")
    read = evaluation_windows(reference, candidates, text, n_samples=windows, seq_len=seq_len, cache=cache)
    report({"text": text, "windows": windows, "start_token": read.manifest["start"]["token"]})
    rows = compare_rows(reference, candidates, read, cache=cache, locate=locate, report=report)
    if html:
        write_report(html, rows, command=shlex.join(["qcompress", *sys.argv[1:]]))
        report({"report": html})
    emit(rows if as_json else [shown(row) for row in rows], as_json=as_json)
    if locate and not as_json:
        for row in rows[1:]:
            emit(row["blocks"], as_json=False, title=row["name"])


def shown(row: Row) -> Row:
    """A report row as the terminal shows it: the figures that decide, each with its error."""
    candidate = row["role"] == "candidate"
    return {
        "name": row["name"],
        "format": row["format"],
        "method": row["method"] or "–",
        "MB": f"{row['bytes'] / 1e6:,.1f}",
        "bits/weight": f"{row['bits_per_weight']:.2f}",
        "perplexity": with_error(row, "perplexity", 2),
        "ratio": with_error(row, "perplexity_ratio", 3) if candidate else None,
        "KL": with_error(row, "kl", 4) if candidate else None,
        "KL p99": f"{row['kl_p99']:.3f}" if candidate else None,
        "top-1": f"{row['top1']:.1%}" if candidate else None,
        "top-5": f"{row['top5']:.1%}" if candidate else None,
    }


def with_error(row: Row, key: str, digits: int) -> str:
    error = row[f"{key}_se"]
    return f"{row[key]:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
