"""Choose the bits of each part of a model, and refuse layouts that vLLM cannot load.

A layout consists of three settings, each independent of the group size:

    head_bits        16, 8, 4   bits of the output matrix
    embedding_bits   16, 8      bits of the lookup table
    eight_bit        linears that get 8 bits instead of 4, whole stages at a time

REFUSALS lists the layouts that vLLM cannot load or that only add bytes, each with its cure. The tables of
`checkpoint/vllm_models.py` have the reasons. 8-bit grids are always symmetric: vLLM's 8-bit kernels have no zeros.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from calibration.suggest import did_you_mean
from compress.checkpoint.schemes import Schemes
from compress.checkpoint.vllm_models import EMBEDDING_BY_CLASS, NO_PACKED_HEAD
from compress.core.config import QuantizeConfig
from compress.core.errors import QCompressError
from compress.core.scheme import Scheme
from compress.model.shapes import Vocabulary, model_stages


@dataclass(frozen=True)
class Choice:
    """A layout, and the model to be stored in it: the content of config.json, and the shape of head and embedding."""

    config: QuantizeConfig
    model: dict[str, Any]
    vocabulary: Vocabulary

    @property
    def model_type(self) -> str:
        return str(self.model.get("model_type"))

    @property
    def head(self) -> bool:
        """True if the head is packed."""
        return self.config.head_bits < 16

    @property
    def embedding(self) -> bool:
        """True if the embedding is packed."""
        return self.config.embedding_bits < 16

    @property
    def ct(self) -> bool:
        """True if the format is compressed-tensors."""
        return self.config.format == "compressed-tensors"


REFUSALS: tuple[tuple[Callable[[Choice], bool], str], ...] = (
    (
        lambda c: c.embedding and not c.ct,
        "--embedding-bits 8: vLLM loads packed embeddings in one format only; use --format compressed-tensors",
    ),
    (
        lambda c: c.embedding and c.model_type not in EMBEDDING_BY_CLASS,
        "--embedding-bits 8: vLLM cannot load a packed embedding for this model_type; leave out --embedding-bits",
    ),
    (
        lambda c: c.head and c.model_type in NO_PACKED_HEAD,
        "--head-bits: vLLM cannot load a packed head for this model_type; leave out --head-bits",
    ),
    (
        lambda c: c.head and c.vocabulary.tied and not c.embedding,
        "--head-bits: head and embedding share one matrix (tied), so packing only the head adds bytes; "
        "add --embedding-bits 8",
    ),
    (
        lambda c: c.embedding and c.vocabulary.tied and not c.head,
        "--embedding-bits 8: head and embedding share one matrix (tied), so packing only the embedding adds bytes; "
        "add --head-bits 4",
    ),
    (
        lambda c: c.head and not c.ct and c.vocabulary.rows % 64 != 0,
        "--head-bits: the vocabulary is not a multiple of 64, and vLLM cannot pad a packed head in this format; "
        "use --format compressed-tensors",
    ),
    (
        lambda c: c.config.format == "awq" and (c.config.head_bits == 8 or bool(c.config.eight_bit)),
        "--format awq: this format cannot store 8 bits; use --format compressed-tensors or gptq, "
        "or leave out --eight-bit and --head-bits 8",
    ),
    (
        lambda c: bool(c.config.eight_bit) and not model_stages(c.model),
        "--eight-bit: the linears that vLLM fuses are unknown for this model_type; leave out --eight-bit",
    ),
)


def refusal(choice: Choice) -> str | None:
    """The reason why this layout is refused, with the cure. None if the layout is allowed."""
    return next((reason for refused, reason in REFUSALS if refused(choice)), None)


def choose_schemes(where: str, choice: Choice, linears: dict[str, tuple[int, int]], base: Scheme) -> Schemes:
    """The scheme of every packed module. `base` is the scheme of 4-bit linears.

    Raises QCompressError, beginning with `where`, if the layout is refused.
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
    """The scheme of a module with `bits` per code and `rows` outputs.

    It is symmetric for 8 bits, and if `rows` is not a multiple of 8, because 8 zero points share a word.
    """
    return Scheme(bits, base.group_size, base.sym or bits == 8 or rows % 8 != 0, base.dtype)


def parts_of(paths: Iterable[str]) -> set[str]:
    """The last one and the last two names of every path: down_proj and mlp.down_proj."""
    return {".".join(path.split(".")[-count:]) for path in paths for count in (1, 2)}


def eight_bit_linears(choice: Choice, linears: dict[str, tuple[int, int]]) -> set[str]:
    """The linears whose paths contain one of the names in `eight_bit`, and the linears that vLLM fuses with them.

    vLLM fuses linears that share an input. Raises QCompressError if a name occurs in no path.
    """
    stages = [stage for group in model_stages(choice.model).values() for stage in group]
    named: set[str] = set()
    for part in choice.config.eight_bit:
        matches = {name for name in linears if f".{part}." in f".{name}."}
        if not matches:
            raise QCompressError(
                f"--eight-bit {part}: no linear has this name in its path; paths look like {min(linears)}"
                f"{did_you_mean(part, parts_of(linears))}"
            )
        named |= matches
    return named | {name for stage in stages if named.intersection(stage) for name in stage}
