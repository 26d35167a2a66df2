"""GPUs that run jobs: memory, rates and bandwidth, for estimates. Boards that serve a model are in another table.

Rates are those of dense products in the vendors' public data sheets: 16-bit factors with float32 sums, and float32.
"""

from dataclasses import dataclass

from calibration.suggest import did_you_mean
from compress.core.errors import QCompressError

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU: memory in bytes, operations per second in 16 bits and in float32, and bytes per second of its memory."""

    name: str
    title: str
    memory: int
    flops: float
    float32_flops: float
    bandwidth: float

    def seconds(self, flops: float, float32_flops: float, moved: float) -> float:
        """The least seconds of a job: its operations at full rate, or its bytes at full bandwidth if that is longer."""
        return max(flops / self.flops + float32_flops / self.float32_flops, moved / self.bandwidth)


CARDS = (
    Card("t4", "T4 16GB", 15 * GIB, 65e12, 8.1e12, 320e9),
    Card("l4", "L4 24GB", 22 * GIB, 121e12, 30.3e12, 300e9),
    Card("a10", "A10 24GB", 22 * GIB, 125e12, 31.2e12, 600e9),
    Card("rtx-4090", "RTX 4090 24GB", 23 * GIB, 165e12, 82.6e12, 1008e9),
    Card("l40s", "L40S 48GB", 44 * GIB, 362e12, 91.6e12, 864e9),
    Card("a100-40", "A100 40GB", 39 * GIB, 312e12, 19.5e12, 1555e9),
    Card("a100", "A100 80GB", 79 * GIB, 312e12, 19.5e12, 2039e9),
    Card("h100", "H100 SXM 80GB", 79 * GIB, 989e12, 66.9e12, 3350e9),
    Card("h200", "H200 SXM 141GB", 139 * GIB, 989e12, 66.9e12, 4800e9),
)
CARD_NAMES = tuple(card.name for card in CARDS)


def find_card(name: str) -> Card:
    """The card with this name. Raises QCompressError if the table has none."""
    for card in CARDS:
        if card.name == name:
            return card
    raise QCompressError(f"--hardware {name}: use one of {', '.join(CARD_NAMES)}{did_you_mean(name, CARD_NAMES)}")
