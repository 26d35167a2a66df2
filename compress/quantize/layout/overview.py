"""Select and describe the layouts that `qcompress plan` shows: few rows, the recommended one first, harm in words."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from compress.checkpoint.hub import model_name
from compress.core.config import FORMAT_NAMES, GROUP_SIZES, QuantizeConfig
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
from compress.quantize.layout.plan import LayoutPlan, SourceModel, choose_group_size, unquantized_bytes
from compress.quantize.layout.prediction import FACTOR, RoundingKl, predict_kl

if TYPE_CHECKING:
    from compress.quantize.layout.sensitivity import LayoutMeter

MAX_ROWS = 8
RUNTIMES = {"vllm-gpu": "vllm_gpu", "vllm-cpu": "vllm_cpu", "transformers": "transformers"}
HARM_WORDS = (  # highest ratio to plain 4 bits, words
    (0.1, "almost none"),
    (0.8, "less than plain"),
    (1.25, "about as plain 4 bits"),
)


@dataclass(frozen=True)
class Overview:
    """The ranked layouts of one model. `recommended` is None if no layout is legal or fits `max_size`.

    `source_bytes` is the size of the model in 16 bits. `rounding_kl` measures a layout, if the weights are measured.
    """

    candidates: list[LayoutChoice]
    recommended: LayoutChoice | None
    plain: LayoutChoice | None
    max_size: int | None
    source_bytes: int
    rounding_kl: Callable[[LayoutPlan], RoundingKl] | None = None

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

    def rows(self, shown: Sequence[LayoutChoice], report: Report = silent) -> list[PlanRow]:
        """The rows of these layouts for --json. With a measurement, every layout is measured as a whole."""
        rows = []
        for number, each in enumerate(shown, 1):
            rows.append(self.row(each))
            if self.rounding_kl is not None:
                report({"layouts": f"{number}/{len(shown)}"})
        return rows

    def row(self, candidate: LayoutChoice) -> PlanRow:
        """A layout as a row for --json. Only the row of the recommended layout has the key `take`."""
        config, plan = candidate.config, candidate.plan
        predicted = {} if self.rounding_kl is None else predict_kl(self.rounding_kl(plan))
        row: Row = {
            "format": config.format,
            "group_size": config.group_size,
            "head_bits": config.head_bits,
            "embedding_bits": config.embedding_bits,
            "eight_bit": " ".join(config.eight_bit) or None,
            "bytes": plan.bytes,
            "source_bytes": self.source_bytes,
            "harm": candidate.harm,
            **({"predicted_kl": predicted, "predicted_factor": FACTOR} if predicted else {}),
            **({} if self.max_size is None else {"fits": plan.bytes <= self.max_size}),
            **loaders(plan),
            **({"take": True} if candidate is self.recommended else {}),
        }
        return cast("PlanRow", row)

    def harm_text(self, candidate: LayoutChoice) -> str:
        """The estimated harm in words that compare it with plain 4 bits."""
        ratio = candidate.harm / self.plain.harm if self.plain else 1.0
        return next((words for limit, words in HARM_WORDS if ratio <= limit), "more than plain")


def make_overview(
    model: Path,
    source: SourceModel,
    *,
    formats: Sequence[str] = (),
    config: QuantizeConfig | None = None,
    runs_in: str | None = None,
    max_size: int | None = None,
    accept: Callable[[QuantizeConfig, LayoutPlan], bool] | None = None,
    prefer_plain: bool = False,
    measure: bool = False,
    device: str = "auto",
    report: Report = silent,
) -> Overview:
    """Rank all layouts that the runtime `runs_in` loads. Without `runs_in`, rank all layouts.

    `formats` limits the formats; if it is empty, all formats are ranked. `accept` leaves out other layouts. With
    `prefer_plain`, plain 4 bits are recommended if they fit `max_size`, because they decode faster than more bits. All
    settings outside the layout come from `config`. `measure` reads the weights of `model` to measure KLs on `device`.
    Raises QCompressError if weights are to be measured and `model` has none.
    """
    config = config or QuantizeConfig()
    plans = plan_layouts(source, config, formats or FORMAT_NAMES)
    if runs_in is not None:
        plans = [(layout, plan) for layout, plan in plans if loaders(plan)[RUNTIMES[runs_in]]]
    if accept is not None:
        plans = [(layout, plan) for layout, plan in plans if accept(layout, plan)]
    meter = open_measurement(model, source, device) if measure else None
    candidates = rank(plans, meter.harm(plans, report) if meter else estimated_harm(source))
    usual = choose_group_size(source.linears, 0, config.tensor_parallel_size)
    sizes = [usual, *(size for size in GROUP_SIZES if size < usual)]
    plain = next((each for size in sizes if (each := plain_layout(candidates, size))), None)
    plain_fits = plain is not None and (max_size is None or (prefer_plain and plain.plan.bytes <= max_size))
    recommended = plain if plain_fits or max_size is None else choose(candidates, max_size)
    size = unquantized_bytes(source)
    return Overview(candidates, recommended, plain, max_size, size, meter.rounding_kl if meter else None)


def open_measurement(model: Path, source: SourceModel, device: str) -> "LayoutMeter":
    """The meter for the weights at `model`. Imported here, because it needs torch."""
    from compress.core.device import pick_device
    from compress.quantize.layout.sensitivity import open_meter

    return open_meter(model, source, pick_device(device))


def plain_layout(candidates: Sequence[LayoutChoice], group_size: int) -> LayoutChoice | None:
    """The candidate that `quantize` writes by default: 4 bits in all linears, 16 bits in head and embedding.

    `group_size` is that of `--group-size auto`. Of several formats, the first in FORMAT_NAMES is returned. None if
    there is no such candidate.
    """
    layouts = {
        each.config.format: each
        for each in candidates
        if (each.config.head_bits, each.config.embedding_bits, each.config.group_size) == (16, 16, group_size)
        and not each.config.eight_bit
    }
    return next((layouts[name] for name in FORMAT_NAMES if name in layouts), None)


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
