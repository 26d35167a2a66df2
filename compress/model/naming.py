"""Tensor names in files, and the names of the same parameters in the language model of transformers.

The two differ for language models inside a wrapper, and in a few families that transformers has renamed. Everything but
the reader and the writer of files uses the model's names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from compress.model.families import ExpertNames, find_family
from compress.model.wrappers import CARRIED, PREFIXES, find_wrapper


@dataclass(frozen=True)
class Naming:
    """`prefixes` are pairs (in files, in the model) of which one must match; () if every tensor is the model's.

    `parts` are pairs that are replaced anywhere in a name. `experts` has the tensors of several experts in one.
    """

    prefixes: tuple[tuple[str, str], ...] = ()
    parts: tuple[tuple[str, str], ...] = ()
    experts: ExpertNames | None = None

    def in_model(self, stored: str) -> str | None:
        """The model's name of a tensor in the files. None if it is not part of the language model."""
        if stored.startswith(CARRIED):
            return None
        name = stored
        if self.prefixes:
            pair = next((pair for pair in self.prefixes if stored.startswith(pair[0])), None)
            if pair is None:
                return None
            name = pair[1] + stored.removeprefix(pair[0])
        for there, here in self.parts:
            name = name.replace(there, here)
        return name

    def in_file(self, name: str) -> str:
        """The name in the files of a parameter, or of a module of the model."""
        for there, here in self.parts:
            name = name.replace(here, there)
        dotted = f"{name}."
        pair = next((pair for pair in self.prefixes if dotted.startswith(pair[1])), None)
        return name if pair is None else (pair[0] + dotted.removeprefix(pair[1])).removesuffix(".")

    def pattern_in_model(self, text: str) -> str:
        """A module path or a regular expression of a quantization_config, with the model's names."""
        dotted = f"{text}."
        for there, here in (*self.prefixes, *self.parts):
            if there != here:
                dotted = dotted.replace(re.escape(there), re.escape(here)).replace(there, here)
        return dotted.removesuffix(".")


PLAIN_NAMES = Naming()


def find_naming(config: Mapping[str, Any], names: Iterable[str]) -> Naming:
    """The naming of the tensors `names` of a checkpoint with this config.json, which may be that of a wrapper."""
    wrapper = find_wrapper(config)
    family = find_family(wrapper.model_type if wrapper else str(config.get("model_type")))
    parts, experts = (family.renamed, family.experts) if family else ((), None)
    if wrapper is None:
        return Naming((), parts, experts)
    names = list(names)
    found = [pair for pair in PREFIXES if any(name.startswith(pair[0]) for name in names)]
    return Naming(tuple(found) or PREFIXES[:1], parts, experts)


def stacked_parts(experts: ExpertNames, name: str) -> tuple[str, tuple[str, ...]] | None:
    """(path of the block, linears) if a tensor holds all experts of a block; None for other tensors."""
    for suffix, linears in experts.stacked.items():
        if name.endswith(f".{suffix}"):
            return name.removesuffix(suffix), linears
    return None


def named_in_model(value: Any, naming: Naming) -> Any:
    """A value of a quantization_config in which module paths and patterns have the model's names, keys included."""
    if isinstance(value, str):
        return naming.pattern_in_model(value)
    if isinstance(value, dict):
        return {naming.pattern_in_model(key): named_in_model(item, naming) for key, item in value.items()}
    return [named_in_model(item, naming) for item in value] if isinstance(value, list) else value
