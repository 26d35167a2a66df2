"""The exact plan of a quantized checkpoint: every tensor's name, shape, dtype and scheme, from shapes alone."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch

from compress.checkpoint.formats import FORMATS, Format, model_dtype
from compress.checkpoint.load import check_causal_lm, open_causal_lm
from compress.checkpoint.read import INDEX, Checkpoint, read_json
from compress.checkpoint.schemes import HEAD, Schemes
from compress.checkpoint.write import TensorSpec, planned_bytes
from compress.core.config import GROUP_SIZES, QuantizeConfig
from compress.core.errors import QCompressError
from compress.core.grid import Scheme
from compress.core.report import Row
from compress.model.blocks import Vocabulary, find_vocabulary, linear_shapes, parameter_shapes
from compress.quantize.layout.layouts import Choice, choose_schemes


@dataclass(frozen=True)
class SourceModel:
    """A 16-bit model without its weights: its name in errors, parameter shapes, config.json content.

    `dtype` is the dtype of every tensor that stays unquantized.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    model: dict[str, Any]
    dtype: torch.dtype

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        return linear_shapes(self.model)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return find_vocabulary(self.model)


def read_source(path: Path, dtype: str | None = None) -> SourceModel:
    """The model at `path`: a checkpoint, a folder with a config.json, or a config.json. `dtype`: see storage_dtype.

    QCompressError for a model that is no causal language model or is quantized already.
    """
    whole = path.is_dir() and (any(path.glob("*.safetensors")) or (path / INDEX).is_file())
    if whole:
        return checkpoint_source(open_causal_lm(path), dtype)
    file = path / "config.json" if path.is_dir() else path
    model = read_json(file)
    check_causal_lm(file.parent, model)
    check_unquantized(path, model)
    return SourceModel(str(path), parameter_shapes(model), model, storage_dtype(model, dtype))


def checkpoint_source(checkpoint: Checkpoint, dtype: str | None = None) -> SourceModel:
    """The model of an open checkpoint. QCompressError if it is quantized already."""
    check_unquantized(checkpoint.path, checkpoint.config)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return SourceModel(str(checkpoint.path), shapes, checkpoint.config, storage_dtype(checkpoint.config, dtype))


def check_unquantized(path: Path, model: dict[str, Any]) -> None:
    """QCompressError if config.json describes a quantized checkpoint."""
    quantization = model.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method")
        raise QCompressError(f"{path}: is already quantized ({method}); pass its 16-bit source")


def storage_dtype(model: dict[str, Any], name: str | None = None) -> torch.dtype:
    """The dtype called `name`; for None the dtype in config.json, with float16 in place of float32."""
    if name is not None:
        return getattr(torch, name)
    dtype = model_dtype(model)
    return torch.float16 if dtype == torch.float32 else dtype


@dataclass(frozen=True)
class LayoutPlan:
    """Every tensor that will be written, and the scheme of every packed module.

    `scheme` is the scheme of the 4-bit linears; `schemes` maps each packed module to its scheme. `linears` maps paths
    to (out, in). `tables` maps a packed head or embedding to its source parameter.
    """

    format: Format
    scheme: Scheme
    schemes: Schemes
    linears: dict[str, tuple[int, int]]
    tables: dict[str, str]
    specs: list[TensorSpec]

    @property
    def unquantized(self) -> list[str]:
        """Linears that stay unquantized, for loaders that need their names."""
        return [] if HEAD in self.schemes else [HEAD]

    @property
    def eight_bit(self) -> frozenset[str]:
        """Paths of the linears in 8 bits."""
        return frozenset(name for name in self.linears if self.schemes[name].bits == 8)

    @cached_property
    def bytes(self) -> int:
        """Exact bytes of all weight files."""
        return planned_bytes(self.specs)

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk per weight of the quantized linears, with scales, zeros and g_idx."""
        packed = sum(spec.bytes for spec in self.specs if spec.name.rpartition(".")[0] in self.linears)
        return 8 * packed / sum(prod(shape) for shape in self.linears.values())


def legal_group_sizes(linears: dict[str, tuple[int, int]]) -> list[int]:
    """The group sizes that divide the inputs of every linear, largest first."""
    return [size for size in GROUP_SIZES if all(inn % size == 0 for _, inn in linears.values())]


def choose_group_size(linears: dict[str, tuple[int, int]], group_size: int) -> int:
    """`group_size`, or for 0 the largest legal one. QCompressError names the first linear that it does not divide."""
    legal = legal_group_sizes(linears)
    size = group_size or (legal[0] if legal else GROUP_SIZES[-1])
    if size in legal:
        return size
    name, inn = next((name, inn) for name, (_, inn) in linears.items() if inn % size)
    cure = f"legal here: {', '.join(map(str, legal))}" if legal else "no group size of vLLM's kernels divides them"
    raise QCompressError(f"{name}: --group-size {size} does not divide its {inn} inputs; {cure}")


def group_size_reason(plan: LayoutPlan) -> str | None:
    """Why `auto` chose less than the largest group size, with the first linear that prevents it; None if it did not."""
    larger = [size for size in GROUP_SIZES if size > plan.scheme.group_size]
    for name, (_, inn) in plan.linears.items():
        if larger and inn % larger[-1]:
            return f"auto takes {plan.scheme.group_size}: {larger[-1]} does not divide the {inn} inputs of {name}"
    return None


def check_full_words(linears: dict[str, tuple[int, int]]) -> None:
    """QCompressError for a linear whose codes do not fill packed words of 8 codes."""
    for name, (out, inn) in linears.items():
        if out % 8 or inn % 8:
            raise QCompressError(
                f"{name}: {out} outputs × {inn} inputs do not fill words of 8 codes; it cannot be packed"
            )


def make_plan(source: SourceModel, config: QuantizeConfig) -> LayoutPlan:
    """The plan of these settings; `max_size` is not checked. QCompressError for a layout that vLLM cannot load.

    The linears of the decoder blocks are packed; head and embedding are packed if `config` has fewer than 16 bits for
    them. A tied head is not stored. All other tensors have the source's dtype.
    """
    linears, vocabulary = source.linears, source.vocabulary
    missing = [name for name in linears if f"{name}.weight" not in source.shapes]
    if missing:
        raise QCompressError(f"{source.name}: has no {missing[0]}.weight, which its config.json requires")
    group_size = choose_group_size(linears, config.group_size)
    check_full_words(linears)
    row, scheme = FORMATS[config.format], Scheme(config.bits, group_size, config.symmetric, source.dtype)
    schemes = choose_schemes(source.name, Choice(config, source.model, vocabulary), linears, scheme)
    packed = {name: linears.get(name, (vocabulary.rows, vocabulary.width)) for name in schemes}
    specs = [spec for name, shape in packed.items() for spec in packed_specs(name, shape, row, schemes[name])]
    specs += [
        TensorSpec(name, source.dtype, shape)
        for name, shape in source.shapes.items()
        if name.removesuffix(".weight") not in schemes and not (name == f"{HEAD}.weight" and vocabulary.tied)
    ]
    return LayoutPlan(row, scheme, schemes, linears, table_sources(vocabulary, schemes), specs)


def table_sources(vocabulary: Vocabulary, schemes: Schemes) -> dict[str, str]:
    """The parameter behind each packed head or embedding; that of a tied head is the embedding."""
    head = vocabulary.embedding if vocabulary.tied else vocabulary.head
    sources = {vocabulary.embedding: vocabulary.embedding, vocabulary.head: head}
    return {name: f"{source}.weight" for name, source in sources.items() if name in schemes}


def packed_specs(module: str, shape: tuple[int, int], row: Format, scheme: Scheme) -> list[TensorSpec]:
    """The tensors on disk of one packed module of this (out, in) shape."""
    return [TensorSpec(f"{module}.{spec.name}", spec.dtype, spec.shape) for spec in row.specs(*shape, scheme)]


def plan_row(model: str, plan: LayoutPlan, config: QuantizeConfig) -> Row:
    """The plan as a report row."""
    return {
        "model": model,
        "method": config.method,
        "format": config.format,
        "bits": plan.scheme.bits,
        "group_size": plan.scheme.group_size,
        "sym": plan.scheme.sym,
        "head_bits": config.head_bits,
        "embedding_bits": config.embedding_bits,
        "eight_bit": len(plan.eight_bit),
        "linears": len(plan.linears),
        "bytes": plan.bytes,
        "bits_per_weight": round(plan.bits_per_weight, 4),
    }
