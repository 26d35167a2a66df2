"""The exact plan of a quantized checkpoint: every tensor's name, shape, dtype and scheme, from shapes alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from calibration.suggest import did_you_mean
from compress.checkpoint.door.files import has_weights, read_config_file
from compress.checkpoint.formats import FORMATS, Format, model_dtype, packed_config
from compress.checkpoint.load import check_causal_lm, open_causal_lm
from compress.checkpoint.padding import SIZE, padded_axis
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.schemes import HEAD, Schemes
from compress.checkpoint.vllm_models import check_architecture
from compress.checkpoint.write import TensorSpec, planned_bytes
from compress.core.config import GROUP_SIZES, QuantizeConfig
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.core.report import Row
from compress.core.scheme import Scheme
from compress.model.families import FAMILIES, REFUSED, find_family, is_row_parallel
from compress.model.naming import PLAIN_NAMES, Naming
from compress.model.shapes import Vocabulary, find_vocabulary, linear_shapes, parameter_shapes
from compress.model.wrappers import find_wrapper, text_config
from compress.quantize.layout.layouts import Choice, choose_schemes
from compress.quantize.layout.tensor_parallel import check_ranks, divides, legal_group_sizes, padding_of


@dataclass(frozen=True)
class SourceModel:
    """A 16-bit model without its weights: a name for errors, the parameter shapes, and the content of config.json.

    `dtype` is the dtype of every tensor that stays unquantized, but for those in `exact`, which stay float32. `model`
    and `shapes` are those of the language model; `naming` has its names in the files. A multimodal model also has the
    `wrapper` around it, which is its whole config.json, and `carried` tensors, which are copied.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    model: dict[str, Any]
    dtype: Dtype
    exact: frozenset[str] = frozenset()
    naming: Naming = PLAIN_NAMES
    wrapper: dict[str, Any] | None = None
    carried: tuple[TensorSpec, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """The config.json to be written, without a quantization_config."""
        return self.model if self.wrapper is None else self.wrapper

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        return linear_shapes(self.model)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return find_vocabulary(self.model)


def read_source(path: Path, dtype: str | None = None, *, text_only: bool = False) -> SourceModel:
    """The model at `path`, which is a checkpoint, a folder with a config.json, or a config.json.

    `dtype` is explained at `storage_dtype`. Raises QCompressError if the model is not a causal language model, is
    already quantized, or is not supported.
    """
    if path.is_dir() and has_weights(path):
        return checkpoint_source(open_causal_lm(path), dtype, text_only=text_only)
    file = path / "config.json" if path.is_dir() else path
    stored = read_config_file(file)
    model = text_config(stored)
    check_causal_lm(file.parent, model)
    check_supported(file.parent, model if text_only else stored, model)
    return SourceModel(str(path), parameter_shapes(model), model, storage_dtype(model, dtype))


def checkpoint_source(checkpoint: Checkpoint, dtype: str | None = None, *, text_only: bool = False) -> SourceModel:
    """The model of an open checkpoint. With `text_only`, the language model inside it.

    Raises QCompressError if it is already quantized, or not supported.
    """
    model, stored = checkpoint.config, checkpoint.stored_config
    check_supported(checkpoint.path, model if text_only else stored, model)
    wrapped = find_wrapper(stored) is not None and not text_only
    carried = checkpoint.carried if wrapped else {}
    return SourceModel(
        str(checkpoint.path),
        {name: info.shape for name, info in checkpoint.tensors.items()},
        model,
        storage_dtype(model, dtype),
        exact_tensors(checkpoint),
        checkpoint.naming if wrapped else replace(checkpoint.naming, prefixes=()),
        stored if wrapped else None,
        tuple(TensorSpec(name, info.dtype, info.shape) for name, info in carried.items()),
    )


def exact_tensors(checkpoint: Checkpoint) -> frozenset[str]:
    """Vectors in float32 of a model in 16 bits, such as the bias of a router: they were stored so on purpose."""
    if model_dtype(checkpoint.config) == Dtype.float32:
        return frozenset()
    vectors = {name: info.dtype for name, info in checkpoint.tensors.items() if len(info.shape) == 1}
    return frozenset(name for name, dtype in vectors.items() if dtype == Dtype.float32)


def check_supported(path: Path, stored: dict[str, Any], model: dict[str, Any]) -> None:
    """Raise QCompressError if a model is already quantized, cannot be quantized, or is unknown to vLLM."""
    check_unquantized(path, model)
    check_not_refused(path, model)
    check_family(path, model)
    check_architecture(path, stored)


def check_not_refused(path: Path, model: dict[str, Any]) -> None:
    """Raise QCompressError if the table of families refuses a model type."""
    kind = str(model.get("model_type"))
    if kind in REFUSED:
        raise QCompressError(f"{path / 'config.json'}: model_type {kind} cannot be quantized: {REFUSED[kind]}")


def check_family(path: Path, model: dict[str, Any]) -> None:
    """Raise QCompressError, with the nearest model type, if the table of families does not have a model type."""
    kind = str(model.get("model_type"))
    if find_family(kind) is None:
        nearest = did_you_mean(kind, [name for family in FAMILIES for name in family.model_types])
        raise QCompressError(
            f"{path / 'config.json'}: model_type {kind} is not supported; give a model of a supported family, which "
            f"docs/reference/supported.md lists{nearest}"
        )


def check_unquantized(path: Path, model: dict[str, Any]) -> None:
    """Raise QCompressError if config.json describes a quantized checkpoint."""
    quantization = model.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method")
        raise QCompressError(f"{path}: the model is already quantized ({method}); give the 16-bit model instead")


def storage_dtype(model: dict[str, Any], name: str | None = None) -> Dtype:
    """The dtype called `name`. Without a name, the dtype in config.json, but float16 if that is float32."""
    if name is not None:
        return Dtype(name)
    dtype = model_dtype(model)
    return Dtype.float16 if dtype == Dtype.float32 else dtype


@dataclass(frozen=True)
class LayoutPlan:
    """Every tensor that will be written, and the scheme of every packed module.

    `scheme` is the scheme of the 4-bit linears. `schemes` maps each packed module to its scheme, `linears` maps each
    linear to its shape (out, in), and `tables` maps a packed head or embedding to its source parameter.
    """

    format: Format
    scheme: Scheme
    schemes: Schemes
    linears: dict[str, tuple[int, int]]
    tables: dict[str, str]
    specs: list[TensorSpec]
    source: SourceModel

    @property
    def unquantized(self) -> list[str]:
        """The linears that stay unquantized, such as the head and routers. Loaders need their names."""
        tables = (self.source.vocabulary.embedding, self.source.vocabulary.head)
        weights = [name for name, shape in self.source.shapes.items() if len(shape) == 2 and name.endswith(".weight")]
        matrices = [name.removesuffix(".weight") for name in weights]
        others = [name for name in matrices if name not in self.schemes and name not in tables]
        return [*others, *([] if HEAD in self.schemes else [HEAD])]

    @property
    def written_config(self) -> dict[str, Any]:
        """config.json of the result, with the names that modules have in its files."""
        naming = self.source.naming
        schemes = {naming.in_file(name): scheme for name, scheme in self.schemes.items()}
        unquantized = [naming.in_file(name) for name in self.unquantized]
        return packed_config(self.source.config, self.format, schemes, unquantized, self.unpacked_parts)

    @property
    def unpacked_parts(self) -> list[str]:
        """Modules without packed linears, such as a vision tower.

        vLLM finds unpacked modules by their tensors if none is listed. Then it takes a module with parameters of its
        own, such as a Mamba, and all linears inside it for unpacked. So the embedding is listed if there is such a one.
        """
        owners = {name.rpartition(".")[0] for name in self.source.shapes} - self.schemes.keys()
        paths = [module.split(".") for module in self.schemes]
        around = {".".join(path[:length]) for path in paths for length in range(1, len(path))}
        carried = carried_parts(self.source.carried)
        return carried or ([self.source.vocabulary.embedding] if owners & around else [])

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
        """Bits on disk per quantized weight of the decoder blocks. Scales, zeros and g_idx are included."""
        packed = sum(spec.bytes for spec in self.specs if spec.name.rpartition(".")[0] in self.linears)
        return 8 * packed / sum(prod(shape) for shape in self.linears.values())


def choose_group_size(linears: dict[str, tuple[int, int]], group_size: int, ranks: int = 1) -> int:
    """`group_size`, or the largest legal group size if it is 0.

    Raises QCompressError, with the name of a linear, if the size does not divide the inputs of this linear on each of
    `ranks` GPUs.
    """
    legal = legal_group_sizes(linears, ranks)
    size = group_size or (legal[0] if legal else GROUP_SIZES[-1])
    if size in legal:
        return size
    name, inn = next((name, inn) for name, (_, inn) in linears.items() if not divides(size, name, inn, ranks))
    sizes = ", ".join(map(str, legal))
    cure = f"use {sizes} or auto" if legal else "no group size of vLLM's kernels fits this model"
    inputs = f"{inn} inputs of this linear" + (f" over {ranks} GPUs" if ranks > 1 and is_row_parallel(name) else "")
    raise QCompressError(f"{name}: --group-size {size} does not divide the {inputs}; {cure}")


def group_size_reason(plan: LayoutPlan, ranks: int = 1) -> str | None:
    """The reason why `auto` chose no larger group size: a linear whose inputs the next larger size does not divide.

    None if `auto` chose the largest group size.
    """
    larger = [size for size in GROUP_SIZES if size > plan.scheme.group_size]
    for name, (_, inn) in plan.linears.items():
        if larger and not divides(larger[-1], name, inn, ranks):
            return f"auto chose {plan.scheme.group_size}: {larger[-1]} does not divide the {inn} inputs of {name}"
    return None


def check_full_words(linears: dict[str, tuple[int, int]]) -> None:
    """Raise QCompressError if a linear's outputs or inputs are not a multiple of 8. Codes are packed 8 to a word."""
    for name, (out, inn) in linears.items():
        if out % 8 or inn % 8:
            raise QCompressError(
                f"{name}: this linear cannot be packed: {out} outputs and {inn} inputs must both be multiples of 8"
            )


def make_plan(source: SourceModel, config: QuantizeConfig) -> LayoutPlan:
    """The plan of these settings, without a check of `max_size`.

    The linears of the decoder blocks are packed. Head and embedding are packed if `config` gives them fewer than 16
    bits. A tied head is not stored, unless it is packed. All other tensors have the source's dtype.
    Raises QCompressError if vLLM cannot load the layout.
    """
    linears, vocabulary = source.linears, source.vocabulary
    missing = [name for name in linears if f"{name}.weight" not in source.shapes]
    if missing:
        raise QCompressError(
            f"{source.name}: {missing[0]}.weight is missing, but config.json requires it; download the model again"
        )
    ranks = config.tensor_parallel_size
    if ranks > 1:
        check_ranks(source.name, source.model, linears, ranks)
    group_size = choose_group_size(linears, config.group_size, ranks)
    check_full_words(linears)
    row, scheme = FORMATS[config.format], Scheme(config.bits, group_size, config.symmetric, source.dtype)
    schemes = choose_schemes(source.name, Choice(config, source.model, vocabulary), linears, scheme)
    packed = {name: linears.get(name, (vocabulary.rows, vocabulary.width)) for name in schemes}
    specs = [spec for name, shape in packed.items() for spec in packed_specs(name, shape, row, schemes[name])]
    specs += [spec for spec in unquantized_specs(source) if spec.name.removesuffix(".weight") not in schemes]
    named = [replace(spec, stored=source.naming.in_file(spec.name)) for spec in specs]
    return LayoutPlan(
        row, scheme, schemes, linears, table_sources(vocabulary, schemes), [*named, *source.carried], source
    )


def carried_parts(carried: Sequence[TensorSpec]) -> list[str]:
    """The modules that contain all linears among carried tensors: their first names, without a common "model."."""
    linears = [spec.name.split(".") for spec in carried if spec.name.endswith(".weight") and len(spec.shape) == 2]
    return sorted({path[1] if path[0] == "model" else path[0] for path in linears})


def unquantized_specs(source: SourceModel) -> list[TensorSpec]:
    """Every tensor of the model in 16 bits. A tied head is not stored."""
    tied = f"{HEAD}.weight" if source.vocabulary.tied else None
    return [
        TensorSpec(name, Dtype.float32 if name in source.exact else source.dtype, shape)
        for name, shape in source.shapes.items()
        if name != tied
    ]


def unquantized_bytes(source: SourceModel) -> int:
    """The exact bytes of the model's weight files in 16 bits."""
    return planned_bytes([*unquantized_specs(source), *source.carried])


def table_sources(vocabulary: Vocabulary, schemes: Schemes) -> dict[str, str]:
    """{packed head or embedding: the parameter with its weights}. A tied head has the weights of the embedding."""
    head = vocabulary.embedding if vocabulary.tied else vocabulary.head
    sources = {vocabulary.embedding: vocabulary.embedding, vocabulary.head: head}
    return {name: f"{source}.weight" for name, source in sources.items() if name in schemes}


def packed_specs(module: str, shape: tuple[int, int], row: Format, scheme: Scheme) -> list[TensorSpec]:
    """The tensors on disk of one packed module with this (out, in) shape."""
    return [TensorSpec(f"{module}.{spec.name}", spec.dtype, spec.shape) for spec in row.specs(*shape, scheme)]


def padding_row(checkpoint: Checkpoint, plan: LayoutPlan) -> Row:
    """The padding of a checkpoint's MLPs, and the bytes of the result that it takes. {} without padding."""
    padding = padding_of(checkpoint)
    if padding is None:
        return {}
    stored, size = padding
    packed = sum(spec.bytes for spec in plan.specs if padded_axis(f"{spec.name.rpartition('.')[0]}.weight") is not None)
    return {"padded": f"{SIZE} {stored} to {size}", "padding_bytes": round(packed * (size - stored) / size)}


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
