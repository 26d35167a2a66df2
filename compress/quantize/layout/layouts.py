"""Layouts: what of a model is packed in how many bits, and which of them vLLM can load.

A layout is three settings, each independent of the group size:

    head_bits        16, 8, 4   the output matrix
    embedding_bits   16, 8      the lookup table
    eight_bit        linears that get 8 bits instead of 4, whole stages at a time

REFUSALS holds what vLLM cannot load, or what would only cost bytes, each with its cure; the reasons are in the tables
of `checkpoint/vllm_models.py`. 8 bits are always symmetric, because vLLM's kernels have no zero points for them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compress.checkpoint.schemes import Schemes
from compress.checkpoint.vllm_models import EMBEDDING_BY_CLASS, NO_PACKED_HEAD
from compress.core.config import QuantizeConfig
from compress.core.errors import QCompressError
from compress.core.grid import Scheme
from compress.model.blocks import Vocabulary
from compress.model.families import find_family


@dataclass(frozen=True)
class Choice:
    """A config beside what decides whether it can be: the model's config.json, and its head and embedding."""

    config: QuantizeConfig
    model: dict[str, Any]
    vocabulary: Vocabulary

    @property
    def model_type(self) -> str:
        return str(self.model.get("model_type"))

    @property
    def head(self) -> bool:
        return self.config.head_bits < 16

    @property
    def embedding(self) -> bool:
        return self.config.embedding_bits < 16

    @property
    def ct(self) -> bool:
        return self.config.format == "compressed-tensors"


REFUSALS: tuple[tuple[Callable[[Choice], bool], str], ...] = (
    (
        lambda c: c.embedding and not c.ct,
        "--embedding-bits 8: vLLM looks up packed embeddings in compressed-tensors only; give --format",
    ),
    (
        lambda c: c.embedding and c.model_type not in EMBEDDING_BY_CLASS,
        "--embedding-bits 8: vLLM's code for this model_type has no packed embedding; leave it at 16",
    ),
    (
        lambda c: c.head and c.model_type in NO_PACKED_HEAD,
        "--head-bits: vLLM's code for this model_type has no packed head; leave it at 16",
    ),
    (
        lambda c: c.head and c.vocabulary.tied and not c.embedding,
        "--head-bits: the head is the embedding (tied), packing it beside adds bytes; give --embedding-bits 8 too",
    ),
    (
        lambda c: c.embedding and c.vocabulary.tied and not c.head,
        "--embedding-bits 8: the head is the embedding (tied) and would be stored beside it; give --head-bits 4 too",
    ),
    (
        lambda c: c.head and not c.ct and c.vocabulary.rows % 64 != 0,
        "--head-bits: vLLM pads vocabularies to 64 and this format cannot; give --format compressed-tensors",
    ),
    (
        lambda c: c.config.format == "awq" and (c.config.head_bits == 8 or bool(c.config.eight_bit)),
        "awq holds 4 bits only; give --format compressed-tensors or gptq, or leave 8 bits out",
    ),
    (
        lambda c: bool(c.config.eight_bit) and find_family(c.model_type) is None,
        "--eight-bit: which linears this model_type runs together is not known (no row in families.py); leave it out",
    ),
)


def refusal(choice: Choice) -> str | None:
    """Why this layout is not written, with the cure; None when vLLM loads it."""
    return next((reason for refused, reason in REFUSALS if refused(choice)), None)


def choose_schemes(where: str, choice: Choice, linears: dict[str, tuple[int, int]], base: Scheme) -> Schemes:
    """The scheme of every packed module. QCompressError for a layout that vLLM cannot load."""
    reason = refusal(choice)
    if reason is not None:
        raise QCompressError(f"{where}: {reason}")
    wide, vocabulary = eight_bit_linears(choice, linears), choice.vocabulary
    schemes = {name: in_bits(base, 8, linears[name][0]) if name in wide else base for name in linears}
    if choice.embedding:
        schemes[vocabulary.embedding] = in_bits(base, choice.config.embedding_bits, vocabulary.rows)
    if choice.head:
        schemes[vocabulary.head] = in_bits(base, choice.config.head_bits, vocabulary.rows)
    return schemes


def in_bits(base: Scheme, bits: int, rows: int) -> Scheme:
    """The scheme of a module in `bits`: symmetric where zeros have no kernel, or `rows` do not fill their words."""
    return Scheme(bits, base.group_size, base.sym or bits == 8 or rows % 8 != 0, base.dtype)


def eight_bit_linears(choice: Choice, linears: dict[str, tuple[int, int]]) -> set[str]:
    """The linears that `eight_bit` names by a part of their path, with all that share their input, which vLLM fuses.

    QCompressError for a name that hits nothing.
    """
    family = find_family(choice.model_type)
    stages = [stage.linears for stage in family.stages] if family else []
    found: set[str] = set()
    for part in choice.config.eight_bit:
        hit = {name for name in linears if f".{part}." in f".{name}."}
        if not hit:
            raise QCompressError(f"--eight-bit {part}: is no part of any linear's path, such as {min(linears)}")
        found |= hit
    return {name for name in linears if any(mate in found for mate in mates(name, stages))}


def mates(name: str, stages: list[tuple[str, ...]]) -> list[str]:
    """The linears that run together with one, by full path; itself when no stage has it."""
    for stage in stages:
        for local in stage:
            if name.endswith(f".{local}"):
                return [name.removesuffix(local) + other for other in stage]
    return [name]
