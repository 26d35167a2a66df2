"""Settings of `verify` and `compare`: evaluation text, limits, report."""

from dataclasses import dataclass
from pathlib import Path

from compress.core.config import EVAL_SAMPLES, EVAL_SEQ_LEN, parse_size
from compress.core.options import device_setting, option

ANSWERS = 5  # prompts that the report shows by default if --eval is a folder


@dataclass(frozen=True)
class DriftSettings:
    """The evaluation windows, the reference cache, and whether to locate drift by block."""

    eval_text: str = option(
        "heldout", "Evaluation text: a file, or the name of an embedded text. Text used for calibration is refused."
    )
    samples: int = option(EVAL_SAMPLES, "Number of windows.", minimum=1)
    seq_len: int = option(EVAL_SEQ_LEN, "Tokens per window.", minimum=8)
    reference_cache: Path | None = option(
        None,
        "Folder that stores the reference's hidden states; later runs read them instead of running the reference.",
        group="Resources",
    )
    device: str = device_setting()
    locate: bool = option(
        False, "Also run each block alone on the reference's inputs, and report outlier blocks.", group="Measurement"
    )


@dataclass(frozen=True)
class DriftLimits:
    """The limits that `verify` checks. A limit of None is not checked."""

    max_kl: float | None = option(
        None, "Limit on the mean KL(reference ‖ candidate), in nats per token.", group="Limits", minimum=0
    )
    max_perplexity_ratio: float | None = option(
        None, "Limit on the ratio of the candidate's perplexity to the reference's.", group="Limits", minimum=0
    )


@dataclass(frozen=True)
class CompareLimits:
    """The limits that `compare` checks. A limit of None is not checked."""

    max_size: int | None = option(
        None,
        "Limit on the size of a candidate's weight files, such as 2GB, 1.5GiB or 800MB.",
        group="Limits",
        parse=parse_size,
        metavar="SIZE",
    )
    max_kl: float | None = option(
        None, "Limit on the mean KL(reference ‖ candidate), in nats per token.", group="Limits", minimum=0
    )
    max_perplexity_ratio: float | None = option(
        None, "Limit on the ratio of the candidate's perplexity to the reference's.", group="Limits", minimum=0
    )
    min_retention: float | None = option(
        None, "Lowest allowed retention on each kind of task, in %. Needs --eval.", group="Limits", minimum=0
    )


@dataclass(frozen=True)
class ReportSettings:
    """The HTML report, and the results of other commands that it shows."""

    html: Path | None = option(None, "HTML report to write: one file, readable offline.", group="Report")
    eval: Path | None = option(
        None, "Results of `qcompress eval` to show: its --out folder, or a file with its --json output.", group="Report"
    )
    bench: Path | None = option(
        None, "Results of `qcompress bench` to show: a file with its --json output.", group="Report"
    )
    answers: int | None = option(
        None,
        "Number of prompts to show with the answers of every checkpoint. Without --eval, answers are generated now.",
        group="Report",
        minimum=0,
        default_text=f"{ANSWERS} if --eval is a folder, else 0",
    )

    def answer_count(self) -> int:
        """The number of prompts to show."""
        if self.answers is not None:
            return self.answers
        return ANSWERS if self.eval and self.eval.is_dir() else 0
