"""Items put to a model: turn by turn, through its chat template where it has one, in batches of like length."""

from collections.abc import Iterator, Sequence
from typing import Any

from calibration.chat import encode_text, has_template
from compress.evaluate.tasks.item import Item
from compress.evaluate.tasks.suite import KINDS
from compress.runtimes.transformers_generate import Engine, Ids

Message = dict[str, str]
ASKS, ANSWERS = "Question:", "Answer:"  # how a conversation is written for a model without a template


def answer_items(engine: Engine, tokenizer: Any, items: Sequence[Item], batch: int) -> Iterator[tuple[Item, list[str]]]:
    """Every item with the model's answers, one a turn, as soon as its batch is done."""
    for group in batches(items, batch):
        yield from zip(group, converse(engine, tokenizer, group), strict=True)


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Items of one kind and as many turns together, the shortest first: little padding, and answers soon."""
    kinds = list(KINDS)
    ordered = sorted(items, key=lambda item: (kinds.index(item.kind), len(item.turns), len("".join(item.turns))))
    group: list[Item] = []
    for item in ordered:
        if group and (len(group) == size or like(group[0]) != like(item)):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def like(item: Item) -> tuple[str, int]:
    return item.kind, len(item.turns)


def converse(engine: Engine, tokenizer: Any, items: Sequence[Item]) -> list[list[str]]:
    """The answers to every turn of items that are alike; each answer stays in its own conversation."""
    kind = KINDS[items[0].kind]
    conversations: list[list[Message]] = [[] for _ in items]
    for turn in range(len(items[0].turns)):
        for item, messages in zip(items, conversations, strict=True):
            text = item.turns[turn] if turn else kind.first_turn(item)
            messages.append({"role": "user", "content": text})
        made = engine([encode(tokenizer, messages) for messages in conversations], kind.max_tokens)
        for messages, ids in zip(conversations, made, strict=True):
            messages.append({"role": "assistant", "content": decode(tokenizer, ids)})
    return [[message["content"] for message in messages[1::2]] for messages in conversations]


def encode(tokenizer: Any, messages: Sequence[Message]) -> Ids:
    """The conversation so far and what opens the next answer. Models that can think aloud are asked not to."""
    if has_template(tokenizer):
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return encode_text(tokenizer, tokenizer.apply_chat_template(list(messages), **options))
    marks = {"user": ASKS, "assistant": ANSWERS}
    lines = [f"{marks[message['role']]} {message['content']}" for message in messages]
    return list(tokenizer("\n".join([*lines, ANSWERS]))["input_ids"])


def decode(tokenizer: Any, ids: Ids) -> str:
    """The answer's text; without a template, only up to the next question that the model asks itself."""
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    return (text if has_template(tokenizer) else text.partition(f"\n{ASKS}")[0]).strip()
