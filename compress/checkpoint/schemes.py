"""Write a quantization_config from the schemes of modules, and read the scheme of a module back from it.

    awq                 one scheme for all; a packed head behind the flag `lm_head`
    gptq                the same, and `dynamic` rules for modules that differ
    compressed-tensors  one config group per scheme, targets by class or by name; embeddings too

vLLM matches patterns against its fused layers, other loaders against single linears, so every pattern matches both.
NAME_scheme is the inverse of NAME_config.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from compress.core.dtypes import Dtype
from compress.core.errors import BadValueError, QCompressError
from compress.core.scheme import Scheme
from compress.model.families import FUSED_NAMES

HEAD = "lm_head"
V2 = "gptq_v2"
EMBEDDINGS = frozenset({"embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings"})


Schemes = dict[str, Scheme]  # by module path, packed modules only


def kind(module: str) -> str:
    """One of "head", "embedding" and "linear", by the module's name."""
    leaf = module.rpartition(".")[2]
    return "head" if leaf == HEAD else "embedding" if leaf in EMBEDDINGS else "linear"


def base_scheme(schemes: Schemes) -> Scheme:
    """The default scheme of a config: the most common one of the linears, or of all modules without linears."""
    linears = [scheme for module, scheme in schemes.items() if kind(module) == "linear"]
    return Counter(linears or schemes.values()).most_common(1)[0][0]


def layer_pattern(module: str) -> str:
    """A regular expression for a linear, the linears that vLLM fuses with it, and the fused layer."""
    for fused, shards in FUSED_NAMES.items():
        path = next((module.removesuffix(shard) for shard in shards if module.endswith(f".{shard}")), None)
        if path is not None:
            parent = fused.rpartition(".")[0]
            leaves = "|".join(name.rpartition(".")[2] for name in (*shards, fused))
            return f"{re.escape(f'{path}{parent}.')}({leaves})$"
    return f"{re.escape(module)}$"


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` matches `name` from the start. False for an invalid pattern."""
    try:
        return re.match(pattern, name) is not None
    except re.error:
        return False


def flatten(value: Any) -> list[str]:
    """The strings in nested lists; a string becomes a list of one."""
    if isinstance(value, str):
        return [value]
    return [text for item in value for text in flatten(item)] if isinstance(value, list) else []


def awq_config(schemes: Schemes, ignore: list[str], carried: Sequence[str] = ()) -> dict[str, Any]:
    """The awq config, which has one scheme for all modules. Raises ValueError if the schemes differ.

    vLLM skips every module whose path contains an entry of modules_to_not_convert. Without entries, it skips modules
    whose own tensors are all floats, and everything inside them.
    """
    base = base_scheme(schemes)
    if set(schemes.values()) != {base}:
        other = next(module for module, scheme in schemes.items() if scheme != base)
        raise BadValueError(f"{other}: awq has one scheme for all modules, but {schemes[other]} is not {base}")
    return {
        "quant_method": "awq",
        "bits": base.bits,
        "group_size": base.group_size,
        "zero_point": True,
        "version": "gemm",
        "lm_head": HEAD in schemes,
        "modules_to_not_convert": [*carried, *(name for name in ignore if kind(name) != "head")] or None,
    }


def awq_key(quant: dict[str, Any], key: str) -> Any:
    """AWQ's bits or group_size, under the new or the old key name."""
    return quant.get({"bits": "w_bit", "group_size": "q_group_size"}[key], quant.get(key))


def awq_scheme(quant: dict[str, Any], module: str, dtype: Dtype) -> Scheme:
    return Scheme(int(awq_key(quant, "bits") or 0), int(awq_key(quant, "group_size") or 0), False, dtype)


def gptq_config(schemes: Schemes, ignore: list[str], carried: Sequence[str] = ()) -> dict[str, Any]:
    base = base_scheme(schemes)
    others = {
        f"+:{layer_pattern(module)}": {"bits": scheme.bits, "group_size": scheme.group_size}
        for module, scheme in schemes.items()
        if scheme != base
    }
    return {
        "quant_method": "gptq",
        "bits": base.bits,
        "group_size": base.group_size,
        "desc_act": False,
        "sym": True,
        "lm_head": HEAD in schemes,
        "checkpoint_format": "gptq",
        "true_sequential": True,
        "static_groups": True,
        "pack_dtype": "int32",
        "dynamic": {f"-:{part_pattern(name)}": {} for name in carried}
        | {skip_rule(name): {} for name in ignore if kind(name) != "head"}
        | others,
    }


def part_pattern(part: str) -> str:
    """A regular expression for everything inside the module `part`, which may lie below another one."""
    return f"(.*\\.)?{re.escape(part)}\\..*"


def skip_rule(module: str) -> str:
    """GPTQModel's rule to skip a module, which also matches vLLM's fused layer."""
    path, _, leaf = module.rpartition(".")
    fused = [name for name, shards in FUSED_NAMES.items() if any(module.endswith(f".{shard}") for shard in shards)]
    names = "|".join([leaf, *(name.rpartition(".")[2] for name in fused)])
    return f"-:{re.escape(path)}\\.({names})$"


def gptq_override(quant: dict[str, Any], name: str) -> Any:
    """The first `dynamic` rule of a module: its settings, False to skip the module, or None without a rule."""
    dynamic = quant.get("dynamic")
    for pattern, settings in dynamic.items() if isinstance(dynamic, dict) else ():
        if matches(pattern.removeprefix("-:").removeprefix("+:"), name):
            return False if pattern.startswith("-:") else settings if isinstance(settings, dict) else {}
    return None


def gptq_scheme(quant: dict[str, Any], module: str, dtype: Dtype) -> Scheme:
    """The scheme of a module. Zeros and column order are read from the tensors, whatever sym and desc_act are."""
    settings = {**quant, **(gptq_override(quant, module) or {})}
    return Scheme(int(settings.get("bits", 0)), int(settings.get("group_size", 0)), True, dtype)


def stored_layout(quant: dict[str, Any]) -> str | None:
    """The variant of the format in which tensors are stored: "gptq_v2", whose zeros are as they are, or None."""
    return V2 if quant.get("quant_method") == "gptq" and gptq_layout(quant) == V2 else None


def gptq_layout(quant: dict[str, Any]) -> Any:
    """GPTQ's layout of zeros, under the new or the old key name; None without both."""
    return quant.get("checkpoint_format", quant.get("format"))


def ct_config(schemes: Schemes, ignore: list[str], carried: Sequence[str] = ()) -> dict[str, Any]:
    base = base_scheme(schemes)
    targets: dict[Scheme, list[str]] = {base: ["Linear"]}
    for module, scheme in schemes.items():
        target = ct_target(module, scheme == base)
        if target not in targets.setdefault(scheme, []):
            targets[scheme].append(target)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [*(f"re:{part_pattern(part)}" for part in carried), *ignore],
        "config_groups": {f"group_{i}": ct_group(*pair) for i, pair in enumerate(targets.items())},
    }


def ct_target(module: str, usual: bool) -> str:
    """The target of a module in a config group. vLLM matches some embeddings only by class, the head only by name."""
    by_kind = {"head": f"re:.*{HEAD}$", "embedding": "Embedding"}
    return by_kind.get(kind(module)) or ("Linear" if usual else f"re:{layer_pattern(module)}")


def ct_group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.sym,
        "strategy": "group",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
    return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}


def ct_groups(quant: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups = quant.get("config_groups")
    return {k: v for k, v in groups.items() if isinstance(v, dict)} if isinstance(groups, dict) else {}


def ct_match(name: str, target: str) -> bool:
    return matches(target[3:], name) if target.startswith("re:") else target == name


CT_CLASSES = {"linear": "Linear", "embedding": "VocabParallelEmbedding", "head": ""}  # no class matches vLLM's head


def ct_weights(quant: dict[str, Any], name: str, what: str) -> dict[str, Any] | None:
    """The `weights` of the first config group that matches a module, by name or else by class.

    The result is None if `ignore` lists the module or no group matches.
    """
    if any(ct_match(name, entry) for entry in flatten(quant.get("ignore"))):
        return None
    groups = [(flatten(group.get("targets")), group.get("weights")) for group in ct_groups(quant).values()]
    by_name = [weights for targets, weights in groups if any(ct_match(name, target) for target in targets)]
    by_class = [weights for targets, weights in groups if any(ct_class(target, what) for target in targets)]
    weights = next(iter(by_name + by_class), None)
    return weights if isinstance(weights, dict) else None


def ct_fused(quant: dict[str, Any], fused: str, shards: tuple[str, ...]) -> dict[str, Any] | None:
    """`ct_weights` of a fused layer of vLLM: by its name, then by class, then by the names of its linears."""
    single = [ct_weights(quant, shard, "linear") for shard in shards]
    weights = ct_weights(quant, fused, "linear")
    return single[0] if weights is None or None in single else weights


def ct_class(target: str, what: str) -> bool:
    return not target.startswith("re:") and target.lower() in CT_CLASSES[what].lower()


def ct_scheme(quant: dict[str, Any], module: str, dtype: Dtype) -> Scheme:
    """The scheme of a module; group size -1 is one group per row. Raises QCompressError if no group matches."""
    weights = ct_weights(quant, module, kind(module))
    if weights is None:
        raise QCompressError(f"quantization_config: no config group matches {module}, though it is packed; add one")
    group_size = weights.get("group_size") or -1
    return Scheme(int(weights["num_bits"]), int(group_size), bool(weights["symmetric"]), dtype)
