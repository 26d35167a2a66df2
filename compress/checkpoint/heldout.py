"""Held-out windows: every command that measures a model takes its windows from here, so all measure the same text.

The windows depend on their text, number, length and seed, and on the start token. Whether they begin with a start token
is a property of the model. It is measured once, always on the same built-in text, and copied to every checkpoint that
is made from the model. So this choice does not depend on the evaluation windows.
"""

from dataclasses import asdict
from typing import Any
from weakref import WeakKeyDictionary

from calibration.errors import TooShortError
from calibration.start import choose_start
from calibration.windows import Windows, build_windows
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.load import start_candidate, tokenizer_size
from compress.checkpoint.read import Checkpoint
from compress.core.config import EVAL_SAMPLES, EVAL_SEQ_LEN
from compress.model.blocks import BlockModel

Row = dict[str, Any]
SHORTEST = 8  # tokens of the shortest window
START = "start"  # key of the record
START_TEXT, START_WINDOWS, START_LENGTH = "default", 16, 128

_measured: WeakKeyDictionary[Checkpoint, Row] = WeakKeyDictionary()


def heldout_windows(
    text: str,
    tokenizer: Any,
    start_token: int | None,
    *,
    n_samples: int = EVAL_SAMPLES,
    seq_len: int = EVAL_SEQ_LEN,
    seed: int = 0,
    fit: bool = False,
) -> Windows:
    """`n_samples` windows of `text`, a built-in name or a file. A token attends to all earlier ones of its window.

    With `fit`, a shorter text gives fewer windows, and a text shorter than one window gives shorter windows. Raises
    CalibrationError for text that cannot be read; without `fit` also for text that is too short.
    """
    while True:
        try:
            return build_windows(
                [text], tokenizer, n_samples=n_samples, seq_len=seq_len, seed=seed, start_token=start_token
            )
        except TooShortError as error:
            if not fit or (error.fitting < 1 and seq_len <= SHORTEST):
                raise
            if error.fitting < 1:
                n_samples, seq_len = EVAL_SAMPLES, max(SHORTEST, seq_len // 2)
            else:
                n_samples = min(error.fitting, n_samples - 1)


def heldout_start(checkpoint: Checkpoint, device: str = "cpu") -> Row:
    """The start token of a model's held-out windows: a `StartToken` as a dict, from the record or else measured."""
    recorded = recorded_start(checkpoint)
    if recorded is not None:
        return recorded
    if checkpoint not in _measured:
        _measured[checkpoint] = measure_start(checkpoint, device)
    return _measured[checkpoint]


def recorded_start(checkpoint: Checkpoint) -> Row | None:
    """The start token in the checkpoint's record: a `StartToken` as a dict, or None."""
    start = checkpoint.record.get(START)
    return start if isinstance(start, dict) and "token" in start else None


def measure_start(checkpoint: Checkpoint, device: str = "cpu") -> Row:
    """Measure in float32 which windows of the embedded text have the lower nll: with or without the start token."""
    tokenizer, blocks = checkpoint.tokenizer, BlockModel(checkpoint.config, weight_reader(checkpoint), device=device)
    ids = build_windows([START_TEXT], tokenizer, n_samples=START_WINDOWS, seq_len=START_LENGTH).ids
    candidate, size = start_candidate(tokenizer, blocks.model.config.to_dict()), tokenizer_size(tokenizer)
    return asdict(choose_start(ids, candidate, lambda windows, skip: blocks.nll(windows, skip, size)))
