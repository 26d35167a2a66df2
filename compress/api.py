"""The public Python functions: quantize, distill, convert, check, verify, compare, ship.

    from compress import check, compare, convert, distill, quantize, ship, verify

A model is a folder, or a hub id such as "Qwen/Qwen2.5-1.5B-Instruct" or "ORG/NAME@REVISION". Settings have the names of
the command line's options, with underscores. All functions return the rows that the commands print with --json.

    from compress import GateFailure, QCompressError

All errors that a user can cause are a QCompressError: bad models, texts, settings and files, a full disk. Its message
is one line with the fault, its place and the cure. Its subclass GateFailure means that a written checkpoint breaks a
rule. Errors of settings are also a ValueError or a TypeError.
"""

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from compress.checkpoint.hub import resolve_model
from compress.core.atomic import cause_of
from compress.core.device import pick_device
from compress.core.errors import BadValueError, QCompressError, UnknownSettingError
from compress.core.errors import GateFailure as GateFailure
from compress.core.file_kind import REPORT
from compress.core.options import check_value, settings_of
from compress.core.report import Report, Row, silent
from compress.core.rows import CompareRow, ShipRow

Model = str | os.PathLike[str]
F = TypeVar("F", bound=Callable[..., Any])


def public(function: F) -> F:
    """A decorator: an OSError whose cause is outside of the program, such as a full disk, becomes a QCompressError."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            line = cause_of(error)
            if line is None:
                raise
            raise QCompressError(line) from error

    return cast("F", call)


@public
def quantize(
    model: Model,
    out: Model,
    *,
    method: str | None = None,
    text: Sequence[str] = ("default",),
    backend: str = "qcompress",
    device: str = "auto",
    restart: bool = False,
    report: Report = silent,
    **settings: Any,
) -> Row:
    """Quantize a 16-bit checkpoint to 4 bits and write a checkpoint that vLLM loads.

    Args:
        model: The checkpoint to quantize.
        out: Folder to write. It must be empty or missing.
        method: "rtn", "gptq", "awq", "awq+gptq", or "auto". auto runs all methods and keeps the best result. With None,
            "awq+gptq", or the backend's first method.
        text: Calibration text: names or files, each with an optional "=WEIGHT".
        backend: Program that quantizes: "qcompress", or another one that `qcompress backends install` has installed.
        device: "cpu", "cuda", or "auto" for a GPU if torch finds one.
        restart: Discard the work of an interrupted run. Otherwise the same call continues it, to the same bytes.
        report: Receives one row per step of progress.
        settings: Any other option of `qcompress quantize`, such as group_size=64 or seq_len=1024.

    Returns:
        A row with `out`, `bytes`, `bits_per_weight`, `mean_error`, `mean_rtn_error` and `seconds`.

    Raises:
        QCompressError: The model or a text cannot be used, a setting is wrong, or another job's output is at `out`.
        GateFailure: The written checkpoint breaks a rule. It is removed.

    Example:
        >>> quantize("qwen", "qwen-awq", method="awq", group_size=64)["bytes"]  # doctest: +SKIP
        1171234567
    """
    from compress.core.backend_config import BackendChoice, make_config
    from compress.core.config import QuantizeConfig
    from compress.pipeline.quantize import quantize_by
    from compress.quantize.job import RunOptions

    settings |= {"text": text, "backend": backend} | ({} if method is None else {"method": method})
    settings = check_settings("quantize", settings, BackendChoice, QuantizeConfig)
    texts = (text,) if isinstance(text, str) else tuple(text)
    config = make_config(settings, settings.keys() - ({"text"} if texts == QuantizeConfig.text else set()))
    run = RunOptions(restart=restart, device=pick_device(device), report=report)
    return quantize_by(resolve_model(model), Path(out), config, run)


@public
def distill(
    teacher: Model,
    out: Model,
    *,
    device: str = "auto",
    restart: bool = False,
    report: Report = silent,
    **settings: Any,
) -> Row:
    """Train a smaller student to match a teacher, and write it as a 16-bit checkpoint.

    Args:
        teacher: The checkpoint to learn from.
        out: Folder to write. It must be empty or missing.
        device: "cpu", "cuda", or "auto" for a GPU if torch finds one.
        restart: Discard the work of an interrupted run. Otherwise the same call continues it, to the same bytes.
        report: Receives one row per step of progress.
        settings: Any option of `qcompress distill`, such as blocks=20, student="small", steps=500.

    Returns:
        A row with `out`, `parameters`, `kl_before`, `kl_after` (nats per token on the evaluation text), `steps` and
        `seconds`. If several processes train, only the first one gets this row; the others get {}.

    Raises:
        QCompressError: The teacher or a text cannot be used, a setting is wrong, or training did not improve the
            student.

    Example:
        >>> distill("qwen", "student", blocks=20, steps=500)["kl_after"]  # doctest: +SKIP
        0.21
    """
    from compress.distill.config import DistillConfig, LoopConfig
    from compress.distill.job import distill_checkpoint

    settings = check_settings("distill", settings, DistillConfig)
    if settings.get("student") is not None:
        settings["student"] = str(resolve_model(settings["student"]))
    config = DistillConfig(**settings)
    loop = LoopConfig(device=device, restart=restart)
    return distill_checkpoint(resolve_model(teacher), Path(out), config, report, loop=loop)


@public
def convert(
    checkpoint: Model,
    out: Model,
    to: str,
    *,
    allow_error: bool = False,
    embedding_type: str | None = None,
    max_size: int | None = None,
) -> Row:
    """Write a quantized checkpoint in another format: the same codes, scales and zeros.

    Args:
        checkpoint: A quantized checkpoint, also one of another tool.
        out: Folder to write, or for "gguf" a file NAME.gguf. It must be empty or missing, and outside `checkpoint`.
        to: "awq", "gptq", "compressed-tensors", or "gguf" for llama.cpp.
        allow_error: Round weights that the format cannot store exactly. Without it, they are an error.
        embedding_type: For "gguf": "f16", "q8_0" or "q6_k", the type of embedding and head. By default, they stay as
            they are. "q8_0" and "q6_k" are not exact.
        max_size: For "gguf": the largest size of the file in bytes. Embedding and head become as small as it requires.

    Returns:
        A row with `out`, `format`, `bytes` and `errors`; for a folder also `linears`, for a .gguf file `types`.
        `errors` has a row for each type that is not exact: its largest error, and the relative error (RMS).

    Raises:
        QCompressError: The checkpoint is not quantized, or the format cannot store a weight exactly.
        GateFailure: The result breaks a rule of `check`, or does not read back as the same model. It is removed.

    Example:
        >>> convert("qwen-awq", "qwen-ct", "compressed-tensors")["linears"]  # doctest: +SKIP
        196
    """
    from compress.ship.convert import convert as run_convert

    return run_convert(
        resolve_model(checkpoint),
        Path(out),
        to,
        allow_error=allow_error,
        embedding_type=embedding_type,
        max_size=max_size,
    )


@public
def check(
    model: Model, *, source: Model | None = None, tensor_parallel_size: int = 1, runs_in: str = "vllm"
) -> list[Row]:
    """Check that vLLM loads a checkpoint and computes with the weights that were written.

    Args:
        model: The checkpoint: plain, awq, gptq or compressed-tensors.
        source: The 16-bit checkpoint from which `model` was quantized. With it, the weights are compared too.
        tensor_parallel_size: Number of GPUs that share the model in vLLM.
        runs_in: The runtime whose rules apply: "vllm", "llama.cpp", "mlx", "ort-genai" or "tensorrt-edge-llm".

    Returns:
        One row per broken rule: `rule`, `level` ("error" or "warning"), `value`, `expected`, `consequence`, and the
        place: `file`, `key` or `tensor`. An empty list means that the checkpoint breaks no rule.

    Raises:
        QCompressError: There is no checkpoint at `model`.

    Example:
        >>> [row["rule"] for row in check("qwen-awq", source="qwen")]  # doctest: +SKIP
        []
    """
    from compress.checkpoint.check.run import check_checkpoint

    if tensor_parallel_size < 1:
        raise BadValueError(f"tensor_parallel_size={tensor_parallel_size}: must be 1 or more")
    where = None if source is None else resolve_model(source)
    return check_checkpoint(
        resolve_model(model), tensor_parallel_size=tensor_parallel_size, source=where, runs_in=runs_in
    )


@public
def verify(
    reference: Model,
    candidate: Model,
    *,
    eval_text: str = "heldout",
    samples: int = 24,
    seq_len: int = 512,
    max_kl: float | None = None,
    max_perplexity_ratio: float | None = None,
    device: str = "auto",
    report: Report = silent,
) -> CompareRow:
    """Measure how far a candidate has drifted from its reference, on text outside their calibration and training.

    Args:
        reference: The checkpoint to measure against, usually the 16-bit one.
        candidate: The checkpoint to measure.
        eval_text: Evaluation text: a name or a file.
        samples: Number of windows.
        seq_len: Tokens per window.
        max_kl: Limit on the mean KL(reference ‖ candidate) in nats per token.
        max_perplexity_ratio: Limit on the candidate's perplexity divided by the reference's.
        device: "cpu", "cuda", or "auto" for a GPU if torch finds one.
        report: Receives one row per step of progress.

    Returns:
        The candidate's row: `kl`, `perplexity`, `perplexity_ratio`, `top1`, `bytes` and more. Each measurement has its
        standard error, such as `kl_se`. With a limit, the row also has `passed` and `reason`.

    Raises:
        QCompressError: A checkpoint, the text or a setting cannot be used, or a checkpoint was calibrated on the text.

    Example:
        >>> verify("qwen", "qwen-awq", max_kl=0.1)["passed"]  # doctest: +SKIP
        True
    """
    from compress.evaluate.drift.limits import add_verdicts, make_verdicts
    from compress.evaluate.drift.settings import CompareLimits

    limits = {"max_kl": max_kl, "max_perplexity_ratio": max_perplexity_ratio}
    limits = check_settings("verify", limits, CompareLimits)
    row = compare(
        reference, [candidate], eval_text=eval_text, samples=samples, seq_len=seq_len, device=device, report=report
    )[1]
    verdicts = make_verdicts([row], [], limits)
    return add_verdicts([row], verdicts)[0]


@public
def compare(
    reference: Model,
    candidates: Sequence[Model],
    *,
    teacher: Model | None = None,
    eval_text: str = "heldout",
    samples: int = 24,
    seq_len: int = 512,
    html: Model | None = None,
    device: str = "auto",
    report: Report = silent,
) -> list[CompareRow]:
    """Compare checkpoints with one reference: size, perplexity, KL and agreement on the same windows.

    Args:
        reference: The checkpoint to measure against.
        candidates: The checkpoints to measure.
        teacher: Model from which the reference was distilled. With None, only the reference is compared.
        eval_text: Evaluation text: a name or a file.
        samples: Number of windows.
        seq_len: Tokens per window.
        html: File for the HTML report. Without it, no report is written.
        device: "cpu", "cuda", or "auto" for a GPU if torch finds one.
        report: Receives one row per step of progress.

    Returns:
        One row per checkpoint, as `verify` returns it, in this order: teacher (if not None), reference, candidates.

    Raises:
        QCompressError: A checkpoint, the text or a setting cannot be used, or a checkpoint was calibrated on the text.

    Example:
        >>> [(row["name"], row["kl"]) for row in compare("qwen", ["qwen-awq", "qwen-gptq"])[1:]]  # doctest: +SKIP
        [('qwen-awq', 0.041), ('qwen-gptq', 0.058)]
    """
    from compress.evaluate.drift.compare import compare_with_teacher
    from compress.evaluate.drift.settings import DriftSettings
    from compress.evaluate.drift.windows import evaluation_windows
    from compress.evaluate.report import ReportData, write_report

    check_settings("compare", {"eval_text": eval_text, "samples": samples, "seq_len": seq_len}, DriftSettings)
    page = check_page(html)
    first, others = resolve_model(reference), [resolve_model(each) for each in candidates]
    top = [] if teacher is None else [resolve_model(teacher)]
    models, on = [*top, first, *others], pick_device(device)
    windows = evaluation_windows(models[0], models[1:], eval_text, n_samples=samples, seq_len=seq_len, device=on)
    rows = compare_with_teacher(top[0] if top else None, first, others, windows, device=on, report=report)
    if page is not None:
        write_report(page, ReportData(rows[len(top) :], teacher=rows[0] if top else None))
    return rows


@public
def ship(checkpoint: Model, out: Model, hardware: str, *, report: Report = silent, **settings: Any) -> ShipRow:
    """Write a bundle: a checkpoint with all that a board needs to serve it, offline, and to prove what it runs.

    Args:
        checkpoint: The checkpoint to ship, quantized or not.
        out: Folder to write. It must be empty or missing.
        hardware: Name of the board, such as "orin-nano".
        report: Receives one row per step of progress.
        settings: Any other option of `qcompress ship`, such as context=4096 or runtime="llama.cpp".

    Returns:
        A row with `out`, `image`, `needed_bytes`, `usable_bytes`, `tokens_per_s` and `bytes`.

    Raises:
        QCompressError: The checkpoint or a setting cannot be used, or something is at `out`.
        GateFailure: The checkpoint breaks a rule of `check`, or does not run on the board. Nothing is written.

    Example:
        >>> ship("qwen-awq", "bundle", "orin-nano", context=4096)["needed_bytes"]  # doctest: +SKIP
        2048123456
    """
    from compress.ship.bundle.settings import ShipConfig
    from compress.ship.bundle.write import ship as run_ship

    config = ShipConfig(**check_settings("ship", settings | {"hardware": hardware}, ShipConfig))
    return run_ship(resolve_model(checkpoint), Path(out), config, report)


def check_page(html: Model | None) -> Path | None:
    """The path of the report. Raises QCompressError if another program's file is there."""
    if html is None:
        return None
    REPORT.check(Path(html))
    return Path(html)


def check_settings(function: str, values: dict[str, Any], *configs: type) -> dict[str, Any]:
    """The values of settings of the configs, with texts parsed as on the command line.

    Raises UnknownSettingError, with the nearest valid name, and BadValueError for a value that cannot be used.
    """
    names = [one.name for config in configs for one in fields(config)]
    settings = {one.name: one for config in configs for one in settings_of(config)}
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"settings are {', '.join(names)}"
            raise UnknownSettingError(f"{function}: {name!r} is not a setting; {hint}")
    return {name: check_value(settings[name], value) if name in settings else value for name, value in values.items()}
