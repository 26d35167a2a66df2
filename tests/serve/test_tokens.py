"""Tokens are counted as the engine will count them."""

import pytest

from calibration.chat import encode_text, render_prompt
from compress.checkpoint.read import Checkpoint
from compress.serve.messages import Attachment, ChatMessage, plain
from compress.serve.tokens import MARGIN, TokenCounter

TURNS = [
    ChatMessage("user", "the quick brown fox"),
    ChatMessage("assistant", "a model answers"),
    ChatMessage("user", "why?"),
]


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return Checkpoint(tiny_llama).tokenizer


@pytest.mark.parametrize(
    "messages",
    [
        TURNS[:1],
        TURNS,
        [ChatMessage("system", "be brief"), *TURNS],
        [ChatMessage("user", "?", (Attachment("a", "b c"),))],
    ],
    ids=["one turn", "three turns", "system prompt", "a document"],
)
def test_a_conversation_has_the_tokens_of_its_prompt(tokenizer, messages):
    prompt = encode_text(tokenizer, render_prompt(tokenizer, plain(messages), "test"))
    assert abs(TokenCounter(tokenizer).messages(messages) - len(prompt)) <= MARGIN // 4


def test_without_a_tokenizer_tokens_are_estimated_and_marked(tokenizer):
    counter = TokenCounter(None)
    assert not counter.exact and TokenCounter(tokenizer).exact
    assert counter.text("word " * 700) == 1000 and counter.text("苹果价格") == 4
