"""Ask a model the items of a suite: in batches, turn by turn, through the chat template."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from calibration.chat import encode_text, has_template, render_prompt
from compress.core.sampling import Ids, Sampling
from compress.evaluate.tasks.item import Item
from compress.evaluate.tasks.suite import KINDS
from compress.runtimes.protocol import Runtime

Message = dict[str, str]
LABELS = {"user": "Question:", "assistant": "Answer:"}  # used if the tokenizer has no chat template


def answer_items(
    runtime: Runtime, tokenizer: Any, items: Sequence[Item], batch_size: int
) -> Iterator[tuple[Item, list[str]]]:
    """Yields each item with the model's greedy answers, one per turn, as soon as the item's batch is done."""
    for batch in answer_batches(runtime, tokenizer, items, batch_size):
        yield from batch


def answer_batches(
    runtime: Runtime, tokenizer: Any, items: Sequence[Item], batch_size: int
) -> Iterator[list[tuple[Item, list[str]]]]:
    """Yields the items of each batch with the model's greedy answers, one per turn."""
    for group in batches(items, batch_size):
        yield list(zip(group, converse(runtime, tokenizer, group), strict=True))


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Batches of items with the same number of turns. Items with short answers and short prompts come first.

    A batch takes as long as its longest answer, so items with answers of similar length share a batch.
    """
    for _, same in groupby(sorted(items, key=cost), key=lambda item: len(item.turns)):
        alike = list(same)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def cost(item: Item) -> tuple[int, int, str, int]:
    """The sort key of `batches`: turns, longest answer in tokens, kind, characters of the prompts."""
    return len(item.turns), KINDS[item.kind].max_tokens, item.kind, len("".join(item.turns))


def converse(runtime: Runtime, tokenizer: Any, items: Sequence[Item]) -> list[list[str]]:
    """Answer all turns of a batch. Each answer becomes part of the item's conversation."""
    limits = [KINDS[item.kind].max_tokens for item in items]
    conversations: list[list[Message]] = [[] for _ in items]
    for turn in range(len(items[0].turns)):
        for item, messages in zip(items, conversations, strict=True):
            text = item.turns[turn] if turn else KINDS[item.kind].first_turn(item)
            messages.append({"role": "user", "content": text})
        prompts = [encode(tokenizer, messages) for messages in conversations]
        answers = runtime.generate(prompts, Sampling(max(limits)))
        for messages, answer, limit in zip(conversations, answers, limits, strict=True):
            messages.append({"role": "assistant", "content": decode(tokenizer, answer.ids[:limit])})
    return [[message["content"] for message in messages[1::2]] for messages in conversations]


def encode(tokenizer: Any, messages: Sequence[Message]) -> Ids:
    """The token ids of a conversation, followed by the beginning of the next answer.

    Thinking is turned off if the chat template can do that.
    """
    if has_template(tokenizer):
        where = f"{getattr(tokenizer, 'name_or_path', '')}: task of {len(messages)} messages"
        return encode_text(tokenizer, render_prompt(tokenizer, messages, where))
    lines = [f"{LABELS[message['role']]} {message['content']}" for message in messages]
    return list(tokenizer("\n".join([*lines, LABELS["assistant"]]))["input_ids"])


def decode(tokenizer: Any, ids: Ids) -> str:
    """The text of an answer. A model without a chat template may add a new question; that part is cut off."""
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    return (text if has_template(tokenizer) else text.partition(f"\n{LABELS['user']}")[0]).strip()
