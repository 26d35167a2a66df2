"""Checkpoints side by side: one `CompareRow` each, with its size and its drift from the reference.

The rows are the only source of numbers for the terminal, JSON and the HTML report.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from calibration.windows import Windows
from compress.checkpoint.formats import format_of, model_dtype
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.core.device import pick_device
from compress.core.errors import BadValueError
from compress.core.rows import BreakdownPart, CheckpointPart, CompareRow, DriftPart, WindowsPart
from compress.evaluate.drift.breakdown import break_down
from compress.evaluate.drift.hidden_states import Report, read_windows, scored_places
from compress.evaluate.drift.locate import locate_drift
from compress.evaluate.drift.metrics import CHUNK, TokenDrift, no_drift, summarize_drift, token_drift
from compress.evaluate.drift.reference_cache import read_reference
from compress.evaluate.drift.windows import check_text_unseen, check_tokenizers, shared_vocabulary
from compress.evaluate.names import short_names
from compress.model.blocks import linear_shapes, make_skeleton


def drift_row(
    reference: PathOrCheckpoint, candidate: PathOrCheckpoint, windows: Windows, **settings: Any
) -> CompareRow:
    """The row of one candidate. `settings` are those of `compare_rows`."""
    return compare_rows(reference, [candidate], windows, **settings)[1]


def compare_rows(
    reference: PathOrCheckpoint,
    candidates: Sequence[PathOrCheckpoint],
    windows: Windows,
    *,
    micro_batch: int | None = None,
    chunk: int = CHUNK,
    cache: Path | None = None,
    locate: bool = False,
    device: str = "auto",
    report: Report = lambda row: None,
) -> list[CompareRow]:
    """One row per checkpoint, the reference's first. The reference runs once, and one model runs at a time.

    `cache` is a folder for the reference's hidden states: a second call with it does not run the reference. `locate`
    adds `blocks`, the drift of each block alone. `device` (auto, cpu or cuda) runs the models in float32. `micro_batch`
    and `chunk` change speed and memory, never the result.
    Raises QCompressError for text that a checkpoint was calibrated on, for different tokenizers and for numbers that
    are not finite; ValueError for ids beyond the shared vocabulary.
    """
    device = pick_device(device)
    first, *others = checkpoints = [open_causal_lm(source) for source in (reference, *candidates)]
    text = describe_windows(windows, check_vocabulary(checkpoints, windows))
    names = short_names([checkpoint.path for checkpoint in checkpoints])
    states = read_reference(first, windows, cache, device=device, micro_batch=micro_batch, report=report)
    rows: list[CompareRow] = []
    for name, candidate in zip(names[1:], others, strict=True):
        candidate_states = read_windows(candidate, windows.ids, device=device, micro_batch=micro_batch, report=report)
        drift = token_drift(states, candidate_states, windows, vocabulary=text["vocabulary"], chunk=chunk)
        if not rows:
            means, parts = summarize(no_drift(drift), windows, first)
            rows.append({**describe(first, names[0], "reference"), **means, **parts, **text})
        means, parts = summarize(drift, windows, first)
        rows.append({**describe(candidate, name, "candidate"), **means, **parts, **text})
    if locate:
        for checkpoint, row in zip(checkpoints, rows, strict=True):
            located = checkpoint is not first
            row["blocks"] = locate_drift(first, checkpoint, windows, report, device=device) if located else []
    return rows


def check_vocabulary(checkpoints: Sequence[Checkpoint], windows: Windows) -> int:
    """The number of tokens that all checkpoints share. ValueError for windows with other tokens."""
    check_text_unseen(windows.manifest, checkpoints)
    vocabulary = shared_vocabulary(checkpoints)
    if (highest := int(windows.ids.max())) >= vocabulary:
        raise BadValueError(
            f"evaluate.compare: the windows hold token {highest}, the models share {vocabulary:,} tokens"
        )
    check_tokenizers(checkpoints[0], checkpoints[1:], windows.ids, vocabulary)
    return vocabulary


def summarize(drift: TokenDrift, windows: Windows, reference: Checkpoint) -> tuple[DriftPart, BreakdownPart]:
    return summarize_drift(drift), break_down(drift, windows, reference.tokenizer)


def describe(checkpoint: Checkpoint, name: str, role: str) -> CheckpointPart:
    """Name, format and size of a checkpoint. Reads headers, no tensor."""
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
        "digest": checkpoint.digest,
        "record": record,
    }


def count_parameters(checkpoint: Checkpoint) -> int:
    """The number of parameters of the model; tied weights count once."""
    return sum(parameter.numel() for parameter in make_skeleton(checkpoint.config).parameters())


def bits_per_weight(checkpoint: Checkpoint) -> float:
    """Bits on disk per weight of the quantized linears, scales and zeros included; of all linears if none is packed."""
    row, shapes = format_of(checkpoint), linear_shapes(checkpoint.config)
    packed = {name for name in shapes if row and f"{name}.{row.packed}" in checkpoint.tensors} or set(shapes)
    parts = [name.rpartition(".") for name in checkpoint.tensors]
    used = sum(
        checkpoint.tensors[f"{module}.{suffix}"].bytes
        for module, _, suffix in parts
        if module in packed and suffix != "bias"
    )
    return 8 * used / sum(prod(shapes[name]) for name in packed)


def describe_windows(windows: Windows, vocabulary: int) -> WindowsPart:
    """The part of a row that describes the windows."""
    n_samples, seq_len = windows.ids.shape
    manifest = windows.manifest
    return {
        "text": " + ".join(source["name"] for source in manifest.get("sources", ())) or None,
        "n_samples": n_samples,
        "seq_len": seq_len,
        "tokens": len(scored_places(windows.mask)),
        "start_token": manifest.get("start_token"),
        "seed": manifest.get("seed"),
        "windows_digest": manifest.get("digest"),
        "vocabulary": vocabulary,
    }
