"""Messages become token ids and a loss mask, through the model's own chat template.

A template with `{% generation %}` marks the assistant's tokens. With any other template, the conversation is rendered
up to each assistant turn and again with it: the difference, after the turn's header, is the assistant's text. This
needs a template that renders every prefix of a conversation as a prefix of its text, which is checked.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from calibration.errors import CalibrationError

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
Message = Mapping[str, Any]


def has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def encode_chat(tokenizer: Any, messages: Sequence[Message], where: str) -> tuple[list[int], list[bool]]:
    """Token ids of the whole conversation, and True on the assistant's tokens, end-of-turn token included.

    An assistant's turn at the start of a conversation answers nothing; it stays False unless the template marks it.

    Raises CalibrationError, beginning with `where`, if there is no template, if it rejects the conversation, or if
    it renders a turn differently once more turns follow.
    """
    if not has_template(tokenizer):
        raise CalibrationError(
            f"{where}: has `messages`, but the tokenizer has no chat template; "
            "use rows with `text`, or a model directory with chat_template.jinja"
        )
    if MARKED.search(str(tokenizer.chat_template)):
        return _marked(tokenizer, messages, where)
    return _by_prefixes(tokenizer, messages, where)


def render_prompt(tokenizer: Any, messages: Sequence[Message], where: str) -> str:
    """The conversation as text, with the header of the assistant's answer. Thinking is switched off.

    Raises CalibrationError, beginning with `where`, if the template rejects the conversation.
    """
    return str(_apply(tokenizer, messages, where, tokenize=False, add_generation_prompt=True, enable_thinking=False))


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` alone, without the tokenizer's special tokens around it."""
    encoded = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return list(encoded["input_ids"])


def _marked(tokenizer: Any, messages: Sequence[Message], where: str) -> tuple[list[int], list[bool]]:
    encoded = _apply(tokenizer, messages, where, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    return list(encoded["input_ids"]), [bool(flag) for flag in encoded["assistant_masks"]]


def _by_prefixes(tokenizer: Any, messages: Sequence[Message], where: str) -> tuple[list[int], list[bool]]:
    text = _apply(tokenizer, messages, where, tokenize=False)
    ids = encode_text(tokenizer, text)
    mask = [False] * len(ids)
    for turn, message in enumerate(messages):
        if turn and message["role"] == "assistant":
            span = _span(tokenizer, messages, turn, text, where)
            start, end = (_tokens_before(tokenizer, ids, text, position) for position in span)
            mask[start:end] = [True] * (end - start)
    return ids, mask


def _span(tokenizer: Any, messages: Sequence[Message], turn: int, text: str, where: str) -> tuple[int, int]:
    """The characters of `text` of this assistant turn: from the end of its header to its end-of-turn token."""
    opened = _apply(tokenizer, messages[:turn], where, tokenize=False, add_generation_prompt=True)
    closed = _apply(tokenizer, messages[: turn + 1], where, tokenize=False)
    if not (text.startswith(closed) and closed.startswith(opened)):
        raise CalibrationError(
            f"{where}: message {turn + 1}: the chat template renders this turn differently once more turns follow, so "
            "the assistant's tokens cannot be located; mark them with {% generation %} in "
            "the template, or use rows with `text`"
        )
    trimmed = closed.rstrip()
    special = (*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values()))
    ends_in_special = trimmed.endswith(special)
    return len(opened), len(trimmed) if ends_in_special else len(closed)


def _tokens_before(tokenizer: Any, ids: list[int], text: str, position: int) -> int:
    """The number of ids of `text` that end before a character position.

    A token across the position is not counted: one that joins the header's last space and the answer's first word
    belongs to the answer.
    """
    pairs = zip(encode_text(tokenizer, text[:position]), ids, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _apply(tokenizer: Any, messages: Sequence[Message], where: str, **options: Any) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template([dict(message) for message in messages], **options)
    except TemplateError as error:
        raise CalibrationError(
            f"{where}: the chat template rejects this conversation ({error}); change the row"
        ) from error
