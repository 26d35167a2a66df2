"""Layouts: the bits of each part of a model, and the layouts that vLLM can load.

A layout is three settings, each independent of the group size:

    head_bits        16, 8, 4   the output matrix
    embedding_bits   16, 8      the lookup table
    eight_bit        linears that get 8 bits instead of 4, whole stages at a time

REFUSALS lists the layouts that vLLM cannot load or that only add bytes, each with its cure. The tables of
`checkpoint/vllm_models.py` have the reasons. 8 bits are always symmetric: vLLM's kernels have no zero points for them.
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
    """A layout and the model it is for: its config.json, head and embedding."""

    config: QuantizeConfig
    model: dict[str, Any]
    vocabulary: Vocabulary

    @property
    def model_type(self) -> str:
        return str(self.model.get("model_type"))

    @property
    def head(self) -> bool:
        """Whether the head is packed."""
        return self.config.head_bits < 16

    @property
    def embedding(self) -> bool:
        """Whether the embedding is packed."""
        return self.config.embedding_bits < 16

    @property
    def ct(self) -> bool:
        """Whether the format is compressed-tensors."""
        return self.config.format == "compressed-tensors"


REFUSALS: tuple[tuple[Callable[[Choice], bool], str], ...] = (
    (
        lambda c: c.embedding and not c.ct,
        "--embedding-bits 8: vLLM loads packed embeddings in compressed-tensors only; use --format",
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
        "--head-bits: the head shares the embedding's weight (tied): packing one adds bytes; add --embedding-bits 8",
    ),
    (
        lambda c: c.embedding and c.vocabulary.tied and not c.head,
        "--embedding-bits 8: the head shares its weight (tied), which would be stored twice; add --head-bits 4",
    ),
    (
        lambda c: c.head and not c.ct and c.vocabulary.rows % 64 != 0,
        "--head-bits: vLLM pads vocabularies to 64 and this format cannot; use --format compressed-tensors",
    ),
    (
        lambda c: c.config.format == "awq" and (c.config.head_bits == 8 or bool(c.config.eight_bit)),
        "--format awq: holds 4 bits only; use --format compressed-tensors or gptq, or leave out 8 bits",
    ),
    (
        lambda c: bool(c.config.eight_bit) and find_family(c.model_type) is None,
        "--eight-bit: families.py has no row for this model_type, so its fused linears are unknown; leave it out",
    ),
)


def refusal(choice: Choice) -> str | None:
    """The reason why this layout is refused, with the cure; None if vLLM loads it."""
    return next((reason for refused, reason in REFUSALS if refused(choice)), None)


def choose_schemes(where: str, choice: Choice, linears: dict[str, tuple[int, int]], base: Scheme) -> Schemes:
    """The scheme of every packed module; `base` is the scheme of 4-bit linears.

    QCompressError for a layout that vLLM cannot load; `where` names the model.
    """
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
    """The scheme of a module of `rows` outputs in `bits`.

    It is symmetric for 8 bits, and for rows that do not fill words of 8 zeros.
    """
    return Scheme(bits, base.group_size, base.sym or bits == 8 or rows % 8 != 0, base.dtype)


def eight_bit_linears(choice: Choice, linears: dict[str, tuple[int, int]]) -> set[str]:
    """The linears named by `eight_bit`, and the linears that vLLM fuses with them because they share an input.

    QCompressError for a name that is no part of any linear's path.
    """
    family = find_family(choice.model_type)
    stages = [stage.linears for stage in family.stages] if family else []
    named: set[str] = set()
    for part in choice.config.eight_bit:
        matches = {name for name in linears if f".{part}." in f".{name}."}
        if not matches:
            raise QCompressError(f"--eight-bit {part}: is no part of any linear's path; paths look like {min(linears)}")
        named |= matches
    return {name for name in linears if any(linear in named for linear in fused_linears(name, stages))}


def fused_linears(name: str, stages: list[tuple[str, ...]]) -> list[str]:
    """The full paths of the linears in the stage of this one, itself among them."""
    for stage in stages:
        for local in stage:
            if name.endswith(f".{local}"):
                return [name.removesuffix(local) + other for other in stage]
    return [name]
