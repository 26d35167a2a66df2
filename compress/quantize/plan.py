"""Bytes before work: which tensors a quantized checkpoint will hold, and whether they fit the budget."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from compress.checkpoint.formats import FORMATS, Format, Scheme
from compress.checkpoint.write import TensorSpec, planned_bytes
from compress.config import GROUP_SIZES, QuantizeConfig
from compress.errors import QCompressError
from compress.model.blocks import linear_shapes


@dataclass(frozen=True)
class Plan:
    """`linears`: (out, in) by module path; `specs`: every tensor to be written; `bytes`: of the files, exact."""

    format: Format
    scheme: Scheme
    linears: dict[str, tuple[int, int]]
    specs: list[TensorSpec]
    unquantized: list[str]

    @property
    def bytes(self) -> int:
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


def group_size_reason(plan: Plan) -> str | None:
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


def make_plan(
    where: str, shapes: dict[str, tuple[int, ...]], model: dict[str, Any], config: QuantizeConfig, dtype: torch.dtype
) -> Plan:
    """Every tensor of the result, in the order of `shapes`. QCompressError when it cannot be, or passes `max_size`.

    `shapes` are the source's parameters by name, `model` its config.json. The linears of the decoder blocks are packed,
    everything else is stored in `dtype`; a tied head is not stored.
    """
    linears = linear_shapes(model)
    missing = [name for name in linears if f"{name}.weight" not in shapes]
    if missing:
        raise QCompressError(f"{where}: has no {missing[0]}.weight, which its config.json calls for")
    group_size = choose_group_size(linears, config.group_size)
    check_rows(linears)
    row, scheme = FORMATS[config.format], Scheme(config.bits, group_size, config.symmetric, dtype)
    specs: list[TensorSpec] = []
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module in linears:
            specs += packed_specs(module, linears[module], row, scheme)
        elif not (name == "lm_head.weight" and model.get("tie_word_embeddings")):
            specs.append(TensorSpec(name, dtype, shape))
    plan = Plan(row, scheme, linears, specs, ["lm_head"])
    if config.max_size is not None and plan.bytes > config.max_size:
        over = plan.bytes - config.max_size
        raise QCompressError(f"{where}: would be {plan.bytes:,} bytes, {over:,} over --max-size; {cure(plan)}")
    return plan


def packed_specs(module: str, shape: tuple[int, int], row: Format, scheme: Scheme) -> list[TensorSpec]:
    return [TensorSpec(f"{module}.{spec.name}", spec.dtype, spec.shape) for spec in row.specs(*shape, scheme)]


def cure(plan: Plan) -> str:
    """What makes up most of the bytes, said so that the reader knows where to cut."""
    plain = sum(spec.bytes for spec in plan.specs if spec.name.rpartition(".")[0] not in plan.linears)
    return (
        f"{plain:,} of them are embeddings, head and norms in 16 bits: a larger group size or a smaller model is needed"
    )


def plan_row(where: str, plan: Plan, config: QuantizeConfig) -> dict[str, Any]:
    """The plan as a report row."""
    return {
        "model": where,
        "method": config.method,
        "format": config.format,
        "bits": plan.scheme.bits,
        "group_size": plan.scheme.group_size,
        "sym": plan.scheme.sym,
        "linears": len(plan.linears),
        "bytes": plan.bytes,
        "bits_per_weight": round(plan.bits_per_weight, 4),
    }
