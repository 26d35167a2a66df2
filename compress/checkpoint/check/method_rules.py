"""Rules C4–C8: the values of each method's quantization_config, and whether it names exactly the packed modules.

Every rule is a generator: it takes a Candidate and yields its findings.
"""

import re
from collections.abc import Iterator
from typing import Any

from compress.checkpoint.check.candidate import (
    ABSENT,
    QUANT,
    Candidate,
    Findings,
    declared_quantized,
    error,
    short,
    warning,
)
from compress.checkpoint.schemes import (
    V2,
    awq_key,
    ct_fused,
    ct_groups,
    ct_match,
    ct_weights,
    flatten,
    gptq_layout,
    gptq_override,
)
from compress.checkpoint.vllm_models import GROUP_SIZES

CT_WEIGHT_KEYS = frozenset(
    {
        *("num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder"),
        *("scale_dtype", "zp_dtype", "observer", "observer_kwargs"),
    }
)
SLOW_GROUPS = "vLLM's Marlin kernel does not support it: vLLM stops, or uses a slower kernel"
GPTQ_VALUES: dict[str, tuple[tuple[Any, ...], str]] = {
    "bits": ((4, 8), "vLLM stops: unsupported quantization config"),
    "group_size": (GROUP_SIZES, "vLLM stops: Marlin does not support group_size"),
    "desc_act": ((False,), "vLLM stops: GPTQ group activation ordering is no longer supported"),
    "sym": ((True,), "vLLM stops: unsupported quantization config"),
}


def awq_keys(candidate: Candidate) -> Findings:
    """C4: AWQ has 4 bits, zero points, the GEMM layout, and a group size that Marlin supports."""
    if not candidate.format or candidate.format.name != "awq":
        return
    quant = candidate.quant
    yield from check_value(awq_key(quant, "bits"), (4,), "vLLM stops: unsupported num_bits", "bits")
    yield from check_value(awq_key(quant, "group_size"), GROUP_SIZES, SLOW_GROUPS, "group_size")
    silent = "vLLM on CUDA still reads zero points, from uninitialized memory; without the key it stops"
    yield from check_value(quant.get("zero_point"), (True,), silent, "zero_point")
    other = "vLLM reads every AWQ file as GEMM; other loaders choose their kernel by this key"
    if str(quant.get("version", "gemm")).lower() != "gemm":
        yield from check_value(quant["version"], ("gemm",), other, "version")
    elif "version" not in quant:
        yield warning(ABSENT, "gemm", other, key=f"{QUANT}.version")


def gptq_keys(candidate: Candidate) -> Findings:
    """C5: GPTQ and every `dynamic` rule are symmetric, without act-order, with 4 or 8 bits in the v1 or v2 layout."""
    if not candidate.format or candidate.format.name != "gptq":
        return
    quant = candidate.quant
    for key in ("bits", "group_size", "desc_act", "sym"):
        if key not in quant:
            yield error(ABSENT, "a value", f"vLLM stops: cannot find any of ['{key}']", key=f"{QUANT}.{key}")
    dynamic = quant.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        yield error(short(dynamic), "an object of rules", "vLLM stops", key=f"{QUANT}.dynamic")
        dynamic = {}
    overrides = {f"dynamic.{k}.": v for k, v in dynamic.items() if not k.startswith("-:") and isinstance(v, dict)}
    for prefix, settings in {"": quant, **overrides}.items():
        for key, (allowed, consequence) in GPTQ_VALUES.items():
            if key in settings and not (
                key == "desc_act" and settings.get("group_size", quant.get("group_size")) == -1
            ):
                yield from check_value(settings[key], allowed, consequence, f"{prefix}{key}")
    layout = gptq_layout(quant)
    other = "vLLM ignores this key; other loaders read zeros that are off by one"
    if layout is None:
        yield warning(ABSENT, "gptq", other, key=f"{QUANT}.checkpoint_format")
    elif layout == V2:
        older = "vLLM ignores it and needs no zeros; loaders that ignore it too read zeros that are off by one"
        yield warning(layout, "gptq", older, key=f"{QUANT}.checkpoint_format")
    else:
        yield from check_value(layout, ("gptq",), other, "checkpoint_format")


def ct_keys(candidate: Candidate) -> Findings:
    """C6: compressed-tensors is weight-only and pack-quantized, and its targets are exactly the packed modules."""
    if not candidate.format or candidate.format.name != "compressed-tensors":
        return
    quant = candidate.quant
    groups = ct_groups(quant)
    if not groups:
        stop = "vLLM builds every linear unquantized and stops at the first packed tensor"
        yield error(short(quant.get("config_groups", ABSENT)), "at least one group", stop, key=f"{QUANT}.config_groups")
    for name, group in groups.items():
        yield from ct_group(candidate, f"config_groups.{name}", group)
    sparsity = quant.get("sparsity_config")
    if isinstance(sparsity, dict) and flatten(sparsity.get("targets")):
        yield error("targets", ABSENT, "vLLM stops: it no longer supports sparsity", key=f"{QUANT}.sparsity_config")
    for entry in flatten(quant.get("ignore")):
        yield from check_pattern(entry.removeprefix("re:") if entry.startswith("re:") else "", f"{QUANT}.ignore")
    for name, is_packed, is_declared in disagreements(candidate):
        if is_packed:
            stop = "vLLM builds this module unquantized and stops at its packed tensors"
            yield error("packed on disk", "a target that matches it, and no ignore entry", stop, tensor=name)
        elif is_declared:
            silent = (
                "vLLM builds this module quantized and leaves its codes uninitialized (no error), or stops at .weight"
            )
            yield error("plain on disk", f"{name} in {QUANT}.ignore", silent, tensor=name)
    head = candidate.table.head
    if head not in candidate.packed and not any(ct_match(head, entry) for entry in flatten(quant.get("ignore"))):
        others = "vLLM never packs the head by class, but transformers loads it as a packed Linear"
        yield error(ABSENT, head, others, key=f"{QUANT}.ignore")


def groups_by_name(candidate: Candidate) -> Findings:
    """C8: config_groups of compressed-tensors have the same settings for a linear and the vLLM layer that fuses it."""
    if not candidate.format or candidate.format.name != "compressed-tensors":
        return
    for name, shards in candidate.table.fused.items():
        fused = ct_fused(candidate.quant, name, shards)
        for shard in shards:
            weights = ct_weights(candidate.quant, shard, "linear")
            if weights != fused:
                other = f"vLLM uses the group of {name}: it stops at a shape, or generates noise (no error)"
                expected = f"{short(fused)}, as for {name}"
                yield error(short(weights), expected, other, key=f"{QUANT}.config_groups: {shard}")


def ct_group(candidate: Candidate, path: str, group: dict[str, Any]) -> Findings:
    """C6 for one config group at `path` in quantization_config."""
    quant, weights = candidate.quant, group.get("weights")
    key, no_scheme = f"{QUANT}.{path}", "vLLM stops: no compressed-tensors compatible scheme was found"
    targets = flatten(group.get("targets"))
    if not targets:
        yield error(ABSENT, "a list of modules", "vLLM stops", key=f"{key}.targets")
    for target in targets:
        yield from check_pattern(target.removeprefix("re:") if target.startswith("re:") else "", f"{key}.targets")
    yield from check_value(group.get("format") or quant.get("format"), ("pack-quantized",), no_scheme, f"{path}.format")
    for part in ("input_activations", "output_activations"):
        if group.get(part) is not None:
            yield error(short(group[part]), None, "vLLM quantizes activations too, or stops", key=f"{key}.{part}")
    if not isinstance(weights, dict):
        yield error(short(weights), "an object", no_scheme, key=f"{key}.weights")
        return
    for unknown in sorted(weights.keys() - CT_WEIGHT_KEYS):
        yield error(unknown, "a key of QuantizationArgs", "vLLM stops: ValidationError", key=f"{key}.weights.{unknown}")
    defaults = "vLLM uses the library's default: 8 bits, symmetric"
    for required in ("num_bits", "symmetric"):
        if required not in weights:
            yield error(ABSENT, "a value", defaults, key=f"{key}.weights.{required}")
    if "num_bits" in weights:
        yield from check_value(weights["num_bits"], (4, 8), no_scheme, f"{path}.weights.num_bits")
    if "symmetric" in weights:
        yield from check_value(weights["symmetric"], (True, False), no_scheme, f"{path}.weights.symmetric")
    yield from check_value(weights.get("type", "int"), ("int",), no_scheme, f"{path}.weights.type")
    yield from check_value(weights.get("dynamic", False), (False,), no_scheme, f"{path}.weights.dynamic")
    order = "vLLM stops: group activation ordering is no longer supported"
    yield from check_value(
        weights.get("actorder"), (None, False, "weight", "static"), order, f"{path}.weights.actorder"
    )
    yield from ct_strategy(weights, path, no_scheme)
    if weights.get("symmetric") is False and weights.get("num_bits") == 8:
        slow = "vLLM's Marlin kernel has no zero points for 8 bits: vLLM uses a slower kernel, or stops"
        yield warning(False, True, slow, key=f"{key}.weights.symmetric")


def ct_strategy(weights: dict[str, Any], path: str, consequence: str) -> Findings:
    """C6 for strategy and group_size of one config group."""
    group_size = weights.get("group_size")
    implied = "group" if isinstance(group_size, int) and group_size > 0 else "channel" if group_size == -1 else None
    strategy = weights.get("strategy", implied)
    yield from check_value(strategy, ("group", "channel"), consequence, f"{path}.weights.strategy")
    if strategy == "group" and implied != "group":
        stop = "vLLM stops: strategy group needs a positive group_size"
        yield error(group_size, "32, 64 or 128", stop, key=f"{QUANT}.{path}.weights.group_size")
    elif strategy == "channel" and implied == "group":
        stop = "vLLM stops: group_size requires strategy 'group'"
        yield error(group_size, "null or -1", stop, key=f"{QUANT}.{path}.weights.group_size")
    elif strategy == "group" and group_size not in GROUP_SIZES:
        yield warning(group_size, "32, 64 or 128", SLOW_GROUPS, key=f"{QUANT}.{path}.weights.group_size")


def skip_list(candidate: Candidate) -> Findings:
    """C7: modules_to_not_convert, matched as substrings, matches exactly the unpacked linears."""
    if not candidate.format or candidate.format.name != "awq":
        return
    entries = candidate.skipped
    for name, is_packed, is_declared in disagreements(candidate):
        if is_packed:
            hit = next((entry for entry in entries if entry in name), "lm_head")
            stop = "vLLM matches substrings, builds this module unquantized and stops at its packed tensors"
            yield error(hit, f"no entry that is part of {name}", stop, key=f"{QUANT}.modules_to_not_convert")
        elif is_declared:
            silent = (
                "vLLM builds this module quantized and leaves its codes uninitialized (no error), or stops at .weight"
            )
            yield error("not listed", name, silent, key=f"{QUANT}.modules_to_not_convert")


def rules_by_name(candidate: Candidate) -> Findings:
    """C8: `dynamic` rules agree on a linear and the vLLM layer that fuses it, and select exactly the packed modules."""
    if not candidate.format or candidate.format.name != "gptq":
        return
    quant = candidate.quant
    dynamic = quant.get("dynamic")
    for pattern in dynamic if isinstance(dynamic, dict) else ():
        yield from check_pattern(pattern.removeprefix("-:").removeprefix("+:"), f"{QUANT}.dynamic")
    for name, shards in candidate.table.fused.items():
        fused = gptq_override(quant, name)
        for shard in shards:
            override = gptq_override(quant, shard)
            if override != fused:
                ignored = (
                    f"vLLM matches rules with {name} only, so it ignores this one: a shape error, or noise (no error)"
                )
                yield error(
                    override_text(override),
                    f"{override_text(fused)}, as for {name}",
                    ignored,
                    key=f"{QUANT}.dynamic: {shard}",
                )
    for name, is_packed, is_declared in disagreements(candidate):
        if is_packed:
            stop = "vLLM builds this module unquantized and stops at its packed tensors"
            yield error("skipped", f"no rule or list that leaves out {name}", stop, key=f"{QUANT}: {name}")
        elif is_declared:
            silent = (
                "vLLM builds this module quantized and leaves its codes uninitialized (no error), or stops at .weight"
            )
            yield error("not skipped", f"a rule that skips {name}", silent, key=f"{QUANT}: {name}")
    for name in candidate.table.linears:
        if f"{name}.weight" in candidate.checkpoint.tensors and gptq_override(quant, name) is not False:
            yield warning(
                "no -: rule",
                f"a rule that skips {name}",
                "GPTQModel loads it as packed",
                key=f"{QUANT}.dynamic: {name}",
            )


def override_text(override: Any) -> str:
    """A `dynamic` rule in words."""
    return "skipped" if override is False else "no rule" if override is None else short(override)


def disagreements(candidate: Candidate) -> Iterator[tuple[str, bool, bool]]:
    """(linear, whether it is packed on disk, whether config.json quantizes it), if the two answers differ."""
    for name in candidate.table.linears:
        is_packed, is_declared = name in candidate.packed, declared_quantized(candidate, name)
        if is_packed != is_declared and (is_packed or f"{name}.weight" in candidate.checkpoint.tensors):
            yield name, is_packed, is_declared


def check_value(value: Any, allowed: tuple[Any, ...], consequence: str, key: str) -> Findings:
    """An error unless a key of quantization_config has an allowed value of the same type (1 is not True)."""
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        expected = " or ".join(str(choice) for choice in allowed)
        yield error(ABSENT if value is None else short(value), expected, consequence, key=f"{QUANT}.{key}")


def check_pattern(pattern: str, key: str) -> Findings:
    """An error unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as problem:
        yield error(pattern, "a regular expression", f"vLLM stops: {problem}", key=key)
