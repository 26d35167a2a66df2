"""The stages of a distillation. Each has its own settings and text. Part of the text can repeat earlier stages.

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
from compress.distill.text.shortage import text_errors
from compress.distill.text.windows import Text, find_start, read_text


@dataclass(frozen=True)
class TextStage:
    """One stage: name, complete settings, and text sources, including sources repeated from earlier stages.

    `replay` is the fraction of the text that repeats earlier stages.
    """

    name: str
    settings: DistillConfig
    text: tuple[str, ...]
    on_policy: bool = False
    replay: float = 0.0

    def named(self) -> Row:
        """The stage's name as the first entry of a report row; empty for a stage without a name."""
        return {"stage": self.name} if self.name else {}

    @property
    def needed(self) -> int:
        """The number of windows that the stage reads. A window that is read twice counts twice."""
        return self.settings.total_steps * self.settings.batch_size


def make_stages(settings: DistillConfig) -> list[TextStage]:
    """All stages of a run, in order."""
    resolved = settings.resolved()
    if not settings.stages:
        return [TextStage("", settings, settings.text)]
    stages = []
    for number, (stage, complete) in enumerate(zip(settings.stages, resolved, strict=True)):
        text = mix(complete.text, [earlier.text for earlier in resolved[:number]], stage.replay)
        stages.append(TextStage(stage.name, complete, text, stage.on_policy, stage.replay))
    return stages


def mix(text: Sequence[str], earlier: Sequence[Sequence[str]], replay: float) -> tuple[str, ...]:
    """The sources of a stage and of the earlier stages that it repeats, with weights.

    The sources in `text` get the weight 1 - `replay`. The `earlier` stages get equal parts of `replay`. Within a stage,
    sources keep their relative weights. A source of several stages is listed once.
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
    """The text of every stage. All stages use one start token, which is measured on the first stage's text."""
    sizes = [{"seq_len": stage.settings.seq_len, "seed": stage.settings.seed} for stage in stages]
    with text_errors(stages[0]):
        start = find_start(stages[0].text, tokenizer, teacher, stages[0].needed, sizes[0])
    texts = []
    for stage, size in zip(stages, sizes, strict=True):
        settings = stage.settings
        with text_errors(stage):
            texts.append(
                read_text(stage.text, settings.eval_text, tokenizer, stage.needed, size, start, settings.packing)
            )
    return texts


def check_untrained(texts: Sequence[Text], heldout: Windows) -> None:
    """Raises QCompressError if any stage trains on an evaluation text. `heldout` holds the run's evaluation windows."""
    trained = {source["digest"] for text in texts for source in text.windows.manifest["sources"]}
    for windows in (*(text.eval_windows for text in texts), heldout):
        for source in windows.manifest["sources"]:
            if source["digest"] in trained:
                raise QCompressError(
                    f"{source['name']}: another stage trains on this text, so it cannot be an --eval-text; "
                    "give another text"
                )
