"""init_student(): cut a student out of a teacher, write it, and measure its distance to the teacher."""

import time
from collections.abc import Callable
from dataclasses import asdict
from math import exp
from pathlib import Path
from typing import Any

import torch

from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.memory_check import check_memory
from compress.checkpoint.model_card import origin
from compress.checkpoint.read import PathOrCheckpoint, read_json
from compress.checkpoint.record import record_text
from compress.checkpoint.write import check_room
from compress.core.errors import QCompressError
from compress.distill.config import SHAPE, DistillConfig
from compress.distill.student.build import common_vocabulary, make_student, open_model, save_student, working_dtype
from compress.distill.student.plan import plan_distill, plan_row
from compress.distill.text.packing import check_packing
from compress.distill.text.windows import train_text
from compress.distill.training.loop import Evaluator, snapshot
from compress.model.student import shape_of
from compress.model.width import Shape

Row = dict[str, Any]
Report = Callable[[Row], None]
RECORDED = ("blocks", *SHAPE, "importance", "text", "eval_text", "seq_len", "seed", "dtype")
EVEN = 128
PLANNED = ("student", "teacher_parameters", "parameters", "float16_bytes", "int4_bytes")


def take_sizes(config: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The options with the sizes of a config.json. QCompressError when a size option is given too."""
    sizes = [name for name in ("blocks", *SHAPE) if options.get(name) is not None]
    if sizes:
        raise QCompressError(f"{config}: sets all sizes; leave out --config or --{sizes[0].replace('_', '-')}")
    shape = shape_of(read_json(config))
    return options | {name: getattr(shape, name) for name in SHAPE}


def uneven(shape: Shape, teacher: Shape) -> str | None:
    """A note about reduced widths that are no multiple of 128; None if there are none."""
    widths = {name: getattr(shape, name) for name in ("hidden_size", "intermediate_size")}
    odd = [f"{name}={size}" for name, size in widths.items() if size % EVEN and size != getattr(teacher, name)]
    if not odd:
        return None
    return f"{', '.join(odd)}: no multiple of {EVEN}, so groups of {EVEN} do not fit and matrix products are slower"


def init_student(
    teacher: PathOrCheckpoint, out: Path, settings: DistillConfig, report: Report = lambda row: None
) -> Row:
    """Write the untrained student to `out`; returns sizes, and KL and perplexity on the evaluation text.

    It reads shape, texts, seq_len, seed and dtype of the settings. Nothing is left at `out` when it fails.
    """
    started = time.perf_counter()
    teacher = open_causal_lm(teacher)
    plan, tokenizer = plan_distill(teacher.path, settings), teacher.tokenizer
    check_room(out, plan.student_size["float16_bytes"])
    check_memory(str(teacher), 4 * (plan.teacher_size["parameters"] + plan.student_size["parameters"]))
    sizes = {key: value for key, value in plan_row(plan, settings).items() if key in PLANNED}
    note = uneven(plan.shape, shape_of(plan.teacher))
    report(sizes | {"note": note})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_model(teacher, working_dtype(device), device)
    check_packing(model, str(teacher), settings.packing, settings.seq_len)
    text, vocab = train_text(settings, tokenizer, model.model), common_vocabulary(plan, tokenizer)
    student = make_student(teacher, plan, settings, text.windows, vocab, device, report)
    evaluator = Evaluator(model, text.eval_windows, vocab)
    scores = evaluator.measure(student.model)
    row = {
        "out": str(out),
        **sizes,
        "note": note,
        "kl_before": scores.kl,
        "perplexity_teacher": exp(evaluator.teacher_nll),
    }
    row |= {"perplexity_before": exp(scores.nll), "seconds": round(time.perf_counter() - started, 1)}
    record = record_text(
        "init-student",
        {name: getattr(settings, name) for name in RECORDED},
        source=origin(teacher),
        calibration=text.windows.manifest | {"start": asdict(text.start)},
        eval_text=text.eval_windows.manifest,
        blocks=student.blocks,
        sweep=student.sweep,
        width=student.width,
        rows=[row],
    )
    save_student(out, student, snapshot(student.model.model, getattr(torch, settings.dtype)), teacher.path, record)
    return row
