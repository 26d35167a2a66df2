"""How a checkpoint was made, according to its record: the method, the linears that AWQ scaled, and what was tuned.

Without a record, any linear of a known family may have been scaled by AWQ.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compress.checkpoint.check.table import Table
from compress.model.families import Stage

MADE_BY_TRAINING = ("distill", "init-student")  # commands whose weights are not those of their source


@dataclass(frozen=True)
class Provenance:
    """The record of a checkpoint ({} without one), its config.json and its module table."""

    record: dict[str, Any]
    config: dict[str, Any]
    table: Table

    @property
    def trained(self) -> bool:
        """Whether the weights were trained or cut, so that they differ from those of the recorded source."""
        return self.record.get("command") in MADE_BY_TRAINING

    @property
    def dequantized(self) -> bool:
        """Whether the weights were quantized to a .gguf file, and are stored here as 16-bit numbers."""
        settings = self.record.get("settings")
        return isinstance(settings, dict) and settings.get("format") == "gguf"

    @property
    def method(self) -> str | None:
        """The method that quantized the checkpoint; None without a record."""
        settings = self.record.get("settings")
        method = settings.get("method") if isinstance(settings, dict) else None
        return method if isinstance(method, str) else None

    @property
    def rounded_to_nearest(self) -> bool:
        return self.method == "rtn" and not self.record.get("tune")

    def is_tuned(self, name: str) -> bool:
        """Whether tuning has trained this parameter: norms and biases of the blocks."""
        return bool(self.record.get("tune")) and name.startswith(tuple(f"{block}." for block in self.table.block_names))

    @cached_property
    def _scaled_linears(self) -> set[str] | None:
        """The linears that the record marks as scaled; None if it has no rows."""
        rows = self.record.get("rows")
        if self.record.get("command") != "quantize" or not isinstance(rows, list):
            return None
        listed = [row for row in rows if isinstance(row, dict)]
        return {f"{row.get('block')}.{row.get('linear')}" for row in listed if row.get("scaled")}

    def is_scaled(self, block: str, stage: Stage) -> bool:
        """Whether AWQ has scaled, or may have scaled, the inputs of a stage."""
        if stage.feeder is None or self.config.get("quantization_config") is None:
            return False
        return self._scaled_linears is None or f"{block}.{stage.linears[0]}" in self._scaled_linears

    def scaled_stages(self) -> Iterator[tuple[str, Stage]]:
        """(block, stage) of every stage that is or may be scaled."""
        for block, stages in self.table.stages.items():
            for stage in stages:
                if self.is_scaled(block, stage):
                    yield block, stage

    @cached_property
    def feeding_rows(self) -> dict[str, int]:
        """{linear: number of its outputs, counted from the last one, that feed a scaled stage}."""
        heads, kv_heads = self.heads
        counts: dict[str, int] = {}
        for block, stage in self.scaled_stages():
            inputs = self.table.linears[f"{block}.{stage.linears[0]}"].inn
            assert stage.feeder is not None
            if stage.feeder.kind == "rows":
                counts[f"{block}.{stage.feeder.module}"] = inputs
            elif stage.feeder.kind == "heads":
                counts[f"{block}.{stage.feeder.module}"] = inputs // heads * kv_heads
        return counts

    @property
    def heads(self) -> tuple[int, int]:
        """The numbers of query heads and of key-value heads."""
        heads = self.config.get("num_attention_heads") or 1
        return heads, self.config.get("num_key_value_heads") or heads

    @cached_property
    def scaled_parameters(self) -> frozenset[str]:
        """The norm weights and biases that may differ from the source, because they feed a stage that AWQ scaled."""
        kinds = {"norm": "weight", "rows": "bias", "heads": "bias"}
        fed = ((block, stage.feeder) for block, stage in self.scaled_stages() if stage.feeder)
        return frozenset(f"{block}.{feeder.module}.{kinds[feeder.kind]}" for block, feeder in fed)
