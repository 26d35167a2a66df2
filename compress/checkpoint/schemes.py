"""Which module is stored how: the quantization_config that loaders read, written from schemes and read back.

    awq                 one scheme for all; a packed head behind the flag `lm_head`
    gptq                the same, and `dynamic` rules for modules that differ
    compressed-tensors  one config group per scheme, targets by class or by name; embeddings too

vLLM asks these rules about its own fused layers, the other loaders about the linears in them, so every pattern here
matches both names. Each pair NAME_config and NAME_scheme is each other's reverse.
"""

import re
from collections import Counter
from typing import Any

import torch

from compress.core.errors import QCompressError
from compress.core.grid import Scheme
from compress.model.families import FUSED

HEAD = "lm_head"
EMBEDDINGS = frozenset({"embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings"})


Schemes = dict[str, Scheme]  # by module path, packed modules only


def kind(module: str) -> str:
    """What a module is, by its name: "head", "embedding", or "linear"."""
    leaf = module.rpartition(".")[2]
    return "head" if leaf == HEAD else "embedding" if leaf in EMBEDDINGS else "linear"


def base_scheme(schemes: Schemes) -> Scheme:
    """The scheme of most linears, of most modules where none is a linear: what a config says without naming anyone."""
    linears = [scheme for module, scheme in schemes.items() if kind(module) == "linear"]
    return Counter(linears or schemes.values()).most_common(1)[0][0]


def layer_pattern(module: str) -> str:
    """A pattern for everything that vLLM loads as one with a linear: the linears, and vLLM's name for them together."""
    for fused, shards in FUSED.items():
        path = next((module.removesuffix(shard) for shard in shards if module.endswith(f".{shard}")), None)
        if path is not None:
            parent = fused.rpartition(".")[0]
            leaves = "|".join(name.rpartition(".")[2] for name in (*shards, fused))
            return f"{re.escape(f'{path}{parent}.')}({leaves})$"
    return f"{re.escape(module)}$"


def matches(pattern: str, name: str) -> bool:
    """re.match, and no match for what is no regular expression."""
    try:
        return re.match(pattern, name) is not None
    except re.error:
        return False


def flatten(value: Any) -> list[str]:
    """The strings in a list or a list of lists."""
    if isinstance(value, str):
        return [value]
    return [text for item in value for text in flatten(item)] if isinstance(value, list) else []


def awq_config(schemes: Schemes, ignore: list[str]) -> dict[str, Any]:
    """ValueError when the schemes differ, because nothing in an awq config could say so."""
    base = base_scheme(schemes)
    if set(schemes.values()) != {base}:
        other = next(module for module, scheme in schemes.items() if scheme != base)
        raise ValueError(f"{other}: awq stores one scheme for all, {schemes[other]} is not {base}")
    return {
        "quant_method": "awq",
        "bits": base.bits,
        "group_size": base.group_size,
        "zero_point": True,
        "version": "gemm",
        "lm_head": HEAD in schemes,
        "modules_to_not_convert": [name for name in ignore if name != HEAD] or None,
    }


def awq_key(quant: dict[str, Any], key: str) -> Any:
    """AWQ's bits or group_size, under either of the names that loaders read."""
    return quant.get({"bits": "w_bit", "group_size": "q_group_size"}[key], quant.get(key))


def awq_scheme(quant: dict[str, Any], module: str, dtype: torch.dtype) -> Scheme:
    return Scheme(int(awq_key(quant, "bits") or 0), int(awq_key(quant, "group_size") or 0), False, dtype)


def gptq_config(schemes: Schemes, ignore: list[str]) -> dict[str, Any]:
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
        "dynamic": {skip_rule(name): {} for name in ignore if name != HEAD} | others,
    }


def skip_rule(module: str) -> str:
    """GPTQModel's rule that leaves one module as it is: by its own name, and by that of vLLM's fused layer."""
    path, _, leaf = module.rpartition(".")
    fused = [name for name, shards in FUSED.items() if any(module.endswith(f".{shard}") for shard in shards)]
    names = "|".join([leaf, *(name.rpartition(".")[2] for name in fused)])
    return f"-:{re.escape(path)}\\.({names})$"


def gptq_override(quant: dict[str, Any], name: str) -> Any:
    """What the first matching `dynamic` rule says of a module: False to skip it, its settings, None for no rule."""
    dynamic = quant.get("dynamic")
    for pattern, settings in dynamic.items() if isinstance(dynamic, dict) else ():
        if matches(pattern.removeprefix("-:").removeprefix("+:"), name):
            return False if pattern.startswith("-:") else settings if isinstance(settings, dict) else {}
    return None


def gptq_scheme(quant: dict[str, Any], module: str, dtype: torch.dtype) -> Scheme:
    """QCompressError for the kinds of gptq that would be misread."""
    if quant.get("desc_act") and quant.get("group_size") != -1:
        raise QCompressError("quantization_config: desc_act true (groups out of order) is not read; quantize anew")
    if quant.get("checkpoint_format", "gptq") != "gptq":
        found = quant["checkpoint_format"]
        raise QCompressError(f"quantization_config: checkpoint_format {found} is not read; use gptq")
    own = {**quant, **(gptq_override(quant, module) or {})}
    return Scheme(int(own.get("bits", 0)), int(own.get("group_size", 0)), True, dtype)


def ct_config(schemes: Schemes, ignore: list[str]) -> dict[str, Any]:
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
        "ignore": ignore,
        "config_groups": {f"group_{i}": ct_group(*pair) for i, pair in enumerate(targets.items())},
    }


def ct_target(module: str, usual: bool) -> str:
    """The target that finds a module in every loader: vLLM knows some embeddings by their class alone, and its head
    by name alone."""
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


CT_CLASSES = {"linear": "Linear", "embedding": "VocabParallelEmbedding", "head": ""}  # vLLM's head matches no class


def ct_weights(quant: dict[str, Any], name: str, what: str) -> dict[str, Any] | None:
    """The `weights` of the config group that takes a module of a `kind`: by name before class, in the groups' order.

    None when `ignore` has it, or no group.
    """
    if any(ct_match(name, entry) for entry in flatten(quant.get("ignore"))):
        return None
    groups = [(flatten(group.get("targets")), group.get("weights")) for group in ct_groups(quant).values()]
    by_name = [weights for targets, weights in groups if any(ct_match(name, target) for target in targets)]
    by_class = [weights for targets, weights in groups if any(ct_class(target, what) for target in targets)]
    found = next(iter(by_name + by_class), None)
    return found if isinstance(found, dict) else None


def ct_fused(quant: dict[str, Any], fused: str, shards: tuple[str, ...]) -> dict[str, Any] | None:
    """The same of a layer that vLLM fuses: by vLLM's name, then by class, and only then by the names of its linears."""
    own = [ct_weights(quant, shard, "linear") for shard in shards]
    found = ct_weights(quant, fused, "linear")
    return own[0] if found is None or None in own else found


def ct_class(target: str, what: str) -> bool:
    return not target.startswith("re:") and target.lower() in CT_CLASSES[what].lower()


def ct_scheme(quant: dict[str, Any], module: str, dtype: torch.dtype) -> Scheme:
    """QCompressError when no config group takes the module. Group size -1: one group per row."""
    weights = ct_weights(quant, module, kind(module))
    if weights is None:
        raise QCompressError(f"quantization_config: no config group takes {module}, though it is packed")
    group_size = weights.get("group_size") or -1
    return Scheme(int(weights["num_bits"]), int(group_size), bool(weights["symmetric"]), dtype)
