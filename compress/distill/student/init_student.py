"""init_student(): cut a student out of a teacher, write it, and measure its distance to the teacher."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from calibration.windows import Windows
from compress.checkpoint.heldout import START
from compress.checkpoint.load import open_for_text
from compress.checkpoint.memory_check import check_memory
from compress.checkpoint.model_card import origin
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint, read_json
from compress.checkpoint.record import record_text
from compress.checkpoint.write import check_room
from compress.core.device import pick_device
from compress.core.errors import QCompressError
from compress.core.report import Report, Row, silent
from compress.distill.config import SHAPE, DistillConfig, LoopConfig
from compress.distill.model import open_model, working_dtype
from compress.distill.student.build import StudentModel, common_vocabulary, cut_student, save_student
from compress.distill.student.plan import plan_distill, plan_row
from compress.distill.text.packing import check_packing
from compress.distill.text.windows import Text, train_text
from compress.distill.training.loop import restore, snapshot
from compress.distill.training.yardstick import Yardstick, with_errors, yardstick_windows
from compress.model.shapes import Shape
from compress.model.student import shape_of

LOOP = LoopConfig()
RECORDED = ("blocks", *SHAPE, "importance", "text", "eval_text", "seq_len", "seed", "dtype")
EVEN = 128
PLANNED = ("student", "teacher_parameters", "parameters", "float16_bytes", "int4_bytes")


def take_sizes(config: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The settings with the sizes of a config.json added. Raises QCompressError if an option also sets a size."""
    sizes = [name for name in ("blocks", *SHAPE) if options.get(name) is not None]
    if sizes:
        raise QCompressError(
            f"{config}: --config already sets all sizes; leave out --config or --{sizes[0].replace('_', '-')}"
        )
    shape = shape_of(read_json(config))
    return options | {name: getattr(shape, name) for name in SHAPE}


def width_note(shape: Shape, teacher: Shape) -> str | None:
    """A note that lists the reduced widths that are no multiples of 128, or None if there are none."""
    widths = {name: getattr(shape, name) for name in ("hidden_size", "intermediate_size")}
    odd = [f"{name}={size}" for name, size in widths.items() if size % EVEN and size != getattr(teacher, name)]
    if not odd:
        return None
    return f"{', '.join(odd)}: not divisible by {EVEN}, so groups of {EVEN} do not fit and matrix products are slower"


def init_student(
    teacher: PathOrCheckpoint, out: Path, settings: DistillConfig, report: Report = silent, *, loop: LoopConfig = LOOP
) -> Row:
    """Write the untrained student to `out`; returns a row with sizes, and with KL and perplexity on held-out windows.

    Of the settings, only shape, texts, seq_len, seed and dtype are used; of `loop`, only device and windows. If this
    fails, nothing is left at `out`.
    """
    started = time.perf_counter()
    teacher = open_for_text(teacher)
    plan, tokenizer = plan_distill(teacher, settings), teacher.tokenizer
    check_room(out, plan.student_size["float16_bytes"])
    check_memory(str(teacher), 4 * (plan.teacher_size["parameters"] + plan.student_size["parameters"]))
    sizes = {key: value for key, value in plan_row(plan, settings).items() if key in PLANNED}
    note = width_note(plan.shape, shape_of(plan.teacher))
    report(sizes | {"note": note})
    torch_device = torch.device(pick_device(loop.device))
    model = open_model(teacher, working_dtype(teacher, torch_device), torch_device)
    check_packing(model, str(teacher), settings.packing, settings.seq_len)
    text, vocab = train_text(settings, tokenizer, model.model), common_vocabulary(plan, tokenizer)
    heldout = yardstick_windows(teacher, settings.eval_text, loop.eval_samples, loop.eval_seq_len, torch_device)
    student = cut_student(teacher, plan, settings, text.windows, vocab, torch_device, report)
    del model
    weights = snapshot(student.model.model, getattr(torch, settings.dtype))
    restore(student.model.model, weights)  # the student is measured with its stored, rounded weights
    row = {
        "out": str(out),
        **sizes,
        "note": note,
        **score_student(student, Yardstick(teacher, heldout, vocab, torch_device)),
    }
    row |= {"seconds": round(time.perf_counter() - started, 1)}
    save_student(out, student, weights, teacher.path, record(teacher, settings, text, heldout, student, row))
    return row


def score_student(student: StudentModel, yardstick: Yardstick) -> Row:
    """The student's KL to the teacher, and the perplexities of both, on held-out windows."""
    distance, teacher = yardstick.measure(student.model), yardstick.teacher_perplexity
    figures = with_errors(kl_before=distance.kl, perplexity_teacher=teacher, perplexity_before=distance.perplexity)
    return figures | yardstick.row()


def record(
    teacher: Checkpoint, settings: DistillConfig, text: Text, heldout: Windows, student: StudentModel, row: Row
) -> str:
    """The text of the student's qcompress.json: settings, inputs, and how the student was cut."""
    return record_text(
        "init-student",
        {name: getattr(settings, name) for name in RECORDED},
        source=origin(teacher),
        calibration=text.windows.manifest | {"start": asdict(text.start)},
        eval_text=heldout.manifest,
        start=heldout.manifest[START],
        blocks=student.blocks,
        sweep=student.sweep,
        width=student.width,
        rows=[row],
    )
