"""The tokens of a request are counted behind a gate, and not at all if the text is far too long."""

import asyncio

import pytest

from compress.serve.errors import RefusedError
from compress.serve.gate import Gate
from compress.serve.messages import Attachment, ChatMessage
from compress.serve.service import TOKEN_LENGTH, ServedModel
from compress.serve.tokens import TokenCounter


def make_model(**options):
    return ServedModel("small", None, Gate(1, 1), TokenCounter(None), "upstream", 100, **options)


@pytest.mark.parametrize("file", ["", "x" * (TOKEN_LENGTH * 100)], ids=["message", "file"])
def test_a_text_far_beyond_the_context_is_refused_uncounted(file):
    message = ChatMessage("user", "x" * (0 if file else TOKEN_LENGTH * 100), (Attachment("a", file),))
    make_model().check_length([message])
    with pytest.raises(RefusedError, match="12,801 characters"):
        make_model().check_length([message, ChatMessage("user", "?")])


def test_beyond_its_queue_no_tokens_are_counted():
    model = make_model(counting=Gate(1, 0))

    async def main():
        async with model.counting.slot():
            await model.count([ChatMessage("user", "hello")])

    with pytest.raises(RefusedError) as refused:
        asyncio.run(main())
    assert refused.value.status == 503
