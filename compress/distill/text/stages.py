"""The stages of a distillation: settings and text of each, with a share of earlier stages' text repeated.

A distillation without stages is one stage without a name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calibration.corpus import parse_source
from calibration.windows import Windows
from compress.core.errors import QCompressError
from compress.core.report import Row
from compress.distill.config import DistillConfig
from compress.distill.text.windows import Text, find_start, read_text


@dataclass(frozen=True)
class TextStage:
    """One stage: its name, its complete settings, and its text including repeated text."""

    name: str
    settings: DistillConfig
    text: tuple[str, ...]
    on_policy: bool = False

    def named(self) -> Row:
        """The start of its report rows: its name, or nothing for a run without stages."""
        return {"stage": self.name} if self.name else {}

    @property
    def needed(self) -> int:
        """The number of windows that it reads, repeated ones included."""
        return self.settings.total_steps * self.settings.batch_size


def make_stages(settings: DistillConfig) -> list[TextStage]:
    """The stages of the settings, in order."""
    resolved = settings.resolved()
    if not settings.stages:
        return [TextStage("", settings, settings.text)]
    stages = []
    for number, (stage, complete) in enumerate(zip(settings.stages, resolved, strict=True)):
        text = mix(complete.text, [earlier.text for earlier in resolved[:number]], stage.replay)
        stages.append(TextStage(stage.name, complete, text, stage.on_policy))
    return stages


def mix(text: Sequence[str], earlier: Sequence[Sequence[str]], replay: float) -> tuple[str, ...]:
    """Sources whose weights sum to 1: 1 - `replay` for `text`, the rest divided equally among `earlier` stages.

    Sources of one stage keep their relative weights. A source that occurs twice is listed once.
    """
    if not replay:
        return tuple(text)
    weights: dict[str, float] = {}
    parts = [(text, 1 - replay), *((other, replay / len(earlier)) for other in earlier)]
    for names, part in parts:
        sources = [parse_source(source) for source in names]
        whole = sum(source.weight for source in sources)
        for source in sources:
            weights[source.name] = weights.get(source.name, 0.0) + part * source.weight / whole
    return tuple(f"{name}={round(weight, 9)!r}" for name, weight in weights.items())


def stage_texts(stages: Sequence[TextStage], tokenizer: Any, teacher: Any) -> list[Text]:
    """The text of every stage. All windows begin with the start token measured on the first stage's text."""
    sizes = [{"seq_len": stage.settings.seq_len, "seed": stage.settings.seed} for stage in stages]
    start = find_start(stages[0].text, tokenizer, teacher, stages[0].needed, sizes[0])
    return [
        read_text(stage.text, stage.settings.eval_text, tokenizer, stage.needed, size, start, stage.settings.packing)
        for stage, size in zip(stages, sizes, strict=True)
    ]


def check_untrained(texts: Sequence[Text], heldout: Windows) -> None:
    """QCompressError when any stage trains on an evaluation text: of a stage, or that of the whole run, `heldout`."""
    trained = {source["digest"] for text in texts for source in text.windows.manifest["sources"]}
    for windows in (*(text.eval_windows for text in texts), heldout):
        for source in windows.manifest["sources"]:
            if source["digest"] in trained:
                raise QCompressError(
                    f"{source['name']}: another stage trains on it, so it cannot be an --eval-text; give another"
                )
