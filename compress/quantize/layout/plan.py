"""Bytes before work: which tensors a quantized checkpoint will hold, and how each of them is stored."""

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
from compress.model.blocks import Vocabulary, find_vocabulary, linear_shapes, parameter_shapes
from compress.quantize.layout.layouts import Choice, choose_schemes


@dataclass(frozen=True)
class SourceModel:
    """A plain model to be planned for: its name in errors, its parameters' shapes, its config.json, and the dtype of
    all that will not be packed. Needs no weights."""

    where: str
    shapes: dict[str, tuple[int, ...]]
    model: dict[str, Any]
    dtype: torch.dtype

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        return linear_shapes(self.model)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return find_vocabulary(self.model)


def read_source(path: Path, dtype: torch.dtype | None = None) -> SourceModel:
    """A checkpoint, a folder that holds a config.json alone, or a config.json, as what is to be planned for.

    QCompressError for what cannot be quantized.
    """
    whole = path.is_dir() and (any(path.glob("*.safetensors")) or (path / INDEX).is_file())
    if whole:
        return checkpoint_source(open_causal_lm(path), dtype)
    file = path / "config.json" if path.is_dir() else path
    model = read_json(file)
    check_causal_lm(file.parent, model)
    refuse_quantized(path, model)
    return SourceModel(str(path), parameter_shapes(model), model, dtype or storage_dtype(model))


def checkpoint_source(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> SourceModel:
    """The same of an open checkpoint. QCompressError when it is quantized already."""
    refuse_quantized(checkpoint.path, checkpoint.config)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return SourceModel(str(checkpoint.path), shapes, checkpoint.config, dtype or storage_dtype(checkpoint.config))


def refuse_quantized(where: Path, model: dict[str, Any]) -> None:
    """QCompressError for a config.json of a checkpoint that is quantized already."""
    found = model.get("quantization_config")
    if found is not None:
        method = found.get("quant_method")
        raise QCompressError(f"{where}: is already quantized ({method}); give the 16-bit checkpoint it was made from")


def storage_dtype(config: dict[str, Any]) -> torch.dtype:
    """float16 or bfloat16, as the source; float32 sources become float16."""
    dtype = model_dtype(config)
    return torch.float16 if dtype == torch.float32 else dtype


@dataclass(frozen=True)
class LayoutPlan:
    """What will be written: every tensor, and how every packed module is stored.

    `scheme` is that of most linears, `schemes` each packed module's own; `linears` maps paths to (out, in), `tables` a
    packed head or embedding to the parameter it is made from.
    """

    format: Format
    scheme: Scheme
    schemes: Schemes
    linears: dict[str, tuple[int, int]]
    tables: dict[str, str]
    specs: list[TensorSpec]

    @property
    def unquantized(self) -> list[str]:
        """Linears that stay as they are, for the loaders that must be told."""
        return [] if HEAD in self.schemes else [HEAD]

    @property
    def eight_bit(self) -> frozenset[str]:
        return frozenset(name for name in self.linears if self.schemes[name].bits == 8)

    @cached_property
    def bytes(self) -> int:
        """Of all weight files, exact."""
        return planned_bytes(self.specs)

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk per weight of the quantized linears: codes, scales, zeros, g_idx."""
        packed = sum(spec.bytes for spec in self.specs if spec.name.rpartition(".")[0] in self.linears)
        return 8 * packed / sum(prod(shape) for shape in self.linears.values())


def choose_group_size(linears: dict[str, tuple[int, int]], wanted: int) -> int:
    """`wanted`, or for 0 the largest of GROUP_SIZES that divides all inputs. QCompressError names the culprit."""
    for size in [wanted] if wanted else GROUP_SIZES:
        misfits = [name for name, (_, inn) in linears.items() if inn % size]
        if not misfits:
            return size
    name = misfits[0]
    legal = [size for size in GROUP_SIZES if all(inn % size == 0 for _, inn in linears.values())]
    cure = f"legal here: {', '.join(map(str, legal))}" if legal else "no group size that vLLM knows divides it"
    raise QCompressError(f"{name}: --group-size {size} does not divide its {linears[name][1]} inputs; {cure}")


def group_size_reason(plan: LayoutPlan) -> str | None:
    """Why auto took less than the largest group size: the first linear that a larger one does not divide."""
    larger = [size for size in GROUP_SIZES if size > plan.scheme.group_size]
    for name, (_, inn) in plan.linears.items():
        if larger and inn % larger[-1]:
            return f"auto takes {plan.scheme.group_size}: {larger[-1]} does not divide the {inn} inputs of {name}"
    return None


def check_rows(linears: dict[str, tuple[int, int]]) -> None:
    """Packed words hold 8 outputs: refuse a linear whose outputs do not fill them."""
    for name, (out, inn) in linears.items():
        if out % 8 or inn % 8:
            raise QCompressError(
                f"{name}: {out} outputs × {inn} inputs do not fill words of 8 codes; it cannot be packed"
            )


def make_plan(source: SourceModel, config: QuantizeConfig) -> LayoutPlan:
    """Every tensor of the result, whatever its size. QCompressError when vLLM could not load it.

    The linears of the decoder blocks are packed, head and embedding where `config` says so; everything else is stored
    in the source's dtype, a tied head not at all.
    """
    linears, vocabulary = source.linears, source.vocabulary
    missing = [name for name in linears if f"{name}.weight" not in source.shapes]
    if missing:
        raise QCompressError(f"{source.where}: has no {missing[0]}.weight, which its config.json calls for")
    group_size = choose_group_size(linears, config.group_size)
    check_rows(linears)
    row, scheme = FORMATS[config.format], Scheme(config.bits, group_size, config.symmetric, source.dtype)
    schemes = choose_schemes(source.where, Choice(config, source.model, vocabulary), linears, scheme)
    packed = {name: linears.get(name, (vocabulary.rows, vocabulary.width)) for name in schemes}
    specs = [spec for name, shape in packed.items() for spec in packed_specs(name, shape, row, schemes[name])]
    specs += [
        TensorSpec(name, source.dtype, shape)
        for name, shape in source.shapes.items()
        if name.removesuffix(".weight") not in schemes and not (name == f"{HEAD}.weight" and vocabulary.tied)
    ]
    return LayoutPlan(row, scheme, schemes, linears, table_sources(vocabulary, schemes), specs)


def table_sources(vocabulary: Vocabulary, schemes: Schemes) -> dict[str, str]:
    """The parameter that each packed head or embedding is made from: a tied head is the embedding."""
    head = vocabulary.embedding if vocabulary.tied else vocabulary.head
    sources = {vocabulary.embedding: vocabulary.embedding, vocabulary.head: head}
    return {name: f"{source}.weight" for name, source in sources.items() if name in schemes}


def packed_specs(module: str, shape: tuple[int, int], row: Format, scheme: Scheme) -> list[TensorSpec]:
    return [TensorSpec(f"{module}.{spec.name}", spec.dtype, spec.shape) for spec in row.specs(*shape, scheme)]


def plan_row(where: str, plan: LayoutPlan, config: QuantizeConfig) -> dict[str, Any]:
    """The plan as a report row."""
    return {
        "model": where,
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
