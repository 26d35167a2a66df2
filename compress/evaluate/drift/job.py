"""The job of `verify` and `compare`: build the evaluation windows and compare the checkpoints on them."""

from collections.abc import Callable, Sequence
from typing import Any

from calibration.start import format_start_token
from compress.checkpoint.read import Checkpoint
from compress.core.device import pick_device
from compress.core.rows import CompareRow
from compress.evaluate.drift.compare import compare_with_teacher
from compress.evaluate.drift.settings import DriftSettings
from compress.evaluate.drift.windows import evaluation_windows

Report = Callable[[dict[str, Any]], None]


def measure_drift(
    checkpoints: Sequence[Checkpoint],
    settings: DriftSettings,
    report: Report = lambda row: None,
    *,
    teacher: Checkpoint | None = None,
) -> list[CompareRow]:
    """One row per checkpoint, all on the same windows, in this order: teacher (if not None), reference, candidates.

    The first of `checkpoints` is the reference. All windows begin with the start token of the first row's model.

    Raises QCompressError, before any work, if the device is cuda and torch finds no GPU.
    """
    device = pick_device(settings.device)
    reference, *candidates = checkpoints
    first, *others = [*([] if teacher is None else [teacher]), *checkpoints]
    windows = evaluation_windows(
        first,
        others,
        settings.eval_text,
        n_samples=settings.samples,
        seq_len=settings.seq_len,
        cache=settings.reference_cache if teacher is None else None,
        device=device,
    )
    start = format_start_token(windows.manifest["start_token"])
    report({"eval_text": settings.eval_text, "samples": settings.samples, "start_token": start})
    cache, locate = settings.reference_cache, settings.locate
    more: dict[str, Any] = {"cache": cache, "locate": locate, "device": device, "report": report}
    return compare_with_teacher(teacher, reference, candidates, windows, **more)
