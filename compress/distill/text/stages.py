"""The stages of a distillation: settings and text of each, one after another, a share of earlier texts replayed.

A distillation without stages is one stage without a name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calibration.corpus import parse_source
from calibration.windows import Windows
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig
from compress.distill.text.windows import EVAL_TOKENS, Text, counting_windows, find_start, read_text

Row = dict[str, Any]


@dataclass(frozen=True)
class TextStage:
    """What a stage does: its name, its own settings without stages, its text with what is replayed."""

    name: str
    settings: DistillConfig
    text: tuple[str, ...]
    on_policy: bool = False

    def named(self) -> Row:
        """What its rows begin with: nothing where there is only one."""
        return {"stage": self.name} if self.name else {}

    @property
    def needed(self) -> int:
        """Windows that it reads, with those it reads again."""
        return self.settings.total_steps * self.settings.batch_size


def make_stages(settings: DistillConfig) -> list[TextStage]:
    """The settings' stages in their order."""
    resolved = settings.resolved()
    if not settings.stages:
        return [TextStage("", settings, settings.text)]
    stages = []
    for place, (given, own) in enumerate(zip(settings.stages, resolved, strict=True)):
        text = mix(own.text, [earlier.text for earlier in resolved[:place]], given.replay)
        stages.append(TextStage(given.name, own, text, given.on_policy))
    return stages


def mix(own: Sequence[str], earlier: Sequence[Sequence[str]], replay: float) -> tuple[str, ...]:
    """Sources with weights that add up to 1: 1 - `replay` for `own`, the rest shared equally by the `earlier` stages.

    Within a stage its sources keep their weights to one another. A source that comes twice is named once.
    """
    if not replay:
        return tuple(own)
    weights: dict[str, float] = {}
    parts = [(own, 1 - replay), *((text, replay / len(earlier)) for text in earlier)]
    for text, part in parts:
        sources = [parse_source(source) for source in text]
        whole = sum(source.weight for source in sources)
        for source in sources:
            weights[source.name] = weights.get(source.name, 0.0) + part * source.weight / whole
    return tuple(f"{name}={round(weight, 9)!r}" for name, weight in weights.items())


def stage_texts(stages: Sequence[TextStage], tokenizer: Any, teacher: Any) -> list[Text]:
    """The text of every stage, all beginning as the teacher wants the first one's to."""
    sizes = [{"seq_len": stage.settings.seq_len, "seed": stage.settings.seed} for stage in stages]
    start = find_start(stages[0].text, tokenizer, teacher, stages[0].needed, sizes[0])
    return [
        read_text(stage.text, stage.settings.eval_text, tokenizer, stage.needed, size, start, stage.settings.packing)
        for stage, size in zip(stages, sizes, strict=True)
    ]


def make_eval_windows(settings: DistillConfig, texts: Sequence[Text], tokenizer: Any) -> list[Windows]:
    """The held-out windows of every stage, and last those of the whole run.

    QCompressError when one of these texts is trained on, in whichever stage.
    """
    evaluation = [text.eval_windows for text in texts]
    if settings.stages:
        size = {"seq_len": settings.seq_len, "seed": settings.seed}
        count = max(1, EVAL_TOKENS // settings.seq_len)
        evaluation.append(
            counting_windows([settings.eval_text], tokenizer, count, size, texts[0].start, settings.packing)
        )
    else:
        evaluation.append(evaluation[0])
    trained = {source["digest"] for text in texts for source in text.windows.manifest["sources"]}
    for windows in evaluation:
        for source in windows.manifest["sources"]:
            if source["digest"] in trained:
                raise QCompressError(
                    f"{source['name']}: is trained on in another stage, so it cannot be held out; give another text"
                )
    return evaluation
