"""The byte budget: every layout that vLLM loads, its exact bytes, what it may cost in quality, and which one to take.

Harm is measured where `sensitivity.py` has looked at the weights: the sum of the parts' KL in nats. Elsewhere it is
the mean relative error of rounding normal weights, which only ranks: the largest of G numbers lies near the quantile
(G - 3/8) / (G + 1/4) (Blom 1958), twice that is cut into 2^bits - 1 steps, and a step s costs s² / 12.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from statistics import NormalDist
from typing import Any

from compress.checkpoint.schemes import kind
from compress.core.config import FORMAT_NAMES, GROUP_SIZES, QuantizeConfig
from compress.core.errors import QCompressError
from compress.core.grid import Scheme
from compress.model.families import find_family
from compress.quantize.layout.layouts import Choice, refusal
from compress.quantize.layout.plan import LayoutPlan, SourceModel, make_plan

ENDS = ((16, 16), (8, 16), (4, 16), (8, 8), (4, 8), (16, 8))  # bits of head and embedding
METHOD_OF = {"awq": "awq", "gptq": "gptq", "compressed-tensors": "gptq"}  # for command lines, where nobody chose one
Harm = Callable[[LayoutPlan], float]
Planned = tuple[QuantizeConfig, LayoutPlan]


@dataclass(frozen=True)
class Candidate:
    """A layout: the settings that ask for it, its exact plan, and how much it may harm (smaller is better)."""

    config: QuantizeConfig
    plan: LayoutPlan
    harm: float


def plan_layouts(source: SourceModel, wanted: QuantizeConfig, formats: Sequence[str]) -> list[Planned]:
    """Every layout that vLLM loads, with its plan; `wanted` gives the settings that are no layout."""
    return [(config, make_plan(source, config)) for config in layouts(source, wanted, formats)]


def rank(plans: Sequence[Planned], harm: Harm) -> list[Candidate]:
    """Least harmful first, among equals smallest first."""
    found = [Candidate(config, plan, harm(plan)) for config, plan in plans]
    return sorted(found, key=lambda candidate: (candidate.harm, candidate.plan.bytes))


def layouts(source: SourceModel, wanted: QuantizeConfig, formats: Sequence[str]) -> Iterator[QuantizeConfig]:
    """The settings of all legal layouts: formats × group sizes × bits of the ends × stages in 8 bits."""
    sizes = [size for size in GROUP_SIZES if all(inn % size == 0 for _, inn in source.linears.values())]
    for name in formats:
        sym = wanted.sym if name == wanted.format else None
        for size in sizes:
            for head_bits, embedding_bits in ENDS:
                for eight_bit in eight_bit_choices(str(source.model.get("model_type"))):
                    config = replace(
                        wanted,
                        format=name,
                        sym=sym,
                        group_size=size,
                        head_bits=head_bits,
                        embedding_bits=embedding_bits,
                        eight_bit=eight_bit,
                        max_size=None,
                    )
                    if refusal(Choice(config, source.model, source.vocabulary)) is None:
                        yield config


def eight_bit_choices(model_type: str) -> list[tuple[str, ...]]:
    """What may get 8 bits: nothing, each stage of a block (by the name of its first linear), or all of them."""
    family = find_family(model_type)
    stages = tuple(stage.linears[0].rpartition(".")[2] for stage in family.stages) if family else ()
    return [(), *((stage,) for stage in stages), *([stages] if stages else [])]


def rounding_error(scheme: Scheme) -> float:
    """Expected ‖ΔW‖² / ‖W‖² of normal weights on this grid. A symmetric grid must reach as far on both sides."""
    count = scheme.group_size * (2 if scheme.sym else 1)
    extreme = NormalDist().inv_cdf((count - 3 / 8) / (count + 1 / 4))
    return (2 * extreme / (2**scheme.bits - 1)) ** 2 / 12


def estimated_harm(source: SourceModel) -> Harm:
    """The mean relative error of all matrices: a rank, no prediction."""
    table = source.vocabulary.rows * source.vocabulary.width
    whole = sum(map(prod, source.linears.values())) + 2 * table

    def harm(plan: LayoutPlan) -> float:
        counts = {name: prod(plan.linears[name]) if name in plan.linears else table for name in plan.schemes}
        return sum(counts[name] * rounding_error(scheme) for name, scheme in plan.schemes.items()) / whole

    return harm


def choose(found: Sequence[Candidate], max_size: int | None) -> Candidate | None:
    """The least harmful layout of at most `max_size` bytes, None when none fits."""
    return next((each for each in found if max_size is None or each.plan.bytes <= max_size), None)


def worthwhile(found: Sequence[Candidate]) -> list[Candidate]:
    """The layouts that no other one beats in bytes and harm at once, least harmful first."""
    kept: list[Candidate] = []
    for each in found:
        if not kept or each.plan.bytes < kept[-1].plan.bytes:
            kept.append(each)
    return kept


def plan_within(source: SourceModel, config: QuantizeConfig) -> LayoutPlan:
    """The plan of these settings. QCompressError when it passes their `max_size` says which flags would keep it."""
    plan = make_plan(source, config)
    if config.max_size is None or plan.bytes <= config.max_size:
        return plan
    over = plan.bytes - config.max_size
    raise QCompressError(
        f"{source.name}: would be {plan.bytes:,} bytes, {over:,} over --max-size; {cure(source, config)}"
    )


def cure(source: SourceModel, config: QuantizeConfig) -> str:
    """The flags that keep `max_size`, in the wanted format if it can, else in another; or by how much all fail."""
    assert config.max_size is not None
    others = [name for name in FORMAT_NAMES if name != config.format]
    harm, tried = estimated_harm(source), []
    for formats in ([config.format], others):
        found = rank(plan_layouts(source, config, formats), harm)
        tried += found
        fitting = choose(found, config.max_size)
        if fitting is not None:
            return f"{flags(fitting.config, config)} makes it {fitting.plan.bytes:,}"
    return nothing_fits(tried, config.max_size)


def nothing_fits(found: Sequence[Candidate], max_size: int) -> str:
    """What to say when no layout keeps the budget: the smallest, and what it would take."""
    if not found:
        return "no layout is legal for this model"
    least = min(found, key=lambda each: each.plan.bytes)
    over = least.plan.bytes - max_size
    return (
        f"no layout fits: the smallest, {flags(least.config)}, is {least.plan.bytes:,} bytes, {over:,} over; "
        "a smaller model is needed"
    )


SHOWN = {  # option by field, in the order of a command line
    "method": "--method",
    "format": "--format",
    "group_size": "--group-size",
    "head_bits": "--head-bits",
    "embedding_bits": "--embedding-bits",
    "eight_bit": "--eight-bit",
}


def flags(config: QuantizeConfig, given: QuantizeConfig | None = None) -> str:
    """The options of `qcompress quantize` that ask for these settings, only those that differ from the `given` ones.

    Without them, those that are not the command's own defaults.
    """
    usual = {field.name: field.default for field in fields(QuantizeConfig)}
    before = {name: getattr(given, name) for name in SHOWN} if given else usual
    words: list[str] = []
    for name, option in SHOWN.items():
        value = getattr(config, name)
        if value != before[name]:
            each = value if isinstance(value, tuple) else (value,)
            words += [f"{option} {one}" for one in each] or [f"no {option}"]
    return " ".join(words)


def loaders(plan: LayoutPlan) -> dict[str, bool]:
    """Who can run it. vLLM's GPU kernels take all that is planned; its CPU kernel 4 bits and no packed embedding;
    transformers no packed embedding either, and heads and mixed bits of compressed-tensors only."""
    schemes, only_blocks = plan.schemes, set(plan.schemes) == set(plan.linears)
    four = all(scheme.bits == 4 for scheme in schemes.values())
    words = all(out % 32 == 0 and inn % 32 == 0 for out, inn in plan.linears.values())
    looked_up = any(kind(name) == "embedding" for name in schemes)
    return {
        "vllm_gpu": True,
        "vllm_cpu": four and words and not looked_up,
        "transformers": not looked_up and (plan.format.name == "compressed-tensors" or (four and only_blocks)),
    }


def layout_row(candidate: Candidate, max_size: int | None) -> dict[str, Any]:
    """A candidate as a report row."""
    config, plan = candidate.config, candidate.plan
    return {
        "format": config.format,
        "group_size": config.group_size,
        "head_bits": config.head_bits,
        "embedding_bits": config.embedding_bits,
        "eight_bit": " ".join(config.eight_bit) or None,
        "bytes": plan.bytes,
        "harm": candidate.harm,
        **({} if max_size is None else {"fits": plan.bytes <= max_size}),
        **loaders(plan),
    }
