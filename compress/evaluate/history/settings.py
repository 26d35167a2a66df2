"""Settings of `watch`."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from compress.checkpoint.hub import resolve_model
from compress.core.options import device_setting, option


@dataclass(frozen=True)
class WatchSettings:
    """The baseline, and the files that are needed to repeat the baseline's measurements."""

    baseline: str = option(MISSING, "Tag of the stored verdicts to compare with.", metavar="TAG")
    name: str | None = option(
        None,
        "Name of the checkpoint in the baseline.",
        default_text="the one with CKPT's name, else the only candidate under the tag",
    )
    reference: Path | None = option(
        None, "16-bit reference. Set it to compare KL and perplexity too.", parse=resolve_model, metavar="MODEL"
    )
    eval_text: str | None = option(
        None,
        "Evaluation text: a file, or the name of an embedded text. Needed only if the baseline's file has moved.",
        group="Text",
    )
    suite: Path | None = option(
        None, "Task file (.jsonl). Needed only if the baseline's task file has moved.", group="Tasks"
    )
    batch_size: int = option(8, "Items per batch.", group="Resources", minimum=1)
    device: str = device_setting()
    max_drop: float | None = option(
        None,
        "Largest allowed drop of the score of a kind of task, in points (0 to 100). A larger drop always fails.",
        group="Limits",
        minimum=0,
    )
    out: Path = option(
        Path("build/watch"),
        "Folder for the answers of an unfinished run, which the next run resumes.",
        group="Run control",
        short="-o",
    )
