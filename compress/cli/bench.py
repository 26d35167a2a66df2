"""qcompress bench: how fast, how much memory, and on which board it fits."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, json_option, report
from compress.cli.history import history_options, keep_verdicts, need_history
from compress.core.config import FORMAT_NAMES, parse_size
from compress.core.errors import QCompressError

Row = dict[str, Any]
FULL = {"prompt_tokens": 1024, "new_tokens": 512, "batch": 8, "repeats": 3}
QUICK = {"prompt_tokens": 128, "new_tokens": 32, "batch": 2, "repeats": 2}


@click.command("bench")
@click.argument("checkpoints", metavar="CKPT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--engine",
    type=click.Choice(["auto", "vllm", "transformers"]),
    default="auto",
    show_default=True,
    help="auto: vLLM where it is installed.",
)
@click.option("--prompt-tokens", type=click.IntRange(1), help="Of a request.  [default: 1024]")
@click.option("--new-tokens", type=click.IntRange(2), help="Of its answer.  [default: 512]")
@click.option("--batch", type=click.IntRange(1), help="Requests at a time, for the throughput.  [default: 8]")
@click.option("--repeats", type=click.IntRange(1), help="Of every measurement in a process.  [default: 3]")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Times through all checkpoints.")
@click.option("--quick", is_flag=True, help="128 tokens in, 32 out, batch 2, 2 repeats, where nothing else is said.")
@click.option("--max-batch", type=click.IntRange(1), default=256, show_default=True, help="vLLM's own limit.")
@click.option("--confirm-batch", is_flag=True, help="Run the largest batch, instead of only computing it.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float16", "bfloat16", "float32"]),
    default="auto",
    show_default=True,
    help="To compute in. auto: the checkpoint's.",
)
@click.option("--kv-cache", type=click.IntRange(1), default=2, show_default=True, help="Of vLLM on a CPU, in GiB.")
@click.option("--timeout", type=click.FloatRange(min=0), default=3600, show_default=True, help="Seconds per process.")
@click.option(
    "--gpu-memory", help="Of a card, of which 92 % may be used as vLLM does; predicts for it too: 8GB, 7.5GiB."
)
@click.option("--board", "boards", multiple=True, help="Predict for this board too, or for all; may be repeated.")
@click.option("--packed", type=click.Choice(FORMAT_NAMES), help="Predict also for each 16-bit CKPT packed in 4 bits.")
@click.option("--predict-only", is_flag=True, help="Measure nothing; a config.json is enough.")
@history_options
@json_option
def command(
    checkpoints: tuple[Path, ...],
    engine: str,
    prompt_tokens: int | None,
    new_tokens: int | None,
    batch: int | None,
    repeats: int | None,
    rounds: int,
    quick: bool,
    max_batch: int,
    confirm_batch: bool,
    dtype: str,
    kv_cache: int,
    timeout: float,
    gpu_memory: str | None,
    boards: tuple[str, ...],
    packed: str | None,
    predict_only: bool,
    history: Path | None,
    tag: str | None,
    as_json: bool,
) -> None:
    """Measure each CKPT: memory, time to first token, generation, tokens/s, largest batch; gains over the first.

    Each runs in a process of its own; one that fails or is killed leaves its reason in its row. Figures are medians
    with the least and the greatest of the repeats in brackets. --board and --gpu-memory predict from config.json and
    the headers of the weights alone: KV cache, longest context, largest batch, and an upper bound of decoding speed
    from bandwidth.

    \b
    qcompress bench smollm2 smollm2-awq smollm2-gptq --quick
    qcompress bench qwen-awq --board orin-nano --board t4 --predict-only
    qcompress bench recipes/configs/qwen2.5-7b-instruct.json --packed awq --gpu-memory 8GB --predict-only
    """
    from compress.evaluate.speed.hardware import find_boards, plain_memory

    need_history(history, tag)
    chosen = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch": batch, "repeats": repeats}
    sizes = (QUICK if quick else FULL) | {key: value for key, value in chosen.items() if value is not None}
    memory = parse_size(gpu_memory) if gpu_memory else None
    places = find_boards(boards) + ([plain_memory(memory)] if memory else [])
    if predict_only and not places:
        raise click.UsageError("--predict-only needs --board or --gpu-memory")
    if packed and not places:
        raise click.UsageError("--packed goes with --board or --gpu-memory")
    predicted = predict(checkpoints, places, packed, sizes["prompt_tokens"], sizes["new_tokens"]) if places else []
    settings = {"max_batch": max_batch, "rounds": rounds, "memory": memory, "dtype": dtype}
    settings |= sizes | {"confirm_batch": confirm_batch}
    measured = [] if predict_only else measure(checkpoints, engine, settings, timeout, kv_cache)
    show(measured, predicted, as_json)
    keep_verdicts(history, tag, "bench", measured)
    if measured and all(row["error"] and row["ttft_s"] is None for row in measured):
        raise QCompressError(f"{measured[0]['path']}: nothing could be measured: {measured[0]['error']}")


def predict(checkpoints: tuple[Path, ...], boards: list[Any], packed: str | None, prompt: int, new: int) -> list[Row]:
    """The predicted rows; a checkpoint that is packed already has no second row."""
    from compress.evaluate.speed.capacity import packed_subject, predict_rows, read_subjects

    subjects = []
    for subject in read_subjects(checkpoints):
        subjects.append(subject)
        if packed and "quantization_config" not in subject.config:
            subjects.append(packed_subject(subject, packed))
    return predict_rows(subjects, boards, prompt, new)


def measure(checkpoints: tuple[Path, ...], engine: str, settings: Row, timeout: float, kv_cache: int) -> list[Row]:
    """The measured rows, with a line of progress for every process."""
    from compress.evaluate.speed.measure import Timing, choose_engine, speed_rows

    timing = Timing(engine=choose_engine(engine), **settings)
    return speed_rows(checkpoints, timing, timeout=timeout, kv_cache_gib=kv_cache, report=report)


def show(measured: list[Row], predicted: list[Row], as_json: bool) -> None:
    """All rows as JSON, or a table of each kind, and under it what went wrong."""
    if as_json:
        emit(measured + predicted, as_json=True)
        return
    if measured:
        first = measured[0]
        request = f"{first['prompt_tokens']:,} tokens in, {first['new_tokens']:,} out"
        emit([shown(row) for row in measured], as_json=False, title=f"{request}, {first['engine']}, {first['device']}")
        for row in measured:
            if row["error"] or row["note"]:
                report({key: row[key] for key in ("name", "error", "note")})
    if predicted:
        tokens = predicted[0]["request_tokens"]
        emit([shown_fit(row) for row in predicted], as_json=False, title=f"predicted, requests of {tokens:,} tokens")


def shown(row: Row) -> Row:
    """A measured row as the terminal shows it: each figure with its gain over the first checkpoint."""
    return {
        "name": row["name"],
        "weights MB": gained(row, "weights_bytes", 1e-6, 1),
        "peak MB": gained(row, "peak_bytes", 1e-6, 0),
        "first token ms": spread(row, "ttft_s", 1e3, 0),
        "generation s": spread(row, "generate_s", 1, 2),
        "tokens/s": spread(row, "decode_tokens_per_s", 1, 1),
        f"tokens/s at {row['batch']}": spread(row, "throughput_tokens_per_s", 1, 1),
        "largest batch": gained(row, "largest_batch", 1, 0),
    }


def gained(row: Row, key: str, unit: float, digits: int) -> str | None:
    if row[key] is None:
        return None
    gain = row[f"{key}_gain"]
    return f"{row[key] * unit:,.{digits}f}" + ("" if gain is None else f" {gain:+.0f} %")


def spread(row: Row, key: str, unit: float, digits: int) -> str | None:
    """Median, least and greatest in brackets, gain."""
    if row[key] is None:
        return None
    low, high, gain = row[f"{key}_low"] * unit, row[f"{key}_high"] * unit, row[f"{key}_gain"]
    ends = f" ({low:,.{digits}f}–{high:,.{digits}f})"
    return f"{row[key] * unit:,.{digits}f}{ends}" + ("" if gain is None else f" {gain:+.0f} %")


def shown_fit(row: Row) -> Row:
    """A predicted row as the terminal shows it."""
    estimate = row["decode_tokens_per_s_estimate"]
    return {
        "name": row["name"],
        "board": row["board_title"],
        "weights GB": f"{row['weights_bytes'] / 1e9:.2f}",
        "usable GB": f"{row['usable_bytes'] / 1e9:.2f}",
        "KV kB/token": f"{row['kv_bytes_per_token'] / 1e3:.1f}",
        "fits": "yes" if row["fits"] else f"no: {row['reason']}",
        "longest context": row["longest_context"],
        "largest batch": row["largest_batch"],
        "tokens/s at most": None if estimate is None else f"{estimate:.0f}",
        "kernel": row["kernel"],
    }
