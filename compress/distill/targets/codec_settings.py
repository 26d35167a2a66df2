"""The settings of each codec, as a manifest stores them. `codecs.py` adds the encoding, which needs torch.

`biased`: targets averaged over many caches do not equal the teacher's probabilities. `sparse`: targets are valid for
one temperature and one vocabulary.
"""

from dataclasses import dataclass
from typing import Any

from compress.core.dtypes import Dtype
from compress.core.errors import BadValueError


@dataclass(frozen=True)
class HiddenSettings:
    """The dtype of the stored hidden states."""

    dtype: str = "float16"
    biased, sparse = False, False

    def bytes_per_token(self, width: int) -> int:
        return width * Dtype(self.dtype).itemsize


@dataclass(frozen=True)
class HybridSettings:
    """The numbers of the likeliest tokens and of random draws, for one vocabulary and temperature."""

    vocab: int
    temperature: float = 1.0
    top_k: int = 12
    draws: int = 10
    biased, sparse = False, True

    def bytes_per_token(self, width: int) -> int:
        return 3 * (self.top_k + self.draws) + 2 * (self.top_k + 1) + 4


@dataclass(frozen=True)
class TopKSettings:
    """The number of the likeliest tokens, for one vocabulary and temperature."""

    vocab: int
    temperature: float = 1.0
    top_k: int = 50
    renormalise: bool = True
    biased, sparse = True, True

    def bytes_per_token(self, width: int) -> int:
        return 5 * self.top_k


CodecSettings = HiddenSettings | HybridSettings | TopKSettings
SETTINGS: dict[str, type[CodecSettings]] = {"hidden": HiddenSettings, "hybrid": HybridSettings, "topk": TopKSettings}


def check_codec(settings: dict[str, Any]) -> CodecSettings:
    """The settings of a manifest, including the codec's "name". Raises ValueError if a number is invalid."""
    options = {key: value for key, value in settings.items() if key != "name"}
    checked = SETTINGS[settings["name"]](**options)
    kept, vocab = options.get("top_k", 1), options.get("vocab", 2)
    if not 1 <= kept < vocab or options.get("draws", 1) < 1:
        raise BadValueError(f"codec {settings}: top_k must be from 1 to {vocab - 1}, and draws must be 1 or more")
    return checked
