"""A small byte-level BPE tokenizer. A blank belongs to the token of the word after it, as in real tokenizers."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "the miller asks the river how deep it is, and the river answers that it depends on the year",
    "a river has no opinion; the miller has two, and the second contradicts the first",
    "system\nuser\nassistant\nuser: how are you?\nassistant: well, thank you.\n\n",
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """A function of a chat template that returns a new tokenizer. ChatML is the default; None gives no template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)

    def make(chat_template: str | None = CHATML, eos_token: str | None = "<|im_end|>") -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<s>",
            eos_token=eos_token,
            additional_special_tokens=["<|im_start|>", "<|im_end|>"],
            chat_template=chat_template,
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer()
