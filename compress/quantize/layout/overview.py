"""The layouts of a model as `qcompress plan` shows them: few rows, the recommended one first, harm in words."""

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
    LayoutChoice,
    choose,
    estimated_harm,
    format_flags,
    loaders,
    plan_layouts,
    rank,
    worthwhile,
)
from compress.quantize.layout.plan import SourceModel
from compress.quantize.layout.sensitivity import measure_harm

MAX_ROWS = 8
RUNTIMES = {"vllm-gpu": "vllm_gpu", "vllm-cpu": "vllm_cpu", "transformers": "transformers"}
HARM_WORDS = ((0.1, "almost none"), (0.8, "less than plain"), (1.25, "about plain 4 bits"))  # up to this ratio


@dataclass(frozen=True)
class Overview:
    """Ranked layouts of one model. `recommended` is None if no layout fits `max_size` or none is legal."""

    candidates: list[LayoutChoice]
    recommended: LayoutChoice | None
    max_size: int | None
    measured: bool

    def shown(self, *, show_all: bool = False) -> list[LayoutChoice]:
        """The recommended layout, then others from large to small: all of them, or at most MAX_ROWS in total.

        The short list leaves out layouts that another one beats in both size and harm, and those above `max_size`.
        """
        others = self.candidates if show_all else self.fitting(worthwhile(self.candidates))
        others = [each for each in others if each is not self.recommended]
        others.sort(key=lambda each: each.plan.bytes, reverse=True)
        first = [] if self.recommended is None else [self.recommended]
        return first + (others if show_all else spread(others, MAX_ROWS - len(first)))

    def fitting(self, candidates: list[LayoutChoice]) -> list[LayoutChoice]:
        """The candidates of at most `max_size` bytes; all of them if none fits."""
        fits = [each for each in candidates if self.max_size is None or each.plan.bytes <= self.max_size]
        return fits or candidates

    def row(self, candidate: LayoutChoice) -> PlanRow:
        """A layout as a row of --json; `take` marks the recommended one."""
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
        """A measured KL in nats, or an estimate in words, compared with plain 4 bits."""
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
    """All layouts of `formats` (none: all) that `runs_in` loads, ranked. `config` has the settings of other kinds.

    `measure` reads the weights at `model` and measures harm in nats. QCompressError if there are no weights.
    """
    plans = plan_layouts(source, config or QuantizeConfig(), formats or FORMAT_NAMES)
    if runs_in is not None:
        plans = [(layout, plan) for layout, plan in plans if loaders(plan)[RUNTIMES[runs_in]]]
    harm = measure_harm(model, source, plans, report) if measure else estimated_harm(source)
    candidates = rank(plans, harm)
    recommended = plain_layout(candidates) if max_size is None else choose(candidates, max_size)
    return Overview(candidates, recommended, max_size, measure)


def plain_layout(candidates: Sequence[LayoutChoice]) -> LayoutChoice | None:
    """Plain 4 bits: head and embedding at 16 bits, no linear at 8, the largest group size, the first format."""
    plain = [each for each in candidates if (each.config.head_bits, each.config.embedding_bits) == (16, 16)]
    plain = [each for each in plain if not each.config.eight_bit]
    order = {name: -index for index, name in enumerate(FORMAT_NAMES)}
    return max(plain, key=lambda each: (each.config.group_size, order[each.config.format]), default=None)


def spread(candidates: list[LayoutChoice], count: int) -> list[LayoutChoice]:
    """At most `count` candidates, evenly spaced, the first and the last among them."""
    if len(candidates) <= count:
        return candidates
    return [candidates[round(index * (len(candidates) - 1) / (count - 1))] for index in range(count)]


def quantize_command(model: Path, config: QuantizeConfig) -> str:
    """The command line that writes this layout. Without weights at `model` it has MODEL for their folder."""
    folder = model.parent if model.is_file() else model
    weights = shlex.quote(str(folder)) if any(folder.glob("*.safetensors")) else "MODEL"
    name = model.stem if model.is_file() and model.name != "config.json" else model_name(folder)
    words = ["qcompress quantize", weights, format_flags(config), "-o", shlex.quote(f"{name}-4bit")]
    return " ".join(word for word in words if word)
