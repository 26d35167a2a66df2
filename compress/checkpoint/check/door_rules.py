"""Rule F1: the checkpoint passes the rules that qcompress applies before any work.

Commands stop at the first fault. The validator lists all faults, and adds what a runtime does with each.
"""

from collections.abc import Callable
from typing import Any

from compress.checkpoint.check.candidate import Candidate, Findings, error
from compress.checkpoint.door.config_values import config_faults
from compress.checkpoint.door.dtypes import quantization_faults
from compress.checkpoint.door.fault import Faults
from compress.checkpoint.door.files import file_faults
from compress.checkpoint.door.rope import rope_faults
from compress.checkpoint.door.sizes import size_faults
from compress.checkpoint.read import Checkpoint

CONFIG_RULES: tuple[tuple[Callable[[dict[str, Any]], Faults], str], ...] = (
    (config_faults, "transformers stops, and vLLM stops or replaces the value"),
    (rope_faults, "loaders follow one of the two spellings: some compute other positions (no error), or stop"),
)
CHECKPOINT_RULES: tuple[tuple[Callable[[Checkpoint], Faults], str], ...] = (
    (file_faults, "transformers and vLLM load different files (no error)"),
    (quantization_faults, "vLLM reads codes as weights and generates noise (no error), or stops"),
    (size_faults, "vLLM stops: shapes differ, or there is not enough memory"),
)


def passes_door(candidate: Candidate) -> Findings:
    """F1: config.json, rope settings, files, dtypes and sizes pass the rules that every command applies first."""
    for rule, consequence in CONFIG_RULES:
        for fault in rule(candidate.config):
            yield error(fault.text, fault.cure, consequence, key=fault.key or fault.file)
    for check, consequence in CHECKPOINT_RULES:
        for fault in check(candidate.checkpoint):
            place = {"key": f"{fault.file}: {fault.key}"} if fault.key else {"file": fault.file or "the folder"}
            yield error(fault.text, fault.cure, consequence, **place)
