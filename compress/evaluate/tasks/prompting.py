"""From items to prompts and from token ids to answers: turn by turn, through the chat template, in batches."""

from collections.abc import Iterator, Sequence
from typing import Any

from calibration.chat import encode_text, has_template
from compress.core.sampling import Ids, Sampling
from compress.evaluate.tasks.item import Item
from compress.evaluate.tasks.suite import KINDS
from compress.runtimes.protocol import Runtime

Message = dict[str, str]
LABELS = {"user": "Question:", "assistant": "Answer:"}  # the format for a model without a chat template


def answer_items(
    runtime: Runtime, tokenizer: Any, items: Sequence[Item], batch_size: int
) -> Iterator[tuple[Item, list[str]]]:
    """Every item with the model's greedy answers, one per turn, as soon as its batch is done."""
    for group in batches(items, batch_size):
        yield from zip(group, converse(runtime, tokenizer, group), strict=True)


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Batches of items that share kind and number of turns, sorted by length, shortest first, to save padding."""
    kinds = list(KINDS)
    ordered = sorted(items, key=lambda item: (kinds.index(item.kind), len(item.turns), len("".join(item.turns))))
    group: list[Item] = []
    for item in ordered:
        if group and (len(group) == size or batch_key(group[0]) != batch_key(item)):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def batch_key(item: Item) -> tuple[str, int]:
    """What the items of a batch have in common."""
    return item.kind, len(item.turns)


def converse(runtime: Runtime, tokenizer: Any, items: Sequence[Item]) -> list[list[str]]:
    """The answers to all turns of a batch. Each answer becomes part of its item's conversation."""
    kind = KINDS[items[0].kind]
    conversations: list[list[Message]] = [[] for _ in items]
    for turn in range(len(items[0].turns)):
        for item, messages in zip(items, conversations, strict=True):
            text = item.turns[turn] if turn else kind.first_turn(item)
            messages.append({"role": "user", "content": text})
        prompts = [encode(tokenizer, messages) for messages in conversations]
        answers = runtime.generate(prompts, Sampling(kind.max_tokens))
        for messages, answer in zip(conversations, answers, strict=True):
            messages.append({"role": "assistant", "content": decode(tokenizer, answer.ids)})
    return [[message["content"] for message in messages[1::2]] for messages in conversations]


def encode(tokenizer: Any, messages: Sequence[Message]) -> Ids:
    """Token ids of the conversation and the start of the next answer. Thinking is off if the template allows that."""
    if has_template(tokenizer):
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return encode_text(tokenizer, tokenizer.apply_chat_template(list(messages), **options))
    lines = [f"{LABELS[message['role']]} {message['content']}" for message in messages]
    return list(tokenizer("\n".join([*lines, LABELS["assistant"]]))["input_ids"])


def decode(tokenizer: Any, ids: Ids) -> str:
    """The text of an answer. A model without a chat template may continue with a new question, which is cut off."""
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    return (text if has_template(tokenizer) else text.partition(f"\n{LABELS['user']}")[0]).strip()
