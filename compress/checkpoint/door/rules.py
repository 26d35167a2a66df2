"""All rules of the door that need no model: an open checkpoint's files, config.json and headers.

`compress.checkpoint.load` adds those that need transformers. A new rule is a function that yields faults, and one
entry below.
"""

from typing import TYPE_CHECKING, Any

from compress.checkpoint.door.config_values import config_faults
from compress.checkpoint.door.dtypes import quantization_faults
from compress.checkpoint.door.fault import Faults
from compress.checkpoint.door.files import file_faults
from compress.checkpoint.door.rope import rope_faults
from compress.checkpoint.door.sizes import declared_faults, size_faults

if TYPE_CHECKING:
    from compress.checkpoint.read import Checkpoint

CONFIG_RULES = (config_faults, rope_faults)
CHECKPOINT_RULES = (file_faults, quantization_faults, size_faults)


def checkpoint_faults(checkpoint: "Checkpoint") -> Faults:
    """Everything that is wrong with an open checkpoint, by its headers and small files alone."""
    for rule in CONFIG_RULES:
        yield from rule(checkpoint.config)
    for check in CHECKPOINT_RULES:
        yield from check(checkpoint)


def settings_faults(config: dict[str, Any]) -> Faults:
    """Everything that is wrong with a config.json without weights."""
    for rule in (*CONFIG_RULES, declared_faults):
        yield from rule(config)
