"""Training from a cache: check that it fits the run, rebuild its windows, and use its targets instead of a teacher."""

from typing import Any

import torch
from torch import Tensor

from calibration.start import StartToken
from calibration.windows import Windows
from compress.checkpoint.load import template_digest, tokenizer_digest
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig
from compress.distill.model import Model
from compress.distill.targets.cache import Cache, settings_cache, window_digests, windows_digest
from compress.distill.text.packing import positions
from compress.distill.text.windows import Text, read_text
from compress.losses import LogitSource, Targets, next_tokens


def open_cache(settings: DistillConfig, teacher: Checkpoint, vocab: int) -> Cache:
    """Open the cache that `settings` name. Raises QCompressError if it belongs to another teacher or tokenizer."""
    cache = settings_cache(settings)
    facts: dict[str, Any] = {
        "tokenizer": tokenizer_digest(teacher.tokenizer),
        "chat_template": template_digest(teacher.tokenizer),
    }
    if cache.codec.sparse:
        facts["vocab"] = vocab
    cache.check(teacher=teacher.digest, **facts)
    return cache


def cache_text(cache: Cache, settings: DistillConfig, tokenizer: Any) -> Text:
    """The captured windows, built again from the text, and evaluation windows.

    Raises QCompressError if the text has changed since the capture.
    """
    data = cache.manifest.data
    size = {"seq_len": settings.seq_len, "seed": settings.seed}
    start = StartToken(**data["start"])
    text = read_text(settings.text, settings.eval_text, tokenizer, data["n_samples"], size, start, settings.packing)
    sources = [source["digest"] for source in text.windows.manifest["sources"]]
    cache.check(text=sources, samples=len(text.windows.ids), windows=windows_digest(text.windows))
    return text


class CachedTeacher:
    """Replaces the teacher during training: `side(ids)` returns the stored targets of captured windows."""

    on_host = True  # `side` looks windows up by their ids, so ids on a GPU would have to come back

    def __init__(self, cache: Cache, windows: Windows, teacher: Model):
        """Keeps only the head and the device of `teacher`.

        Raises QCompressError if two windows have equal tokens but different masks or documents.
        """
        weight = teacher.model.get_output_embeddings().weight.detach()
        self.cache, self.windows = cache, windows
        self._head = LogitSource(weight[:0], weight, teacher.head)
        self._digests = window_digests(windows.ids)
        borders = None if windows.documents is None else positions(windows.documents)
        self._places = {row.numpy().tobytes(): place for place, row in enumerate(self._digests)}
        for place, row in enumerate(self._digests):
            twin = self._places[row.numpy().tobytes()]
            if any(one is not None and not torch.equal(one[place], one[twin]) for one in (windows.mask, borders)):
                raise QCompressError(
                    f"{cache.path}: windows {place} and {twin} have equal tokens but different masks or documents; "
                    "remove the repeated text and capture again"
                )

    def side(self, ids: Tensor, documents: Tensor | None = None) -> Targets:
        """The targets of (batch, seq) ids, as (batch, seq - 1, …). Masked positions hold zeros.

        `documents` is ignored, because the capture already separated the documents.
        """
        places = [self._places[row.numpy().tobytes()] for row in window_digests(ids)]
        windows = [self.cache.rows(place, self._digests[place]) for place in places]
        _, keep = next_tokens(self.windows.ids[places], self.windows.mask[places])
        full = {}
        for name in windows[0]:
            rows = torch.cat([parts[name] for parts in windows])
            full[name] = rows.new_zeros(*keep.shape, *rows.shape[1:])
            full[name][keep] = rows
        return self.cache.codec.decode(full, self._head)
