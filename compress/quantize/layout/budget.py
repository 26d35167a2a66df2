"""List every layout that vLLM loads, with its exact bytes and its harm, and choose the best one for a byte budget.

If `sensitivity.py` has measured the weights, harm is a sum of KLs in nats. Otherwise it is the mean relative error of
rounding normal weights, which only ranks layouts. The largest of G normal numbers lies near the quantile
(G - 3/8) / (G + 1/4) (Blom 1958). A grid covers twice this largest number in 2^bits - 1 steps. Rounding to steps of
size s has the mean square error s² / 12.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from statistics import NormalDist
from typing import Any

from compress.checkpoint.schemes import kind
from compress.core.config import FORMAT_NAMES, QuantizeConfig
from compress.core.errors import QCompressError
from compress.core.scheme import Scheme
from compress.model.shapes import model_stages
from compress.quantize.layout.layouts import Choice, refusal
from compress.quantize.layout.plan import LayoutPlan, SourceModel, make_plan
from compress.quantize.layout.tensor_parallel import legal_group_sizes

HEAD_AND_EMBEDDING = ((16, 16), (8, 16), (4, 16), (8, 8), (4, 8), (16, 8))  # bits
Harm = Callable[[LayoutPlan], float]
Planned = tuple[QuantizeConfig, LayoutPlan]


@dataclass(frozen=True)
class LayoutChoice:
    """A layout: its settings, its exact plan, and its harm. Less harm is better."""

    config: QuantizeConfig
    plan: LayoutPlan
    harm: float


def plan_layouts(source: SourceModel, config: QuantizeConfig, formats: Sequence[str]) -> list[Planned]:
    """The settings and plan of every layout that vLLM loads. All settings outside the layout come from `config`."""
    return [(layout, make_plan(source, layout)) for layout in layouts(source, config, formats)]


def rank(plans: Sequence[Planned], harm: Harm) -> list[LayoutChoice]:
    """The layouts with their harm, the least harmful first. Of two with equal harm, the smaller one comes first."""
    candidates = [LayoutChoice(config, plan, harm(plan)) for config, plan in plans]
    return sorted(candidates, key=lambda candidate: (candidate.harm, candidate.plan.bytes))


def layouts(source: SourceModel, config: QuantizeConfig, formats: Sequence[str]) -> Iterator[QuantizeConfig]:
    """The settings of every layout that vLLM loads, from all combinations of the layout options.

    The options are formats, group sizes, bits of head and embedding, and stages in 8 bits.
    """
    wide_stages = eight_bit_choices(source.model)
    axes = product(
        formats, legal_group_sizes(source.linears, config.tensor_parallel_size), HEAD_AND_EMBEDDING, wide_stages
    )
    for format_name, group_size, (head_bits, embedding_bits), eight_bit in axes:
        layout = replace(
            config,
            format=format_name,
            sym=config.sym if format_name == config.format else None,
            group_size=group_size,
            head_bits=head_bits,
            embedding_bits=embedding_bits,
            eight_bit=eight_bit,
            max_size=None,
        )
        if refusal(Choice(layout, source.model, source.vocabulary)) is None:
            yield layout


def eight_bit_choices(model: dict[str, Any]) -> list[tuple[str, ...]]:
    """The values of `eight_bit` to try: no stage, each stage alone, all stages.

    The name of a stage is that of its first linear.
    """
    stages = tuple(dict.fromkeys(name.rpartition(".")[2] for name in model_stages(model)))
    return [(), *((stage,) for stage in stages), *([stages] if stages else [])]


def rounding_error(scheme: Scheme) -> float:
    """Expected ‖ΔW‖² / ‖W‖² of rounding normal weights with this scheme.

    A symmetric grid spans the largest absolute weight of its group on both sides of 0. The largest absolute value of G
    weights is estimated by the largest value of 2 G weights.
    """
    count = scheme.group_size * (2 if scheme.sym else 1)
    extreme = NormalDist().inv_cdf((count - 3 / 8) / (count + 1 / 4))
    return (2 * extreme / (2**scheme.bits - 1)) ** 2 / 12


def estimated_harm(source: SourceModel) -> Harm:
    """A function that returns a plan's mean relative rounding error over all matrices. It only ranks layouts."""
    table = source.vocabulary.rows * source.vocabulary.width
    weights = sum(map(prod, source.linears.values())) + 2 * table

    def harm(plan: LayoutPlan) -> float:
        counts = {name: prod(plan.linears[name]) if name in plan.linears else table for name in plan.schemes}
        return sum(counts[name] * rounding_error(scheme) for name, scheme in plan.schemes.items()) / weights

    return harm


def choose(candidates: Sequence[LayoutChoice], max_size: int | None) -> LayoutChoice | None:
    """The least harmful candidate of at most `max_size` bytes. None if no layout fits."""
    return next((each for each in candidates if max_size is None or each.plan.bytes <= max_size), None)


def worthwhile(candidates: Sequence[LayoutChoice]) -> list[LayoutChoice]:
    """The ranked layouts, except those for which a less harmful layout is at most as large."""
    kept: list[LayoutChoice] = []
    for each in candidates:
        if not kept or each.plan.bytes < kept[-1].plan.bytes:
            kept.append(each)
    return kept


def plan_within(source: SourceModel, config: QuantizeConfig) -> LayoutPlan:
    """The plan of these settings. Raises QCompressError, with options that fit, if the plan exceeds `max_size`."""
    plan = make_plan(source, config)
    if config.max_size is None or plan.bytes <= config.max_size:
        return plan
    over = plan.bytes - config.max_size
    raise QCompressError(
        f"{source.name}: the result would have {plan.bytes:,} bytes, {over:,} over --max-size; {cure(source, config)}"
    )


def cure(source: SourceModel, config: QuantizeConfig) -> str:
    """The cure of an error: options that fit `max_size`, in the same format if possible; else the smallest layout."""
    assert config.max_size is not None
    other_formats = [name for name in FORMAT_NAMES if name != config.format]
    harm, candidates = estimated_harm(source), []
    for formats in ([config.format], other_formats):
        ranked = rank(plan_layouts(source, config, formats), harm)
        candidates += ranked
        best = choose(ranked, config.max_size)
        if best is not None:
            return f"with {format_flags(best.config, config)} it has {best.plan.bytes:,} bytes"
    return format_misfit(candidates, config.max_size)


def format_misfit(candidates: Sequence[LayoutChoice], max_size: int) -> str:
    """The cure of an error if no layout fits `max_size`. It names the smallest layout."""
    if not candidates:
        return "vLLM can load this model in no layout"
    least = min(candidates, key=lambda each: each.plan.bytes)
    over = least.plan.bytes - max_size
    return (
        f"no layout fits: the smallest, {format_flags(least.config)}, has {least.plan.bytes:,} bytes, {over:,} over "
        "the limit; use a smaller model"
    )


LAYOUT_FLAGS = (
    *("method", "format", "group_size", "head_bits", "embedding_bits", "eight_bit", "dtype"),
    "tensor_parallel_size",
)


def format_flags(config: QuantizeConfig, previous: QuantizeConfig | None = None) -> str:
    """The options of `qcompress quantize` that change the settings `previous` into `config`.

    Without `previous`, they change the command's defaults.
    """
    usual = previous or QuantizeConfig(method=config.method)
    words: list[str] = []
    for name in LAYOUT_FLAGS:
        value, before = getattr(config, name), getattr(usual, name)
        if name == "method" and previous is None:
            before = QuantizeConfig.method
        if value != before:
            option, values = f"--{name.replace('_', '-')}", value if isinstance(value, tuple) else (value,)
            words += [f"{option} {one}" for one in values] or [f"no {option}"]
    return " ".join(words)


def loaders(plan: LayoutPlan) -> dict[str, bool]:
    """Which runtimes load the layout: {runtime: True or False}.

    vLLM loads every planned layout on a GPU. On a CPU, vLLM loads only layouts with 4 bits everywhere and without a
    packed embedding. transformers cannot load a packed embedding either. It loads a packed head or mixed bits only from
    compressed-tensors.
    """
    schemes, only_blocks = plan.schemes, set(plan.schemes) == set(plan.linears)
    all_four = all(scheme.bits == 4 for scheme in schemes.values())
    full_words = all(out % 32 == 0 and inn % 32 == 0 for out, inn in plan.linears.values())
    packed_embedding = any(kind(name) == "embedding" for name in schemes)
    mixed = plan.format.name == "compressed-tensors" or (all_four and only_blocks)
    return {
        "vllm_gpu": True,
        "vllm_cpu": all_four and full_words and not packed_embedding,
        "transformers": not packed_embedding and mixed,
    }
