"""Errors about a stage whose text is too short: each names the stage, the text, the cause, and settings that fit.

`check_fits` finds such a stage before any weights are read.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from calibration.corpus import parse_source
from calibration.errors import TooShortError
from calibration.lengths import check_lengths
from compress.core.errors import QCompressError
from compress.distill.text.windows import NoTokensError, check_contributions, eval_windows, fit

if TYPE_CHECKING:
    from compress.distill.text.stages import TextStage

DIGITS = 2  # significant digits of a share in a cure


@contextmanager
def text_errors(stage: "TextStage") -> Iterator[None]:
    """Context for code that reads a stage's text. Its errors name the stage, and the option or recipe key to change."""
    prefix = f"stage {stage.name}: " if stage.name else ""
    try:
        yield
    except TooShortError as error:
        raise QCompressError(prefix + shortage(stage, error)) from None
    except NoTokensError as error:
        raise QCompressError(prefix + no_tokens(stage, error)) from None
    except QCompressError as error:
        raise QCompressError(f"{prefix}{error}") from None


def shortage(stage: "TextStage", error: TooShortError) -> str:
    """A message: the tokens that one window needs from a text, the tokens that the text has, and settings that fit."""
    share = shares(stage.text).get(parse_source(error.source).label, 1.0)
    if is_evaluation(stage, error.source):
        share = 1.0
    needed, start = math.ceil(share * error.body), stage.settings.seq_len - error.body
    length = f"lower {'seq_len' if stage.name else '--seq-len'} to {int(error.tokens / share) + start}"
    if is_replayed(stage, error.source):
        lower = round_down(stage.replay * error.tokens / needed)
        return (
            f"replay={stage.replay:g} requires {needed} tokens of {error.source} for a window of {error.body}, but "
            f"this text has {error.tokens}; lower replay to {lower:g}, {length}, or make the text longer"
        )
    if share < 1:
        return (
            f"{error.source}: its share of a window of {error.body} tokens is {needed}, but the text has "
            f"{error.tokens}; {length}, or add text"
        )
    return f"{error.source}: the text has {error.tokens} tokens, but a window needs {error.body}; {length} or add text"


def no_tokens(stage: "TextStage", error: NoTokensError) -> str:
    """A message: why a text contributes 0 tokens, and the smallest `replay` that makes it contribute a token."""
    if not is_replayed(stage, error.source):
        return str(error)
    share = shares(stage.text)[error.source]
    raised = -round_down(-stage.replay / (share * error.total))
    return (
        f"replay={stage.replay:g} gives {error.source} 0 of {error.total:,} tokens; raise replay to {raised:g}, add "
        "text to the other texts, or leave replay out"
    )


def shares(text: tuple[str, ...]) -> dict[str, float]:
    """The fraction of the text that each source contributes, by the source's label. The fractions sum to 1."""
    sources = [parse_source(source) for source in text]
    whole = sum(source.weight for source in sources)
    return {source.label: source.weight / whole for source in sources}


def is_evaluation(stage: "TextStage", source: str) -> bool:
    """True if `source` is the stage's evaluation text, and not one of its training texts."""
    return source == parse_source(stage.settings.eval_text).name and source not in names(stage.text)


def is_replayed(stage: "TextStage", source: str) -> bool:
    """True if the stage reads this source, a name or a label, only because it repeats an earlier stage."""
    label = parse_source(source).label
    return label in shares(stage.text) and label not in shares(stage.settings.text)


def names(text: tuple[str, ...]) -> set[str]:
    """The names of the sources, without weights."""
    return {parse_source(source).name for source in text}


def round_down(value: float) -> float:
    """The value, rounded down to DIGITS significant digits."""
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - DIGITS + 1)
    return round(math.floor(value / unit) * unit, 12)


def check_fits(stage: "TextStage", tokenizer: Any, *, start: bool) -> None:
    """Raises QCompressError if the stage's text or evaluation text is too short. Only the beginning of a text is read.

    `start` is True if windows begin with a start token.
    """
    settings, body = stage.settings, stage.settings.seq_len - start
    least = min(shares(stage.text).values())
    windows = min(stage.needed, math.ceil(1 / (least * body)))  # enough that every source contributes a token
    with text_errors(stage):
        check_contributions(fit(partial(check_lengths, stage.text, tokenizer, body=body), windows))
        evaluation = partial(check_lengths, [settings.eval_text], tokenizer, body=body)
        fit(evaluation, eval_windows(settings.seq_len))
