"""Complete the config.json of a backend's checkpoint where `check` reports a fault. Tensors are never changed.

Backends leave out keys that only some loaders need, or write config.json with another version of transformers. Every
change comes from a finding, and the record lists it: key, old value, new value, rule.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.read import CONFIG, Checkpoint, read_json
from compress.checkpoint.write import both_spellings, write_json

QUANT = "quantization_config"
ROUNDS = 3  # one change can uncover another fault
Config = dict[str, Any]
Row = dict[str, Any]
Change = Callable[[Config, Checkpoint, Checkpoint, str], Config]


def as_in_source(config: Config, written: Checkpoint, source: Checkpoint, key: str) -> Config:
    """C10: the key has the value of the source, or is absent as there."""
    rest = {name: value for name, value in config.items() if name != key}
    return rest | ({key: source.config[key]} if key in source.config else {})


def in_both_spellings(config: Config, written: Checkpoint, source: Checkpoint, key: str) -> Config:
    """O1, O2: the keys of transformers 4 and 5."""
    return both_spellings(config)


def dtype_of_scales(config: Config, written: Checkpoint, source: Checkpoint, key: str) -> Config:
    """C2: the dtype is that of the stored scales."""
    scales = (info.dtype for name, info in written.tensors.items() if name.endswith(("scales", "weight_scale")))
    dtype = next((str(dtype) for dtype in scales), None)
    return config if dtype is None or key != "dtype" else config | {"dtype": dtype, "torch_dtype": dtype}


def with_default(config: Config, written: Checkpoint, source: Checkpoint, key: str) -> Config:
    """C4, C5: an absent key of quantization_config gets the value that its writer means."""
    name = key.removeprefix(f"{QUANT}.")
    values = {"version": "gemm", "checkpoint_format": config[QUANT].get("format") or "gptq"}
    if name not in values or name in config[QUANT]:
        return config
    return config | {QUANT: config[QUANT] | {name: values[name]}}


CHANGES: dict[str, Change] = {
    "C2": dtype_of_scales,
    "C4": with_default,
    "C5": with_default,
    "C10": as_in_source,
    "O1": in_both_spellings,
    "O2": in_both_spellings,
}


def complete_config(folder: Path, source: Checkpoint) -> list[Row]:
    """Correct config.json in `folder` where a finding of `check` has an entry in CHANGES. Returns one row per key."""
    rows: list[Row] = []
    for _ in range(ROUNDS):
        changed = complete_once(folder, source)
        rows += changed
        if not changed:
            break
    return rows


def complete_once(folder: Path, source: Checkpoint) -> list[Row]:
    """Apply the changes of all present findings once."""
    written, before = Checkpoint(folder), read_json(folder / CONFIG)
    config, rows = before, []
    for finding in check_checkpoint(written, source=source):
        change = CHANGES.get(finding["rule"])
        if change is None or "key" not in finding:
            continue
        after = change(config, written, source, finding["key"])
        rows += differences(config, after, finding["rule"])
        config = after
    if config != before:
        write_json(folder / CONFIG, config)
    return rows


def differences(before: Config, after: Config, rule: str) -> list[Row]:
    """One row per key whose value differs, those of quantization_config one by one."""
    old, new = (flat(config) for config in (before, after))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [{"key": name, "was": old.get(name), "now": new.get(name), "rule": rule} for name in names]


def flat(config: Config) -> Config:
    """The values of config.json by path, such as "quantization_config.version"."""
    quantization = config.get(QUANT)
    inner = quantization if isinstance(quantization, dict) else {}
    outer = {name: value for name, value in config.items() if name != QUANT}
    return outer | {f"{QUANT}.{name}": value for name, value in inner.items()}
