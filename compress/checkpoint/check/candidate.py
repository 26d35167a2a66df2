"""The input of every rule: a checkpoint, the modules that its config.json declares, and its source if there is one.

`declared_quantized` and `scheme` compute from config.json alone which modules vLLM builds as quantized, and how.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compress.checkpoint.arrays import Array, as_float32, read_array
from compress.checkpoint.check.prompt_files import PromptFiles
from compress.checkpoint.check.provenance import Provenance
from compress.checkpoint.check.table import Table
from compress.checkpoint.formats import FORMATS, Format, model_dtype
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import read_digests
from compress.checkpoint.schemes import awq_key, ct_weights, flatten, gptq_override
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.core.scheme import Scheme
from compress.model.shapes import Linear

Finding = dict[str, Any]
Findings = Iterator[Finding]
QUANT = "quantization_config"
ABSENT = "nothing"
PACKED = ("qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape")


def error(value: Any, expected: Any, consequence: str, **where: str) -> Finding:
    """The finding of a broken rule at a `tensor`, `key` or `file`. `consequence` is what loaders do with the value."""
    return {**where, "value": value, "expected": expected, "consequence": consequence, "level": "error"}


def warning(value: Any, expected: Any, consequence: str, **where: str) -> Finding:
    """A finding like that of `error`, for a fault that does not change the generated text."""
    return {**error(value, expected, consequence, **where), "level": "warning"}


def short(value: Any) -> str:
    """A value in at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class Candidate:
    """A checkpoint, its module table, the number of ranks that serve it, and its source checkpoint or None.

    `source_named` is True if the caller named the source, and False if the source comes from the record.
    """

    checkpoint: Checkpoint
    table: Table
    tensor_parallel_size: int = 1
    source: Checkpoint | None = None
    source_named: bool = False

    @cached_property
    def provenance(self) -> Provenance:
        """How the checkpoint was made, according to its record."""
        return Provenance(self.checkpoint.record, self.config, self.table)

    @property
    def compared_source(self) -> Checkpoint | None:
        """The source that the weights are compared with; None for a student or a dequantized .gguf file."""
        other_weights = self.provenance.trained or self.provenance.dequantized
        return None if other_weights and self.format is None else self.source

    @property
    def prompt_source(self) -> Checkpoint | None:
        """The source that the prompt files are compared with; None if they have digests and no source was named."""
        if self.source is None:
            return None
        other_student = self.provenance.trained and self.checkpoint.record.get("student")
        digests = self.digests or {}
        return None if other_student or ("files" in digests and not self.source_named) else self.source

    @cached_property
    def prompt(self) -> PromptFiles:
        """The tokenizer's files, the chat template and generation_config.json."""
        return PromptFiles(self.checkpoint.path)

    @cached_property
    def digests(self) -> dict[str, dict[str, str]] | None:
        """The digests that were written with the checkpoint; None without them."""
        return read_digests(self.checkpoint.path)

    @property
    def config(self) -> dict[str, Any]:
        return self.checkpoint.config

    @property
    def quant(self) -> dict[str, Any]:
        """The quantization_config, {} for a plain checkpoint."""
        quantization = self.checkpoint.quantization
        return quantization if isinstance(quantization, dict) else {}

    @property
    def format(self) -> Format | None:
        return FORMATS.get(str(self.quant.get("quant_method")))

    @property
    def tied(self) -> bool:
        """Whether head and embedding are tied, by config.json or by the default of the model type."""
        return f"{self.table.head}.weight" not in self.table.parameters

    @cached_property
    def dtype(self) -> Dtype:
        try:
            return model_dtype(self.config)
        except QCompressError:
            return Dtype.float16

    @property
    def packed_tables(self) -> set[str]:
        """The module paths of the embedding and the head, without those that are not packed."""
        return {self.table.embedding, self.table.head} & self.packed.keys()

    @cached_property
    def matrices(self) -> dict[str, Linear]:
        """All modules that could be packed: the linears of the blocks, head and embedding."""
        table = self.table
        return {**table.linears, table.embedding: table.vocabulary, table.head: table.vocabulary}

    @cached_property
    def packed(self) -> dict[str, set[str]]:
        """{module: suffixes of its packed tensors on disk}, packed modules only."""
        suffixes: dict[str, set[str]] = {}
        for name in self.checkpoint.tensors:
            module, _, suffix = name.rpartition(".")
            if suffix in PACKED and module in self.matrices:
                suffixes.setdefault(module, set()).add(suffix)
        return suffixes

    @cached_property
    def fused_name(self) -> dict[str, str]:
        """{linear: the layer of vLLM that it is fused into}."""
        return {shard: name for name, shards in self.table.fused.items() for shard in shards}

    @cached_property
    def skipped(self) -> list[str]:
        """AWQ's modules_to_not_convert. If that list is empty, the modules whose tensors are all floats, as in vLLM."""
        listed = flatten(self.quant.get("modules_to_not_convert"))
        if listed:
            return listed
        floats: dict[str, bool] = {}
        for name, info in self.checkpoint.tensors.items():
            module = name.rpartition(".")[0] or name
            floats[module] = floats.get(module, True) and info.dtype.is_floating_point
        return [module for module, only in floats.items() if only]

    @cached_property
    def schemes(self) -> dict[str, Scheme | None]:
        """{packed module: its scheme in config.json, or None if that is missing or invalid}."""
        return {name: scheme(self, name) for name in self.packed}

    def reader(self, module: str) -> Callable[[str], Array]:
        """A function that returns a tensor of `module` by its suffix, such as qweight."""
        return lambda suffix: read_array(self.checkpoint, f"{module}.{suffix}")

    def scales_path(self, module: str) -> str:
        """The name of the scales of a packed module."""
        return next(f"{module}.{suffix}" for suffix in ("scales", "weight_scale") if suffix in self.packed[module])

    def scales(self, module: str) -> Array:
        """The scales of a packed module as stored, in float32."""
        path = self.scales_path(module)
        return as_float32(read_array(self.checkpoint, path), self.checkpoint.tensors[path].dtype)

    def kind(self, name: str) -> str:
        """One of "head", "embedding" and "linear" for a module path."""
        return {self.table.head: "head", self.table.embedding: "embedding"}.get(name, "linear")

    def source_name(self, name: str) -> str:
        """The source's module that holds the weights of `name`: the embedding for a head that is tied in the source."""
        tied = name == self.table.head and self.source and f"{name}.weight" not in self.source.tensors
        return self.table.embedding if tied else name

    def sound(self) -> Iterator[tuple[str, Linear, Scheme]]:
        """(module, matrix, scheme) of packed modules whose tensors all have the right dtypes and shapes."""
        for name, scheme in self.schemes.items():
            matrix = self.matrices[name]
            if self.format and scheme and not misfit(matrix, scheme) and self._is_stored(name, matrix, scheme):
                yield name, matrix, scheme

    def _is_stored(self, name: str, matrix: Linear, scheme: Scheme) -> bool:
        assert self.format is not None
        for spec in self.format.specs(matrix.out, matrix.inn, scheme):
            info = self.checkpoint.tensors.get(f"{name}.{spec.name}")
            if info is None or info.shape != spec.shape or info.dtype.is_floating_point != spec.dtype.is_floating_point:
                return False
            if not spec.dtype.is_floating_point and info.dtype != spec.dtype:
                return False
        return True


def misfit(matrix: Linear, scheme: Scheme) -> str | None:
    """Why a matrix does not divide into whole groups and words; None if it does."""
    per_word = 32 // scheme.bits
    if scheme.group_size > matrix.inn or matrix.inn % scheme.group_size:
        return f"{matrix.inn} inputs in groups of {scheme.group_size}"
    if matrix.inn % per_word or matrix.out % per_word:
        return f"{matrix.out} × {matrix.inn} in words of {per_word}"
    return None


def scheme(candidate: Candidate, name: str) -> Scheme | None:
    """The scheme of one module as vLLM reads it from config.json; None if it is missing or invalid."""
    method, quant = candidate.format and candidate.format.name, candidate.quant
    if method == "awq":
        bits, group_size, sym = awq_key(quant, "bits"), awq_key(quant, "group_size"), False
    elif method == "gptq":
        rule = gptq_override(quant, candidate.fused_name.get(name, name)) or {}
        bits, group_size = rule.get("bits", quant.get("bits")), rule.get("group_size", quant.get("group_size"))
        sym = True
    else:
        weights = ct_weights(quant, name, candidate.kind(name)) or {}
        bits, group_size, sym = weights.get("num_bits"), weights.get("group_size") or -1, weights.get("symmetric", True)
    if group_size == -1:
        group_size = candidate.matrices[name].inn
    if bits not in (4, 8) or not isinstance(group_size, int) or group_size < 1:
        return None
    return Scheme(bits, group_size, bool(sym), candidate.dtype)


def declared_quantized(candidate: Candidate, name: str) -> bool:
    """Whether vLLM builds this module as a quantized one."""
    method, quant, table = candidate.format and candidate.format.name, candidate.quant, candidate.table
    if method == "compressed-tensors":
        return ct_weights(quant, name, candidate.kind(name)) is not None
    if name == table.embedding or (name == table.head and quant.get("lm_head") is not True):
        return False
    if method == "awq":
        fused = candidate.fused_name.get(name, name)
        return not any(entry in name or entry in fused for entry in candidate.skipped)
    listed = flatten(quant.get("modules_in_block_to_quantize")) or list(candidate.packed)
    rule = gptq_override(quant, candidate.fused_name.get(name, name))
    return any(entry in name for entry in listed) and rule is not False
