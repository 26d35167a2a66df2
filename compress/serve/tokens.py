"""Count tokens of texts and conversations with a checkpoint's tokenizer, or estimate them without one."""

import threading
from collections.abc import Sequence
from typing import Any

from calibration.chat import encode_text, has_template, render_prompt
from compress.serve.messages import ChatMessage, quoted

SAMPLE = "x"
CHARACTERS_PER_TOKEN = 3.5  # of ASCII text, for the estimate; any other character counts as a token
MARGIN = 16  # tokens; a template may treat some conversations differently from the sample


class TokenCounter:
    """Counts tokens. `exact` is False without a tokenizer.

    The chat template is foreign code that runs with limited memory, and this limit would also hold for other requests.
    So it is rendered only once, here, to find the number of tokens that it adds per message.
    """

    def __init__(self, tokenizer: Any | None) -> None:
        self.tokenizer, self.exact = tokenizer, tokenizer is not None
        self.lock = threading.Lock()  # a fast tokenizer cannot be used by two threads at once
        self.first, self.further = self.template_tokens() if tokenizer is not None else (8, 8)

    def template_tokens(self) -> tuple[int, int]:
        """Tokens that the template adds to the first message, and to every further one."""
        if not has_template(self.tokenizer):
            return 8, 8
        turns = [{"role": "user", "content": SAMPLE}, {"role": "assistant", "content": SAMPLE}]
        one = self.text(render_prompt(self.tokenizer, turns[:1], "the chat template"))
        three = self.text(render_prompt(self.tokenizer, [*turns, turns[0]], "the chat template"))
        sample = self.text(SAMPLE)
        return max(0, one - sample), max(0, (three - one) // 2 - sample)

    def text(self, text: str) -> int:
        """The number of tokens of a text."""
        if self.tokenizer is None:
            ascii_count = sum(map(str.isascii, text))
            return round(ascii_count / CHARACTERS_PER_TOKEN) + len(text) - ascii_count
        with self.lock:
            return len(encode_text(self.tokenizer, text))

    def messages(self, messages: Sequence[ChatMessage]) -> int:
        """The number of tokens of a conversation as a prompt."""
        texts = sum(self.text(quoted(one)) for one in messages)
        return texts + self.first + self.further * (len(messages) - 1)
