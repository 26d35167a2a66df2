"""Checkpoints side by side: one row each, what it weighs and how far it is from the reference.

A row is a plain dict and the only source of numbers for the terminal, for JSON and for the HTML report:

    name role format method              who; role is "reference" or "candidate"
    bytes parameters                     of all safetensors files; of the model
    bits_per_weight bits_per_parameter   8 · bytes / count, of the quantized linears; of the whole model
    perplexity perplexity_ratio kl       each with its standard error as …_se (None with a single window)
    top1 top5                            so too: how often the reference's likeliest token is the candidate's too, or
                                         among its five likeliest
    perplexity_ratio_low …_high          95 % bootstrap interval, windows redrawn in pairs; kl_low, kl_high too
    perplexity_difference …_low …_high   candidate - reference, from the same redraws
    kl_median kl_p95 kl_p99              nats
    positions documents worst            lists: see `breakdown`
    blocks                               where asked for, a list: see `locate`
    text n_samples seq_len tokens start_token vocabulary seed
    digest record                        sha256 of the checkpoint; its qcompress.json
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from calibration.windows import Windows
from compress.checkpoint.formats import format_of, model_dtype
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.evaluate.drift.breakdown import break_down
from compress.evaluate.drift.hidden_states import Report, Row, read_windows, scored_places
from compress.evaluate.drift.locate import locate_drift
from compress.evaluate.drift.metrics import CHUNK, TokenDrift, of_itself, summarize_drift, token_drift
from compress.evaluate.drift.reference_cache import read_reference
from compress.evaluate.drift.windows import refuse_other_tokenizers, refuse_seen_text, shared_vocabulary
from compress.evaluate.names import short_names
from compress.model.blocks import linear_shapes, make_skeleton


def drift_row(
    reference: PathOrCheckpoint,
    candidate: PathOrCheckpoint,
    windows: Windows,
    *,
    micro_batch: int | None = None,
    chunk: int = CHUNK,
    cache: Path | None = None,
    locate: bool = False,
    report: Report = lambda row: None,
) -> Row:
    """The candidate's row. See `compare_rows`."""
    rows = compare_rows(
        reference,
        [candidate],
        windows,
        micro_batch=micro_batch,
        chunk=chunk,
        cache=cache,
        locate=locate,
        report=report,
    )
    return rows[1]


def compare_rows(
    reference: PathOrCheckpoint,
    candidates: Sequence[PathOrCheckpoint],
    windows: Windows,
    *,
    micro_batch: int | None = None,
    chunk: int = CHUNK,
    cache: Path | None = None,
    locate: bool = False,
    report: Report = lambda row: None,
) -> list[Row]:
    """One row per checkpoint, the reference's first. The reference is run once, and one model at a time.

    `cache` is a folder that keeps what the reference made of the windows, or has kept it: then it is not run at all.
    `locate` adds `blocks`, how far each block alone departs. `micro_batch` and `chunk` change the speed and the
    memory, never the result. Raises QCompressError for text that a checkpoint was calibrated on, for another
    tokenizer, and for numbers that are not finite; ValueError for ids beyond the vocabulary that all share.
    """
    first, *others = checkpoints = [open_causal_lm(source) for source in (reference, *candidates)]
    refuse_seen_text(windows.manifest, checkpoints)
    vocabulary = shared_vocabulary(checkpoints)
    if (highest := int(windows.ids.max())) >= vocabulary:
        raise ValueError(f"evaluate.compare: the windows hold token {highest}, the models share {vocabulary:,} tokens")
    refuse_other_tokenizers(first, others, windows.ids, vocabulary)
    told = told_of_windows(windows) | {"vocabulary": vocabulary}
    names = short_names([checkpoint.path for checkpoint in checkpoints])

    ours = read_reference(first, windows, cache, micro_batch=micro_batch, report=report)
    rows: list[Row] = []
    for name, candidate in zip(names[1:], others, strict=True):
        theirs = read_windows(candidate, windows.ids, micro_batch=micro_batch, report=report)
        drift = token_drift(ours, theirs, windows, vocabulary=vocabulary, chunk=chunk)
        if not rows:
            about = describe(first, names[0], "reference")
            rows.append(about | drift_figures(of_itself(drift), windows, first.tokenizer) | told | history(first))
        about = describe(candidate, name, "candidate")
        rows.append(about | drift_figures(drift, windows, first.tokenizer) | told | history(candidate))
    if locate:
        for checkpoint, row in zip(checkpoints, rows, strict=True):
            row["blocks"] = [] if checkpoint is first else locate_drift(first, checkpoint, windows, report)
    return rows


def drift_figures(drift: TokenDrift, windows: Windows, tokenizer: Any) -> Row:
    return summarize_drift(drift) | break_down(drift, windows, tokenizer)


def describe(checkpoint: Checkpoint, name: str, role: str) -> Row:
    """What a checkpoint is and weighs, no tensor read."""
    record = checkpoint.record
    row = format_of(checkpoint)
    dtype = str(model_dtype(checkpoint.config)).removeprefix("torch.")
    parameters = count_parameters(checkpoint)
    return {
        "name": name,
        "role": role,
        "format": row.name if row else dtype,
        "method": (record.get("settings") or {}).get("method") or record.get("command"),
        "bytes": checkpoint.bytes,
        "parameters": parameters,
        "bits_per_weight": bits_per_weight(checkpoint),
        "bits_per_parameter": 8 * checkpoint.bytes / parameters,
    }


def history(checkpoint: Checkpoint) -> Row:
    return {"digest": checkpoint.digest, "record": checkpoint.record}


def count_parameters(checkpoint: Checkpoint) -> int:
    """Parameters of the model, a tied head counted once."""
    return sum(parameter.numel() for parameter in make_skeleton(checkpoint.config).parameters())


def bits_per_weight(checkpoint: Checkpoint) -> float:
    """Bits on disk per weight of the quantized linears, scales and zeros included; of all linears if none is packed."""
    row, shapes = format_of(checkpoint), linear_shapes(checkpoint.config)
    packed = {name for name in shapes if row and f"{name}.{row.packed}" in checkpoint.tensors} or set(shapes)
    parts = [name.rpartition(".") for name in checkpoint.tensors]
    used = sum(checkpoint.tensors[f"{m}.{s}"].bytes for m, _, s in parts if m in packed and s != "bias")
    return 8 * used / sum(prod(shapes[name]) for name in packed)


def told_of_windows(windows: Windows) -> Row:
    """What every row says of the text: so that a figure is never without what it was measured on."""
    samples, seq_len = windows.ids.shape
    manifest = windows.manifest
    return {
        "text": " + ".join(source["name"] for source in manifest.get("sources", ())) or None,
        "n_samples": samples,
        "seq_len": seq_len,
        "tokens": len(scored_places(windows.mask)),
        "start_token": manifest.get("start_token"),
        "seed": manifest.get("seed"),
        "windows_digest": manifest.get("digest"),
    }
