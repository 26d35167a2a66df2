"""Select and describe the layouts that `qcompress plan` shows: few rows, the recommended one first, harm in words."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from compress.checkpoint.hub import model_name
from compress.core.config import FORMAT_NAMES, QuantizeConfig
from compress.core.report import Report, Row, silent
from compress.core.rows import PlanRow
from compress.quantize.layout.budget import (
    Harm,
    LayoutChoice,
    Planned,
    choose,
    estimated_harm,
    format_flags,
    loaders,
    plan_layouts,
    rank,
    worthwhile,
)
from compress.quantize.layout.plan import SourceModel

MAX_ROWS = 8
RUNTIMES = {"vllm-gpu": "vllm_gpu", "vllm-cpu": "vllm_cpu", "transformers": "transformers"}
HARM_WORDS = ((0.1, "almost none"), (0.8, "less than plain"), (1.25, "about plain 4 bits"))  # highest ratio, words


@dataclass(frozen=True)
class Overview:
    """The ranked layouts of one model. `recommended` is None if no layout is legal or fits `max_size`."""

    candidates: list[LayoutChoice]
    recommended: LayoutChoice | None
    max_size: int | None
    measured: bool

    def shown(self, *, show_all: bool = False) -> list[LayoutChoice]:
        """The recommended layout, then other layouts from large to small. `show_all` returns all of them.

        Otherwise there are at most MAX_ROWS. This short list leaves out layouts above `max_size`, and layouts that
        `worthwhile` leaves out.
        """
        others = self.candidates if show_all else self.fitting(worthwhile(self.candidates))
        others = [each for each in others if each is not self.recommended]
        others.sort(key=lambda each: each.plan.bytes, reverse=True)
        first = [] if self.recommended is None else [self.recommended]
        return first + (others if show_all else spread(others, MAX_ROWS - len(first)))

    def fitting(self, candidates: list[LayoutChoice]) -> list[LayoutChoice]:
        """The candidates of at most `max_size` bytes. If there are none, all candidates."""
        fits = [each for each in candidates if self.max_size is None or each.plan.bytes <= self.max_size]
        return fits or candidates

    def row(self, candidate: LayoutChoice) -> PlanRow:
        """A layout as a row for --json. Only the row of the recommended layout has the key `take`."""
        config, plan = candidate.config, candidate.plan
        row: Row = {
            "format": config.format,
            "group_size": config.group_size,
            "head_bits": config.head_bits,
            "embedding_bits": config.embedding_bits,
            "eight_bit": " ".join(config.eight_bit) or None,
            "bytes": plan.bytes,
            "harm": candidate.harm,
            **({} if self.max_size is None else {"fits": plan.bytes <= self.max_size}),
            **loaders(plan),
            **({"take": True} if candidate is self.recommended else {}),
        }
        return cast("PlanRow", row)

    def harm_text(self, candidate: LayoutChoice) -> str:
        """The harm as text: a measured KL in nats, or words that compare the estimate with plain 4 bits."""
        if self.measured:
            return f"{candidate.harm:.4f} nats"
        plain = plain_layout(self.candidates)
        ratio = candidate.harm / plain.harm if plain else 1.0
        return next((words for limit, words in HARM_WORDS if ratio <= limit), "more than plain")


def make_overview(
    model: Path,
    source: SourceModel,
    *,
    formats: Sequence[str] = (),
    config: QuantizeConfig | None = None,
    runs_in: str | None = None,
    max_size: int | None = None,
    measure: bool = False,
    report: Report = silent,
) -> Overview:
    """Rank all layouts that the runtime `runs_in` loads. Without `runs_in`, rank all layouts.

    `formats` limits the formats; if it is empty, all formats are ranked. All settings outside the layout come from
    `config`. `measure` reads the weights of `model` and measures harm in nats. Raises QCompressError if weights are to
    be measured and `model` has none.
    """
    plans = plan_layouts(source, config or QuantizeConfig(), formats or FORMAT_NAMES)
    if runs_in is not None:
        plans = [(layout, plan) for layout, plan in plans if loaders(plan)[RUNTIMES[runs_in]]]
    harm = measured(model, source, plans, report) if measure else estimated_harm(source)
    candidates = rank(plans, harm)
    recommended = plain_layout(candidates) if max_size is None else choose(candidates, max_size)
    return Overview(candidates, recommended, max_size, measure)


def measured(model: Path, source: SourceModel, plans: Sequence[Planned], report: Report) -> Harm:
    """The harm of each layout, measured on the weights at `model`. Imports torch."""
    from compress.quantize.layout.sensitivity import measure_harm

    return measure_harm(model, source, plans, report)


def plain_layout(candidates: Sequence[LayoutChoice]) -> LayoutChoice | None:
    """The candidate with 4 bits in all linears, 16 bits in head and embedding, and the largest group size.

    If several formats have such a candidate, the first format in FORMAT_NAMES wins. None if there is no such candidate.
    """
    plain = [each for each in candidates if (each.config.head_bits, each.config.embedding_bits) == (16, 16)]
    plain = [each for each in plain if not each.config.eight_bit]
    order = {name: -index for index, name in enumerate(FORMAT_NAMES)}
    return max(plain, key=lambda each: (each.config.group_size, order[each.config.format]), default=None)


def spread(candidates: list[LayoutChoice], count: int) -> list[LayoutChoice]:
    """At most `count` evenly spaced candidates, including the first and the last."""
    if len(candidates) <= count:
        return candidates
    return [candidates[round(index * (len(candidates) - 1) / (count - 1))] for index in range(count)]


def quantize_command(model: Path, config: QuantizeConfig) -> str:
    """The command line that writes this layout. It names the folder of `model`, or MODEL if that has no weights."""
    folder = model.parent if model.is_file() else model
    weights = shlex.quote(str(folder)) if any(folder.glob("*.safetensors")) else "MODEL"
    name = model.stem if model.is_file() and model.name != "config.json" else model_name(folder)
    words = ["qcompress quantize", weights, format_flags(config), "-o", shlex.quote(f"{name}-4bit")]
    return " ".join(word for word in words if word)
