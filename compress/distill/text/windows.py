"""Training and evaluation windows of a distillation. Each source must have at least one token that enters the loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from calibration.errors import TooShortError
from calibration.start import StartToken
from calibration.windows import Windows, build_windows
from compress.checkpoint.start import measure_start
from compress.core.errors import QCompressError
from compress.core.report import Row
from compress.distill.config import DistillConfig
from compress.distill.text.packing import pack

EVAL_TOKENS = 1024
START_WINDOWS, START_LENGTH = 4, 256
Built = TypeVar("Built")


class NoTokensError(QCompressError):
    """A source contributes 0 of `total` tokens, because its weight is too small. `source` is its label."""

    def __init__(self, source: str, total: int):
        super().__init__(
            f"{source}: this text gives 0 of {total:,} tokens, because its weight is too small; "
            "raise its weight, or leave the text out"
        )
        self.source, self.total = source, total


@dataclass(frozen=True)
class Text:
    """Training windows, evaluation windows, and the start token that both use."""

    windows: Windows
    eval_windows: Windows
    start: StartToken


def read_text(
    text: Sequence[str],
    eval_text: str,
    tokenizer: Any,
    count: int,
    size: dict[str, int],
    start: StartToken,
    packing: str,
) -> Text:
    """`count` training windows and a few evaluation windows. Each window begins with the token `start`.

    `size` holds seq_len and seed. A short text gives fewer windows. Raises QCompressError if the evaluation text is
    also a training text, or if all tokens of a source are masked.
    """
    windows = counting_windows(text, tokenizer, count, size, start, packing)
    evaluation = counting_windows([eval_text], tokenizer, eval_windows(size["seq_len"]), size, start, packing)
    seen = {source["digest"] for source in windows.manifest["sources"]}
    if seen & {source["digest"] for source in evaluation.manifest["sources"]}:
        raise QCompressError(
            f"{eval_text}: the student trains on this text, so it cannot be the --eval-text; give another text"
        )
    return Text(windows, evaluation, start)


def eval_windows(seq_len: int) -> int:
    """The number of evaluation windows, if a window has `seq_len` tokens."""
    return max(1, EVAL_TOKENS // seq_len)


def train_text(settings: DistillConfig, tokenizer: Any, teacher: Any) -> Text:
    """Training and evaluation windows. Their start token is the one with which the teacher predicts best."""
    size = {"seq_len": settings.seq_len, "seed": settings.seed}
    count = settings.total_steps * settings.batch_size
    start = find_start(settings.text, tokenizer, teacher, count, size)
    return read_text(settings.text, settings.eval_text, tokenizer, count, size, start, settings.packing)


def find_start(sources: Sequence[str], tokenizer: Any, teacher: Any, count: int, size: dict[str, int]) -> StartToken:
    """The start token with which the teacher predicts best, measured on the first windows of the text."""
    few = fitting_windows(sources, tokenizer, min(count, START_WINDOWS), size)
    return measure_start(teacher, tokenizer, few.ids[:, :START_LENGTH].to(teacher.device))


def counting_windows(
    sources: Sequence[str], tokenizer: Any, count: int, size: dict[str, int], start: StartToken, packing: str
) -> Windows:
    """Packed windows that begin with `start`. Raises QCompressError if all tokens of a source are masked."""
    windows = pack(fitting_windows(sources, tokenizer, count, {**size, "start_token": start.token}), packing)
    check_contributions({source["name"]: source["tokens"] for source in windows.manifest["sources"]})
    empty = [source for source in windows.manifest["sources"] if not source["tokens_counted"]]
    if not windows.mask[:, 1:].any():
        empty = windows.manifest["sources"]
    if empty:
        tokens, samples = empty[0]["tokens"], empty[0]["documents"]
        raise QCompressError(
            f"{empty[0]['name']}: {samples:,} samples with {tokens:,} tokens, but 0 tokens to train on; "
            "give conversations with assistant turns, give plain text, or leave the file out"
        )
    return windows


def check_contributions(tokens: dict[str, int]) -> None:
    """Raises NoTokensError if a source contributes 0 tokens. `tokens` is the number of tokens by source label."""
    for source, count in tokens.items():
        if not count:
            raise NoTokensError(source, sum(tokens.values()))


def fitting_windows(sources: Sequence[str], tokenizer: Any, count: int, size: dict[str, Any]) -> Windows:
    """`count` windows, or fewer if the text is short. Raises CalibrationError if the text does not fill one window."""
    return fit(partial(build_windows, sources, tokenizer, **size), count)


def fit(build: Callable[..., Built], count: int) -> Built:
    """Call `build(n_samples=count)`. If the text is too short, use the largest number of windows that it fills.

    Raises TooShortError if the text does not fill one window.
    """
    while True:
        try:
            return build(n_samples=count)
        except TooShortError as error:
            if error.fitting < 1:
                raise
            count = min(error.fitting, count - 1)


def text_row(text: Text, sources: Sequence[str], needed: int) -> Row:
    """The report row of a text: sources, windows, start token and epochs. The run reads `needed` windows in all."""
    windows = len(text.windows.ids)
    row = {"text": ", ".join(sources), "windows": windows, "epochs": round(needed / windows, 2)}
    return row | {"start_token": text.start.token}
