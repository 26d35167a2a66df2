"""qcompress compare: checkpoints side by side, against one reference; and the report of all that is known of them."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import emit, json_option, progress, report
from compress.cli.history import history_options, keep_verdicts, need_history
from compress.core.config import parse_size
from compress.core.errors import GateFailure, QCompressError
from compress.evaluate.drift.limits import judge_rows, told_blocks

if TYPE_CHECKING:
    from compress.checkpoint.read import Checkpoint

Row = dict[str, Any]
PROMPTS = 5
CURE = "another method, smaller groups or more calibration text lose less, `qcompress plan` says what fits a budget"
CURE_DAMAGE = "its weights are damaged: quantize it again, or fetch it again"
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
@click.option("--max-size", help="Budget of a candidate's weight files: 2GB, 1.5GiB, 800MB.")
@click.option("--max-kl", type=click.FloatRange(min=0), help="Limit on the mean KL(reference ‖ candidate), nats.")
@click.option("--max-perplexity-ratio", type=click.FloatRange(min=0), help="Limit on the ratio of perplexities.")
@click.option("--min-retention", type=click.FloatRange(min=0), help="With --eval: least retention of every kind, in %.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write the report there, one HTML file.")
@click.option("--eval", "evaluated", type=click.Path(path_type=Path), help="In the report: eval's --out, or its JSON.")
@click.option("--bench", type=click.Path(path_type=Path), help="In the report: what `bench --json` printed, a file.")
@click.option(
    "--samples",
    type=click.IntRange(0),
    help=f"In the report: so many prompts with all answers, eval's or made now.  [default: {PROMPTS} with a folder]",
)
@history_options
@json_option
def command(
    reference: Path,
    candidates: tuple[Path, ...],
    text: str,
    windows: int,
    seq_len: int,
    cache: Path | None,
    locate: bool,
    max_size: str | None,
    max_kl: float | None,
    max_perplexity_ratio: float | None,
    min_retention: float | None,
    html: Path | None,
    evaluated: Path | None,
    bench: Path | None,
    samples: int | None,
    history: Path | None,
    tag: str | None,
    as_json: bool,
) -> None:
    """Compare each CANDIDATE with REFERENCE: bytes, bits per weight, perplexity, KL, top-1 and top-5 agreement.

    All are run on the same held-out windows, beginning as the reference wants its windows to begin; ± is one standard
    error, with windows as the sampling unit. KL is KL(reference ‖ candidate) in nats per token; top-5: how often the
    reference's likeliest token is among the candidate's five. Ends with exit code 3 when a candidate passes a limit, or
    a block stands out with --locate; the report is written all the same.

    \b
    qcompress compare smollm2 smollm2-awq smollm2-gptq
    qcompress compare qwen qwen-awq --text notes.txt --windows 64 --html report.html
    qcompress compare smollm2 smollm2-awq --html report.html --eval build/eval --bench bench.json --max-size 100MB
    """
    from calibration.start import format_start_token
    from compress.checkpoint.load import open_causal_lm
    from compress.evaluate.drift.compare import compare_rows
    from compress.evaluate.drift.windows import evaluation_windows
    from compress.evaluate.report.collect import load_results

    need_history(history, tag)
    refuse_homeless(
        html, {"--eval": evaluated if min_retention is None else None, "--bench": bench, "--samples": samples}
    )
    if min_retention is not None and not evaluated:
        raise click.UsageError("--min-retention goes with --eval")
    checkpoints = [open_causal_lm(path) for path in (reference, *candidates)]
    known = load_results(checkpoints, evaluated, bench)
    wanted = samples if samples is not None else PROMPTS if evaluated and evaluated.is_dir() else 0
    kept = kept_samples(evaluated, known["retention"], wanted) if html else []
    limits = {
        "max_size": parse_size(max_size) if max_size else None,
        "max_kl": max_kl,
        "max_perplexity_ratio": max_perplexity_ratio,
        "min_retention": min_retention,
    }
    read = evaluation_windows(checkpoints[0], checkpoints[1:], text, n_samples=windows, seq_len=seq_len, cache=cache)
    report({"text": text, "windows": windows, "start_token": format_start_token(read.manifest["start_token"])})
    rows = compare_rows(checkpoints[0], checkpoints[1:], read, cache=cache, locate=locate, report=report)
    verdicts = judge_rows(rows[1:], known["retention"], limits)
    rows = with_verdicts(rows, verdicts)
    keep_verdicts(history, tag, "compare", [row | {"reference_digest": rows[0]["digest"]} for row in rows])
    show_rows(rows, as_json=as_json)
    if html:
        asked = kept if evaluated else new_samples(checkpoints, wanted)
        write_page(html, rows, limits, history, samples=asked, **known)
    refuse_broken(rows)


def refuse_homeless(html: Path | None, parts: dict[str, Any]) -> None:
    """Parts of a report without a report, or a report with no place to go."""
    if html is None and any(parts.values()):
        raise click.UsageError(f"{next(name for name, value in parts.items() if value)} goes with --html")
    if html and not html.absolute().parent.is_dir():
        raise QCompressError(f"{html}: its directory does not exist; make {html.absolute().parent} first")


def with_verdicts(rows: list[Row], verdicts: list[Row]) -> list[Row]:
    """The rows, with `passed` and `reason` where they were judged."""
    judged = {verdict["name"]: verdict for verdict in verdicts}
    return [row | judged.get(row["name"], {}) for row in rows]


def show_rows(rows: list[Row], *, as_json: bool) -> None:
    """The comparison, and of each candidate whose blocks were located a table of them."""
    emit(rows if as_json else [shown(row) for row in rows], as_json=as_json)
    for row in rows if not as_json else ():
        if row.get("blocks"):
            emit(row["blocks"], as_json=False, title=row["name"])
            progress.print(f"{row['name']}: {told_blocks(row) or 'no block stands out'}", markup=False)


def kept_samples(evaluated: Path | None, retention: list[Row], count: int) -> list[Row]:
    """Prompts with everyone's answers, those that eval kept in its folder; read before any model runs."""
    from compress.evaluate.tasks.samples import stored_samples

    if not evaluated or not count:
        return []
    return stored_samples(evaluated if evaluated.is_dir() else evaluated.parent, retention, count)


def new_samples(checkpoints: list["Checkpoint"], count: int) -> list[Row]:
    """Prompts with everyone's answers, made now."""
    from compress.evaluate.tasks.samples import fresh_samples

    return fresh_samples(checkpoints, count, report=report) if count else []


def write_page(html: Path, rows: list[Row], limits: Row, history: Path | None, **parts: Any) -> None:
    """The report; with the trend where there is a history."""
    from compress.evaluate.history.store import read_verdicts
    from compress.evaluate.report import Facts, write_report
    from compress.evaluate.report.trend_section import trend_rows

    asked = {name: limit for name, limit in limits.items() if limit is not None}
    past = trend_rows(read_verdicts(history), rows) if history else []
    command = shlex.join(["qcompress", *sys.argv[1:]])
    write_report(html, Facts(rows, limits=asked, history=past, command=command, **parts))
    report({"report": html})


def refuse_broken(rows: list[Row]) -> None:
    """GateFailure that names every candidate which does not keep its limits, or has a block that stands out."""
    broken = [row for row in rows if not row.get("passed", True)]
    if broken:
        cures = [CURE_DAMAGE if told_blocks(row) else CURE for row in broken]
        told = [f"{row['name']}: {row['reason']}; {cure}" for row, cure in zip(broken, cures, strict=True)]
        raise GateFailure("; ".join(told))


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
        **({"passed": row["passed"]} if "passed" in row else {}),
    }


def with_error(row: Row, key: str, digits: int) -> str:
    error = row[f"{key}_se"]
    return f"{row[key]:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
