"""The windows of a distillation: how many there are in a text, how they begin, and that some of their tokens count."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calibration.errors import TooShortError
from calibration.start import StartToken
from calibration.windows import Windows, build_windows
from compress.checkpoint.load import measure_start
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig
from compress.distill.text.packing import pack

Row = dict[str, Any]
EVAL_TOKENS = 1024
START_WINDOWS, START_LENGTH = 4, 256


@dataclass(frozen=True)
class Text:
    """What is trained on, what is held out, and how their windows begin."""

    windows: Windows
    eval_windows: Windows
    start: StartToken


def read_text(
    text: Sequence[str],
    eval_text: str,
    tokenizer: Any,
    wanted: int,
    size: dict[str, int],
    start: StartToken,
    packing: str,
) -> Text:
    """`wanted` windows to train on and a few held out, all beginning with `start`; `size` is seq_len and seed.

    A text that is too short for the run is read again; how often is for the caller to report. QCompressError when the
    same text is in both, or when no token of one of them counts.
    """
    windows = counting_windows(text, tokenizer, wanted, size, start, packing)
    evaluation = counting_windows([eval_text], tokenizer, max(1, EVAL_TOKENS // size["seq_len"]), size, start, packing)
    seen = {source["digest"] for source in windows.manifest["sources"]}
    if seen & {source["digest"] for source in evaluation.manifest["sources"]}:
        raise QCompressError(f"{eval_text}: is trained on, so it cannot be the --eval-text; give another text")
    return Text(windows, evaluation, start)


def train_text(settings: DistillConfig, tokenizer: Any, teacher: Any) -> Text:
    """Windows to train on, beginning as the teacher wants them to, and windows held out."""
    size = {"seq_len": settings.seq_len, "seed": settings.seed}
    wanted = settings.total_steps * settings.batch_size
    start = find_start(settings.text, tokenizer, teacher, wanted, size)
    return read_text(settings.text, settings.eval_text, tokenizer, wanted, size, start, settings.packing)


def find_start(sources: Sequence[str], tokenizer: Any, teacher: Any, wanted: int, size: dict[str, int]) -> StartToken:
    """How the teacher wants its windows to begin, measured on the first few of the text."""
    few = fitting_windows(sources, tokenizer, min(wanted, START_WINDOWS), size)
    return measure_start(teacher, tokenizer, few.ids[:, :START_LENGTH].to(teacher.device))


def counting_windows(
    sources: Sequence[str], tokenizer: Any, wanted: int, size: dict[str, int], start: StartToken, packing: str
) -> Windows:
    """Windows that begin with `start`, packed so. QCompressError for a source of which no token counts: all user's."""
    windows = pack(fitting_windows(sources, tokenizer, wanted, {**size, "start_token": start.token}), packing)
    silent = [source for source in windows.manifest["sources"] if not source["tokens_counted"]]
    if not windows.mask[:, 1:].any():
        silent = windows.manifest["sources"]
    if silent:
        tokens, samples = silent[0]["tokens"], silent[0]["documents"]
        raise QCompressError(
            f"{silent[0]['name']}: 0 of {tokens:,} tokens count in a loss, in all {samples:,} samples that were read; "
            "give conversations with assistant turns, or plain text; or leave the file out"
        )
    return windows


def fitting_windows(sources: Sequence[str], tokenizer: Any, wanted: int, size: dict[str, Any]) -> Windows:
    """`wanted` windows, or as many as are in the text. CalibrationError when not even one is."""
    while True:
        try:
            return build_windows(sources, tokenizer, n_samples=wanted, **size)
        except TooShortError as error:
            if error.fitting < 1:
                raise
            wanted = min(error.fitting, wanted - 1)


def text_row(text: Text, sources: Sequence[str], needed: int) -> Row:
    """Which text, how many windows of it, how often they are read for `needed` of them, and what they begin with."""
    windows = len(text.windows.ids)
    row = {"text": ", ".join(sources), "windows": windows, "epochs": round(needed / windows, 2)}
    return row | {"start_token": text.start.token}
