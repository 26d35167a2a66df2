"""qcompress bench: measure speed and memory of checkpoints, and predict the hardware that they fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import emit, report, results
from compress.cli.history import append_history, check_history_options, history_options
from compress.cli.model_path import MODEL
from compress.cli.options import Command, json_option, make_settings, settings_options
from compress.core.errors import QCompressError
from compress.core.units import format_bytes
from compress.evaluate.speed.settings import Prediction, Resources, Timing
from compress.evaluate.speed.words import notes, request_text

if TYPE_CHECKING:
    from compress.core.rows import CapacityRow, SpeedRow

Row = Mapping[str, Any]
THROUGHPUTS = (  # columns and keys
    ("decode throughput", "decode_throughput"),
    ("output throughput", "output_throughput"),
    ("total token throughput", "total_token_throughput"),
)


@click.command("bench", cls=Command)
@click.argument("checkpoints", metavar="CKPT...", nargs=-1, required=True, type=MODEL)
@settings_options(Timing, Resources, Prediction)
@history_options
@json_option
def command(
    checkpoints: tuple[Path, ...], history: Path | None, tag: str | None, as_json: bool, **options: Any
) -> None:
    """Measure speed and memory of each CKPT, and predict the hardware it fits on. Gains are relative to the first CKPT.

    The figures have the names of vLLM's benchmark. TTFT (time to first token) and TPOT (time per output token) are
    those of one request. Decode throughput counts new tokens after the first; output throughput counts new tokens from
    end to end; total token throughput counts prompts too. The three throughputs are those of a batch. Each CKPT runs in
    a separate process; if that fails, its row states the reason. Numbers are medians; brackets hold minimum and
    maximum. --hardware and --gpu-memory predict fit, longest context, largest batch and an upper bound of decoding
    speed, without loading a model.

    \b
    qcompress bench smollm2 smollm2-awq smollm2-gptq --quick
    qcompress bench qwen-awq --hardware orin-nano --hardware t4 --predict-only
    qcompress bench recipes/configs/qwen2.5-7b-instruct.json --packed awq --gpu-memory 8GB --predict-only
    """
    from compress.evaluate.speed.measure import bench_rows

    check_history_options(history, tag)
    timing, resources = make_settings(Timing, options), make_settings(Resources, options)
    prediction = make_settings(Prediction, options)
    check_options(prediction, resources)
    measured, predicted = bench_rows(checkpoints, timing, resources, prediction, report)
    show(measured, predicted, as_json)
    append_history(history, tag, "bench", measured)
    if measured and all(row["error"] and row["ttft_ms"] is None for row in measured):
        raise QCompressError(f"{measured[0]['path']}: all measurements failed: {measured[0]['error']}")


def check_options(prediction: Prediction, resources: Resources) -> None:
    """Raises UsageError if an option needs --hardware or --gpu-memory, and neither is given."""
    if not prediction.hardware and resources.gpu_memory is None:
        for name in ("predict_only", "packed"):
            if getattr(prediction, name):
                raise click.UsageError(f"--{name.replace('_', '-')} needs --hardware or --gpu-memory")


def show(measured: Sequence["SpeedRow"], predicted: Sequence["CapacityRow"], as_json: bool) -> None:
    """Print all rows as JSON, or as two tables: measured rows, with errors and notes, and predicted rows."""
    if as_json:
        emit([*measured, *predicted], as_json=True)
        return
    if measured:
        first = measured[0]
        request = f"{first['prompt_tokens']:,} prompt tokens, {first['new_tokens']:,} new tokens"
        title = f"{request}, {first['runtime']}, {first['device']}"
        emit([measured_columns(row) for row in measured], as_json=False, title=title)
        for text, names in notes(measured).items():
            results.print(f"{', '.join(names)}: {text}", markup=False)
    if predicted:
        title = f"predicted, {request_text(predicted[0])}"
        emit([predicted_columns(row) for row in predicted], as_json=False, title=title)


def measured_columns(row: Row) -> Row:
    """A measured row of the terminal's table: each figure with its gain over the first checkpoint."""
    batch = row["largest_batch"]
    return {
        "name": row["name"],
        "weights": bytes_with_gain(row, "weights_bytes"),
        "peak memory": bytes_with_gain(row, "peak_bytes"),
        "TTFT ms": with_spread(row, "ttft_ms", 0),
        "TPOT ms": with_spread(row, "tpot_ms", 1),
        **{f"{name}, tokens/s at batch {row['batch_size']}": with_spread(row, key, 1) for name, key in THROUGHPUTS},
        "largest batch": None if batch is None else f"{batch:,}{gain_text(row, 'largest_batch')}",
    }


def bytes_with_gain(row: Row, key: str) -> str | None:
    """A size in GB or MB, and its gain in %."""
    return None if row[key] is None else f"{format_bytes(row[key], short=False)}{gain_text(row, key)}"


def with_spread(row: Row, key: str, digits: int) -> str | None:
    """A median, the minimum and maximum in brackets, and the gain in %."""
    if row[key] is None:
        return None
    spread = f" ({row[f'{key}_low']:,.{digits}f}–{row[f'{key}_high']:,.{digits}f})"
    return f"{row[key]:,.{digits}f}{spread}{gain_text(row, key)}"


def gain_text(row: Row, key: str) -> str:
    gain = row[f"{key}_gain"]
    return "" if gain is None else f" {gain:+.0f} %"


def predicted_columns(row: Row) -> Row:
    """A predicted row of the terminal's table."""
    estimate = row["decode_tokens_per_s_estimate"]
    return {
        "name": row["name"],
        "hardware": row["hardware_title"],
        "weights": format_bytes(row["weights_bytes"], short=False),
        "usable memory": format_bytes(row["usable_bytes"], short=False),
        "KV cache per token": format_bytes(row["kv_bytes_per_token"], short=False),
        "fits": "yes" if row["fits"] else f"no: {row['reason']}",
        "longest context": row["longest_context"],
        "largest batch": row["largest_batch"],
        "tokens/s at most": None if estimate is None else f"{estimate:.0f}",
        "kernel": row["kernel"],
    }
