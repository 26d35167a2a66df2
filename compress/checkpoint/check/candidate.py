"""The input of every rule: a checkpoint, and the modules that its config.json declares.

The table of modules comes from the model's code on the meta device, the fused layers of vLLM from `model.families`.
`declared_quantized` and `scheme` compute from config.json alone which modules vLLM builds as quantized, and how.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from compress.checkpoint.formats import FORMATS, Format, model_dtype
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.schemes import awq_key, ct_weights, flatten, gptq_override
from compress.core.errors import QCompressError
from compress.core.grid import Scheme
from compress.model.blocks import find_blocks, make_skeleton
from compress.model.families import FUSED, find_family, find_linears

Finding = dict[str, Any]
Findings = Iterator[Finding]
QUANT = "quantization_config"
ABSENT = "nothing"
PACKED = ("qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
ROW_PARALLEL = ("heads", "rows")  # a linear fed by another linear is cut along its inputs


def error(value: Any, expected: Any, consequence: str, **where: str) -> Finding:
    """A broken rule: value and expected value at a `tensor`, `key` or `file`; `consequence` is what loaders do then."""
    return {**where, "value": value, "expected": expected, "consequence": consequence, "level": "error"}


def warning(value: Any, expected: Any, consequence: str, **where: str) -> Finding:
    """Like `error`, for a checkpoint that still computes the right text."""
    return {**error(value, expected, consequence, **where), "level": "warning"}


def short(value: Any) -> str:
    """A value in at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class Matrix:
    """A module that could be packed: its shape (out, inn), and whether the architecture has a bias."""

    out: int
    inn: int
    bias: bool = False


@dataclass(frozen=True)
class Table:
    """The modules that config.json declares: `linears` of the blocks, `head`, `embedding`, shapes of all parameters.

    `state_names` are all names of the state dict. `fused` maps vLLM's layers to the linears it loads into them.
    `row_parallel` linears are split along their inputs.
    """

    linears: dict[str, Matrix]
    head: str
    embedding: str
    vocabulary: Matrix
    parameters: dict[str, tuple[int, ...]]
    state_names: frozenset[str]
    fused: dict[str, tuple[str, ...]]
    row_parallel: frozenset[str]


EMPTY_TABLE = Table({}, "lm_head", "embedding", Matrix(0, 0), {}, frozenset(), {}, frozenset())


def make_table(config: dict[str, Any]) -> Table:
    """The table of a config.json. QCompressError if transformers cannot build a causal LM from it."""
    try:
        model = make_skeleton(config)
        path, layers = find_blocks(model)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, ZeroDivisionError) as problem:
        raise QCompressError(" ".join(str(problem).split())[:200]) from None
    names = {module: name for name, module in model.named_modules()}
    embedding = model.get_input_embeddings()
    parameters = {name: (*parameter.shape,) for name, parameter in model.named_parameters()}
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    linears, fused, row_parallel = {}, {}, set()
    family = find_family(model.config.model_type)
    for i, block in enumerate(layers):
        for name, linear in find_linears(block).items():
            linears[f"{path}.{i}.{name}"] = Matrix(linear.out_features, linear.in_features, linear.bias is not None)
        for name, shards in (family.fused if family else FUSED).items():
            full = tuple(f"{path}.{i}.{shard}" for shard in shards)
            if all(shard in linears for shard in full):
                fused[f"{path}.{i}.{name}"] = full
        for stage in family.stages if family else ():
            if stage.feeder and stage.feeder.kind in ROW_PARALLEL:
                row_parallel |= {f"{path}.{i}.{name}" for name in stage.linears}
    return Table(
        linears,
        names.get(model.get_output_embeddings(), "lm_head"),
        names[embedding],
        Matrix(*parameters[f"{names[embedding]}.weight"]),
        {name: shape for name, shape in parameters.items() if name not in tied},
        frozenset(model.state_dict()),
        fused,
        frozenset(row_parallel),
    )


@dataclass(frozen=True)
class Candidate:
    """A checkpoint, its module table, the number of ranks that serve it, and its source checkpoint or None."""

    checkpoint: Checkpoint
    table: Table
    tensor_parallel_size: int = 1
    source: Checkpoint | None = None

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
    def dtype(self) -> torch.dtype:
        try:
            return model_dtype(self.config)
        except QCompressError:
            return torch.float16

    @cached_property
    def matrices(self) -> dict[str, Matrix]:
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
    def schemes(self) -> dict[str, Scheme | None]:
        """{packed module: its scheme in config.json, or None if that is missing or invalid}."""
        return {name: scheme(self, name) for name in self.packed}

    def kind(self, name: str) -> str:
        """One of "head", "embedding" and "linear" for a module path."""
        return {self.table.head: "head", self.table.embedding: "embedding"}.get(name, "linear")

    def source_name(self, name: str) -> str:
        """The module of the source with the same weights: for a head that was tied, the embedding."""
        tied = name == self.table.head and self.source and f"{name}.weight" not in self.source.tensors
        return self.table.embedding if tied else name

    def sound(self) -> Iterator[tuple[str, Matrix, Scheme]]:
        """(module, matrix, scheme) of packed modules whose tensors all have the right dtypes and shapes."""
        for name, scheme in self.schemes.items():
            matrix = self.matrices[name]
            if self.format and scheme and not misfit(matrix, scheme) and self._is_stored(name, matrix, scheme):
                yield name, matrix, scheme

    def _is_stored(self, name: str, matrix: Matrix, scheme: Scheme) -> bool:
        assert self.format is not None
        for spec in self.format.specs(matrix.out, matrix.inn, scheme):
            info = self.checkpoint.tensors.get(f"{name}.{spec.name}")
            if info is None or info.shape != spec.shape or info.dtype.is_floating_point != spec.dtype.is_floating_point:
                return False
            if not spec.dtype.is_floating_point and info.dtype != spec.dtype:
                return False
        return True


def misfit(matrix: Matrix, scheme: Scheme) -> str | None:
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
        return not any(entry in name or entry in fused for entry in skipped(candidate))
    listed = flatten(quant.get("modules_in_block_to_quantize")) or list(candidate.packed)
    rule = gptq_override(quant, candidate.fused_name.get(name, name))
    return any(entry in name for entry in listed) and rule is not False


def skipped(candidate: Candidate) -> list[str]:
    """AWQ's modules_to_not_convert. If it is empty, the modules with float tensors only, as in vLLM."""
    listed = flatten(candidate.quant.get("modules_to_not_convert"))
    if listed:
        return listed
    floats: dict[str, bool] = {}
    for name, info in candidate.checkpoint.tensors.items():
        module = name.rpartition(".")[0] or name
        floats[module] = floats.get(module, True) and info.dtype.is_floating_point
    return [module for module, only in floats.items() if only]
