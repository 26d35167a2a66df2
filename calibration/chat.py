"""Convert messages to token ids and a loss mask, with the model's chat template.

A template with `{% generation %}` marks the assistant's tokens. With any other template, two renderings find each
assistant turn: first the messages before the turn, ending with the header of the answer; then the same messages with
the turn. The text that the second rendering adds is the assistant's. So the first messages of a conversation must
render to the first part of the whole text. This is checked.
"""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from calibration.errors import CalibrationError
from calibration.template import Message, guarded, render, render_all

ENCODING_MEMORY = 8_000_000_000  # bytes; the Rust tokenizer aborts where it lacks memory, and the text is bounded
MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


def has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def encode_chat(
    tokenizer: Any, messages: Sequence[Message], where: str, *, answers_only: bool = True
) -> tuple[list[int], list[bool]]:
    """The token ids of a conversation, and a mask: True on the assistant's tokens, end-of-turn tokens included.

    If the assistant opens the conversation, that first turn answers no message. The mask is False on it, unless the
    template marks it with `{% generation %}`. Without `answers_only` the mask is True on all tokens.

    Raises CalibrationError, beginning with `where`, if the tokenizer has no chat template, or if the template fails or
    renders no text. With `answers_only`, also if the template renders a turn differently when later turns follow.
    """
    if not has_template(tokenizer):
        raise CalibrationError(
            f"{where}: the row has `messages`, but the tokenizer has no chat template; "
            "use rows with `text`, or a model directory with chat_template.jinja"
        )
    text = render_all(tokenizer, messages, where)
    if not answers_only:
        ids = encode_text(tokenizer, text)
        return ids, [True] * len(ids)
    if MARKED.search(str(tokenizer.chat_template)):
        return _marked(tokenizer, messages, where)
    return _by_prefixes(tokenizer, messages, text, where)


def render_prompt(tokenizer: Any, messages: Sequence[Message], where: str) -> str:
    """The conversation as text, ending with the header of the assistant's next answer. Thinking mode is off.

    Raises CalibrationError, beginning with `where`, if the template fails or renders no text.
    """
    return render_all(tokenizer, messages, where, add_generation_prompt=True, enable_thinking=False)


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """The token ids of `text`, without special tokens before or after it.

    Raises CalibrationError if the model's embedding lacks an id, as it lacks some special tokens of a few models. This
    is checked only if the tokenizer has the attribute `embedding_rows`.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids = list(encoded["input_ids"])
    rows = getattr(tokenizer, "embedding_rows", None)
    if rows is not None and max(ids, default=0) >= rows:
        token = tokenizer.convert_ids_to_tokens(max(ids))
        raise CalibrationError(
            f"the text contains the token {token!r} (id {max(ids)}), but the model has only {rows} tokens; "
            "remove this token from the text"
        )
    return ids


def _marked(tokenizer: Any, messages: Sequence[Message], where: str) -> tuple[list[int], list[bool]]:
    rows = [dict(message) for message in messages]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    encoded = guarded(lambda: tokenizer.apply_chat_template(rows, **options), where, rows, ENCODING_MEMORY)
    return list(encoded["input_ids"]), [bool(flag) for flag in encoded["assistant_masks"]]


def _by_prefixes(tokenizer: Any, messages: Sequence[Message], text: str, where: str) -> tuple[list[int], list[bool]]:
    ids = encode_text(tokenizer, text)
    mask = [False] * len(ids)
    for turn, message in enumerate(messages):
        if turn and message["role"] == "assistant":
            span = _span(tokenizer, messages, turn, text, where)
            start, end = (_tokens_before(tokenizer, ids, text, position) for position in span)
            mask[start:end] = [True] * (end - start)
    return ids, mask


def _span(tokenizer: Any, messages: Sequence[Message], turn: int, text: str, where: str) -> tuple[int, int]:
    """The start and end of an assistant turn in `text`, in characters: without its header, with its end-of-turn token.

    Raises CalibrationError if the template renders the turn differently when later turns follow.
    """
    opened = render(tokenizer, messages[:turn], where, add_generation_prompt=True)
    closed = render(tokenizer, messages[: turn + 1], where)
    if not (text.startswith(closed) and closed.startswith(opened)):
        raise CalibrationError(
            f"{where}: message {turn + 1}: the chat template renders this turn differently when later turns follow, so "
            "the assistant's tokens cannot be located; mark them with {% generation %} in the template, or use rows "
            "with `text`"
        )
    trimmed = closed.rstrip()
    special = (*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values()))
    ends_in_special = trimmed.endswith(special)
    return len(opened), len(trimmed) if ends_in_special else len(closed)


def _tokens_before(tokenizer: Any, ids: list[int], text: str, position: int) -> int:
    """The number of tokens of `text` that end before a character position. `ids` are all tokens of `text`.

    A token across the position is not counted. It joins the header's last space with the first word of the answer, so
    it belongs to the answer.
    """
    pairs = zip(encode_text(tokenizer, text[:position]), ids, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
