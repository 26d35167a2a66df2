"""Settings of the export to .gguf: where the file may be inexact. By default it is exact."""

from collections.abc import Sequence
from dataclasses import dataclass

from compress.core.config import check_choice
from compress.ship.gguf.encode import BLOCKS

EMBEDDING_TYPES = {"f16": None, "q8_0": "Q8_0", "q6_k": "Q6_K"}  # None: the dtype of the checkpoint


@dataclass(frozen=True)
class GgufSettings:
    """How embedding and head are stored, the largest size of the file in bytes, and whether linears may be inexact.

    If `embedding_type` is None, embedding and head stay as they are, or become as small as `max_size` requires.
    Raises ValueError for an unknown type.
    """

    embedding_type: str | None = None
    max_size: int | None = None
    allow_error: bool = False

    def __post_init__(self) -> None:
        check_choice("--embedding-type", self.embedding_type, (None, *EMBEDDING_TYPES))

    def embedding_types(self, columns: int) -> Sequence[str]:
        """The types of embedding and head to try, for rows of so many values. The most exact one comes first."""
        if self.embedding_type or self.max_size is None:
            return (self.embedding_type or "f16",)
        return [name for name, kind in EMBEDDING_TYPES.items() if not kind or columns % BLOCKS[kind][0] == 0]


EXACT = GgufSettings()
