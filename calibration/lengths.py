"""Check that sources are long enough for their windows. Each source is read only until it has enough tokens."""

from collections.abc import Sequence
from typing import Any

from calibration.corpus import TextSource, is_on_hub, iterate_documents, parse_source
from calibration.windows import divide_tokens, encode_document, too_short


def check_lengths(sources: Sequence[str], tokenizer: Any, *, n_samples: int, body: int) -> dict[str, int]:
    """The number of tokens that each source, by label, contributes to `n_samples` windows of `body` tokens.

    Raises TooShortError, as `build_windows` does, if a source has too few tokens. A hub dataset is not read.
    """
    texts = [parse_source(source) for source in sources]
    quotas = divide_tokens([text.weight for text in texts], n_samples * body)
    for text, quota in zip(texts, quotas, strict=True):
        available = quota if is_on_hub(text.name) else count_tokens(text, tokenizer, quota)
        if available < quota:
            raise too_short(text.name, available, quota, n_samples, body)
    return {text.label: quota for text, quota in zip(texts, quotas, strict=True)}


def count_tokens(text: TextSource, tokenizer: Any, limit: int) -> int:
    """The number of tokens of a source. Counting stops at `limit` or more tokens."""
    count = 0
    for document in iterate_documents(text.name):
        if count >= limit:
            break
        count += len(encode_document(document, tokenizer, limit - count, answers_only=True)[0])
    return count
