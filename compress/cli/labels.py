"""Words and units for the keys of report rows, as tables and progress lines in the terminal show them.

JSON keeps the keys and plain numbers. If a key has no entry here, spaces replace its underscores.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compress.core.units import format_bytes

COUNTER = re.compile(r"(\d+)/(\d+)")  # "3/30": progress of a job


def duration(seconds: float) -> str:
    """Seconds as "0.4 s", "12 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def percent(share: float) -> str:
    """A share of 1 in percent: 0.383 -> "38.3 %"."""
    return f"{100 * share:.1f} %"


def nats(value: float) -> str:
    return f"{value:.4g} nats"


def bits(value: float) -> str:
    return f"{value:g} bits"


def show(value: Any) -> str:
    """A value as text, without a unit: yes or no, a number with 4 digits or thousands separators, or a text.

    A counter such as "3/30" becomes "3 of 30".
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value)
    return COUNTER.sub(r"\1 of \2", text) if COUNTER.fullmatch(text) else text


LABELS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "activation_memory": ("activation memory", format_bytes),
    "align_loss": ("alignment loss", show),
    "batch": ("batch size", show),
    "best_step": ("best step", show),
    "bits_per_parameter": ("bits per parameter", show),
    "bits_per_weight": ("bits per weight", show),
    "bytes": ("size", format_bytes),
    "bytes_per_token": ("bytes per token", show),
    "ce": ("cross-entropy", show),
    "check_errors": ("errors of check", show),
    "cut_kl": ("KL of this cut, on the beginning of --text", nats),
    "eight_bit": ("linears in 8 bits", show),
    "embedding_bits": ("embedding", bits),
    "entropy": ("teacher's entropy", nats),
    "error": ("error", show),
    "error_before": ("error before", show),
    "empty": ("empty answers", show),
    "eta": ("time left", duration),
    "eval_kl": ("KL on evaluation text", nats),
    "eval_text": ("evaluation text", show),
    "eval_nll": ("cross-entropy on evaluation text", show),
    "eval_samples": ("evaluation windows", show),
    "eval_seq_len": ("tokens per evaluation window", show),
    "factor": ("KL reduced by a factor of", show),
    "float16_bytes": ("size in FP16", format_bytes),
    "gpu_memory": ("GPU memory by part", show),
    "gpu_memory_bytes": ("GPU memory needed", format_bytes),
    "head_bits": ("output head", bits),
    "int4_bytes": ("size in 4 bits", format_bytes),
    "kl": ("KL", nats),
    "kl_after": ("KL after training", nats),
    "kl_before": ("KL before training", nats),
    "kl_blocks": ("KL after blocks alone", nats),
    "linears": ("quantized linears", show),
    "loss": ("loss", show),
    "mean_error": ("mean error", show),
    "mean_rtn_error": ("mean error of plain rounding", show),
    "memory": ("memory by part", show),
    "memory_bytes": ("memory needed", format_bytes),
    "more_damping": ("linears with extra damping", show),
    "needed_bytes": ("memory needed on the board", format_bytes),
    "nll": ("loss of the reference", nats),
    "out": ("output", show),
    "perplexity_after": ("perplexity after", show),
    "perplexity_before": ("perplexity before", show),
    "perplexity_ratio": ("perplexity ratio", show),
    "perplexity_teacher": ("teacher's perplexity", show),
    "prompts_per_second": ("prompts per second", show),
    "seconds_at_least": ("time at least", duration),
    "rtn_error": ("error of plain rounding", show),
    "rtn_kl": ("KL of plain rounding", nats),
    "quantize_seconds": ("time of the quantization alone", duration),
    "peak_bytes": ("peak memory of the backend", format_bytes),
    "size": ("size on disk", format_bytes),
    "score": ("score (0 to 100)", lambda value: f"{value:.1f}"),
    "scaled": ("linears scaled by AWQ", show),
    "seconds": ("time", duration),
    "seq_len": ("tokens per window", show),
    "sym": ("symmetric", show),
    "tail_mass": ("probability outside the stored tokens", percent),
    "tokens_counted": ("tokens counted in the loss", show),
    "tokens_read": ("tokens read", show),
    "tokens_scored": ("scored tokens", show),
    "tokens_per_second": ("tokens per second", show),
    "tokens_per_s": ("tokens per second, at most", show),
    "too_long": ("prompts too long", show),
    "top1": ("top-1 agreement", percent),
    "top5": ("top-5 agreement", percent),
    "transformers": ("runs in transformers", show),
    "truncated": ("truncated answers", show),
    "usable_bytes": ("memory that the server may use", format_bytes),
    "vllm_cpu": ("runs in vLLM on a CPU", show),
    "vllm_gpu": ("runs in vLLM on a GPU", show),
    "worst_cut_kl": ("KL of the worst cut, on the same text", nats),
}


QUIET = ("check_errors", "eight_bit", "empty", "errors", "more_damping", "outliers", "scaled", "too_long", "truncated")
"""Counts that people see only if they are above 0. JSON has them always."""


def visible(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows for people: without values of None, and without each QUIET count that is 0 in every row."""
    zero = {key for key in QUIET if not any(row.get(key) for row in rows)}
    return [{key: value for key, value in row.items() if key not in zero and value is not None} for row in rows]


def label(key: str) -> str:
    """The words that stand for a key."""
    return LABELS[key][0] if key in LABELS else key.replace("_", " ")


def error_key(key: str) -> str:
    """The key under which a row stores the standard error of `key`."""
    return f"{key}_se"


def texts(row: dict[str, Any]) -> dict[str, str]:
    """The values of a row as text, by key. A standard error joins the text of its value: "17.91 ± 0.43"."""
    errors = {error_key(key) for key in row}
    return {key: value_text(key, value, row.get(error_key(key))) for key, value in row.items() if key not in errors}


def value_text(key: str, value: Any, error: float | None = None) -> str:
    """A value as text, in the unit of its key, and followed by its standard error if that is known."""
    if key in LABELS and isinstance(value, int | float) and not isinstance(value, bool):
        text = LABELS[key][1](value)
    else:
        text = show(value)
    if error is None:
        return text
    number, *unit = text.split(" ")
    digits = len(number.partition(".")[2])
    return " ".join([number, "±", f"{error:.2g}" if "e" in number else f"{error:.{digits}f}", *unit])
