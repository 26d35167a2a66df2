"""Compare checkpoints: one `CompareRow` for each, with size and drift from the reference.

The terminal, JSON and the HTML report take all numbers from these rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from calibration.windows import Windows
from compress.checkpoint.formats import format_of, model_dtype
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.core.device import pick_device
from compress.core.errors import BadValueError
from compress.core.rows import BreakdownPart, CheckpointPart, CompareRow, DriftPart, TeacherPart, WindowsPart
from compress.evaluate.drift.breakdown import break_down
from compress.evaluate.drift.hidden_states import Report, read_windows, scored_places
from compress.evaluate.drift.locate import locate_drift
from compress.evaluate.drift.metrics import CHUNK, TokenDrift, no_drift, summarize_drift, token_drift
from compress.evaluate.drift.reference_cache import read_reference
from compress.evaluate.drift.windows import check_text_unseen, check_tokenizers, shared_vocabulary
from compress.evaluate.names import short_names
from compress.model.blocks import make_skeleton
from compress.model.shapes import linear_shapes


def drift_row(
    reference: PathOrCheckpoint, candidate: PathOrCheckpoint, windows: Windows, **settings: Any
) -> CompareRow:
    """The `CompareRow` of one candidate. `settings` are keyword arguments of `compare_rows`."""
    return compare_rows(reference, [candidate], windows, **settings)[1]


def compare_rows(
    reference: PathOrCheckpoint, candidates: Sequence[PathOrCheckpoint], windows: Windows, **settings: Any
) -> list[CompareRow]:
    """One row per checkpoint, the reference's first. `settings` are keyword arguments of `compare_with_teacher`.

    Raises the same errors as `compare_with_teacher`.
    """
    return compare_with_teacher(None, reference, candidates, windows, **settings)


def compare_with_teacher(
    teacher: PathOrCheckpoint | None,
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
    """One row per checkpoint, in this order: teacher (if not None), reference, candidates.

    Each model runs once, one at a time. With a teacher, the other rows also have the keys of `TeacherPart`.

    `cache` is a folder for the reference's hidden states: a second call reads them instead of running the reference.
    `locate` adds `blocks`, the drift of each block alone. Models run in float32 on `device` (auto, cpu or cuda).
    `micro_batch` and `chunk` change speed and memory, never the result.
    Raises QCompressError if a checkpoint was calibrated on the text, if tokenizers differ, or if a result is not
    finite. Raises ValueError if a token id is outside the shared vocabulary.
    """
    device = pick_device(device)
    first, *others = [open_causal_lm(source) for source in (reference, *candidates)]
    top = [] if teacher is None else [open_causal_lm(teacher)]
    vocabulary = check_vocabulary([first, *top, *others], windows)
    read = partial(read_windows, ids=windows.ids, device=device, micro_batch=micro_batch, report=report)
    states = read_reference(first, windows, cache, device=device, micro_batch=micro_batch, report=report)
    drift = partial(token_drift, windows=windows, vocabulary=vocabulary, chunk=chunk, report=report)
    paths = [one.path for one in (*top, first, *others)]
    table = RowMaker(windows, vocabulary, first, dict(zip(paths, short_names(paths), strict=True)))
    teachers = [read(one) for one in top]
    above = [drift(one, states) for one in teachers]
    rows = [table.row(one, "teacher", no_drift(above[0]), [no_drift(above[0])]) for one in top]
    for candidate in others:
        candidate_states = read(candidate)
        change = drift(states, candidate_states)
        if len(rows) == len(top):
            rows.append(table.row(first, "reference", no_drift(change), above))
        rows.append(table.row(candidate, "candidate", change, [drift(one, candidate_states) for one in teachers]))
    if locate:
        for row, checkpoint in zip(rows, (*top, first, *others), strict=True):
            located = row["role"] == "candidate"
            row["blocks"] = locate_drift(first, checkpoint, windows, report, device=device) if located else []
    return rows


@dataclass(frozen=True)
class RowMaker:
    """Makes the rows of one comparison. `names` maps the paths of checkpoints to the names in their rows."""

    windows: Windows
    vocabulary: int
    reference: Checkpoint
    names: dict[Path, str]

    def row(
        self, checkpoint: Checkpoint, role: str, change: TokenDrift, from_teacher: Sequence[TokenDrift]
    ) -> CompareRow:
        """The `CompareRow` of a checkpoint. `change` is its drift from the reference.

        `from_teacher` holds its drift from the teacher as the only element, or is empty if there is no teacher.
        """
        means, parts = summarize(change, self.windows, self.reference)
        row: CompareRow = {
            **describe(checkpoint, self.names[checkpoint.path], role),
            **means,
            **parts,
            **describe_windows(self.windows, self.vocabulary),
        }
        for one in from_teacher:
            row.update(teacher_part(summarize_drift(one)))
        return row


def check_vocabulary(checkpoints: Sequence[Checkpoint], windows: Windows) -> int:
    """The number of token ids that all checkpoints share. Raises ValueError if the windows hold a higher id."""
    check_text_unseen(windows.manifest, checkpoints)
    vocabulary = shared_vocabulary(checkpoints)
    if (highest := int(windows.ids.max())) >= vocabulary:
        raise BadValueError(
            f"evaluate.compare: token id {highest} in the windows is too large: all models share {vocabulary:,} ids"
        )
    check_tokenizers(checkpoints[0], checkpoints[1:], windows.ids, vocabulary)
    return vocabulary


def teacher_part(means: DriftPart) -> TeacherPart:
    """The drift from the teacher, under keys that begin with teacher_."""
    return {
        "teacher_kl": means["kl"],
        "teacher_kl_se": means["kl_se"],
        "teacher_kl_low": means["kl_low"],
        "teacher_kl_high": means["kl_high"],
        "teacher_top1": means["top1"],
        "teacher_top1_se": means["top1_se"],
        "teacher_perplexity_ratio": means["perplexity_ratio"],
        "teacher_perplexity_ratio_se": means["perplexity_ratio_se"],
    }


def summarize(drift: TokenDrift, windows: Windows, reference: Checkpoint) -> tuple[DriftPart, BreakdownPart]:
    return summarize_drift(drift), break_down(drift, windows, reference.tokenizer)


def describe(checkpoint: Checkpoint, name: str, role: str) -> CheckpointPart:
    """Name, format and size of a checkpoint. Only the headers of its weight files are read."""
    record = checkpoint.record
    row = format_of(checkpoint)
    dtype = model_dtype(checkpoint.config).value
    parameters = count_parameters(checkpoint)
    gguf = gguf_size(record)
    size = gguf["bytes"] if gguf else checkpoint.bytes
    return {
        "name": name,
        "role": role,
        "format": "gguf" if gguf else row.name if row else dtype,
        "method": describe_method(record),
        "bytes": size,
        "parameters": parameters,
        "bits_per_weight": gguf["bits_per_weight"] if gguf else bits_per_weight(checkpoint),
        "bits_per_parameter": 8 * size / parameters,
        "digest": checkpoint.digest,
        "small_files_digest": checkpoint.small_files_digest,
        "record": record,
    }


def describe_method(record: dict[str, Any]) -> str | None:
    """The method in a record, after the name of the backend if another program ran it."""
    settings = record.get("settings") or {}
    method, backend = settings.get("method") or record.get("command"), settings.get("backend")
    return f"{backend} {method}" if backend else method


def gguf_size(record: dict[str, Any]) -> dict[str, Any] | None:
    """The size of the .gguf file that a record describes, or None if it describes none."""
    size = record.get("size")
    numbers = isinstance(size, dict) and all(size.get(key) for key in ("bytes", "bits_per_weight"))
    return size if numbers and (record.get("settings") or {}).get("format") == "gguf" else None


def count_parameters(checkpoint: Checkpoint) -> int:
    """The number of the model's parameters. Tied weights count once."""
    return sum(parameter.numel() for parameter in make_skeleton(checkpoint.config).parameters())


def bits_per_weight(checkpoint: Checkpoint) -> float:
    """Bits on disk per weight of the quantized linears, including scales and zeros.

    Without quantized linears, the mean over all linears.
    """
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
    sources = manifest.get("sources", ())
    return {
        "text": " + ".join(source["name"] for source in sources) or None,
        "text_digest": " + ".join(source["digest"] for source in sources) or None,
        "n_samples": n_samples,
        "seq_len": seq_len,
        "tokens": len(scored_places(windows.mask)),
        "start_token": manifest.get("start_token"),
        "seed": manifest.get("seed"),
        "windows_digest": manifest.get("digest"),
        "vocabulary": vocabulary,
    }
