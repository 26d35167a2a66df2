"""distill_checkpoint(): a teacher in, a trained smaller model out, and how far it is from its teacher before and after.

The student is written only when training is over; until then nothing exists at `out`.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from math import exp
from pathlib import Path
from typing import Any

import torch

from compress.checkpoint.card import origin
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.memory import check_memory
from compress.checkpoint.record import record_text
from compress.checkpoint.write import check_room
from compress.distill.cached import CachedTeacher, cache_text, open_cache
from compress.distill.config import DistillConfig
from compress.distill.plan import Plan, plan_distill, plan_row
from compress.distill.student import (
    Student,
    check_student,
    common_vocabulary,
    make_student,
    open_model,
    save_student,
    working_dtype,
)
from compress.distill.text import Text, text_row, train_text
from compress.distill.train import Heldout, Scores, Teacher, Trained, make_accelerator, restore, train
from compress.errors import QCompressError

Row = dict[str, Any]
Report = Callable[[Row], None]


def distill_checkpoint(teacher: Path, out: Path, settings: DistillConfig, report: Report = lambda row: None) -> Row:
    """Distill `teacher` into a student at `out`; returns the summary row. Nothing is left at `out` when it fails.

    With a cache the teacher itself is asked only about the held-out text. QCompressError for bad input, for a cache of
    another run, for a student that has another tokenizer, and for training that never got better than the student was
    before it.
    """
    started = time.perf_counter()
    plan = plan_distill(teacher, settings)
    source, tokenizer = open_causal_lm(teacher), check_student(teacher, settings)
    check_room(out, plan.student_size["float16_bytes"])
    vocab = common_vocabulary(plan, tokenizer)
    cache = open_cache(settings, teacher, tokenizer, vocab) if settings.cache else None
    report(plan_row(plan, settings))
    device = pick_device(teacher, plan)
    big = open_model(teacher, working_dtype(device), device)
    text = cache_text(cache, settings, tokenizer) if cache else train_text(settings, tokenizer, big.model)
    report(text_row(text, settings.data, settings.total_steps * settings.batch_size) | {"heldout": settings.heldout})
    student = make_student(source, plan, settings, text.windows, vocab, device, report)
    heldout = Heldout(big, text.heldout, vocab)
    before = heldout.measure(student.model)
    report({"heldout_tokens": heldout.tokens, "kl_before": before.kl, "perplexity_before": exp(before.nll)})
    answers: Teacher = CachedTeacher(cache, text.windows, big) if cache else big
    del big  # with a cache, nothing but the head is needed any more
    dtype = getattr(torch, settings.dtype)
    trained = train(
        student.model, answers, text.windows, heldout, settings, kl_before=before.kl, dtype=dtype, report=report
    )
    refuse_no_gain(trained, before.kl, settings)
    restore(student.model.model, trained.weights)
    after = heldout.measure(student.model)
    row = {"out": str(out), **scores_row(heldout.teacher_nll, before, after), **plan.student_size}
    row |= {**training_row(trained, settings), "seconds": round(time.perf_counter() - started, 1)}
    text_of_record = record(teacher, settings, text, student, trained, row)
    save_student(out, student, trained.weights, Path(settings.student or teacher), text_of_record)
    return row


def pick_device(teacher: Path, plan: Plan) -> torch.device:
    """Where training runs. QCompressError when that is the CPU and its memory will not do."""
    device = make_accelerator().device
    if device.type == "cpu":
        check_memory(teacher, plan.memory)
    return device


def refuse_no_gain(trained: Trained, kl_before: float, settings: DistillConfig) -> None:
    """QCompressError when the best weights are those before training."""
    if trained.best_step:
        return
    if trained.stopped:
        what = f"{trained.stopped}, before the student was better than untrained"
    else:
        seen = [row["heldout_kl"] for row in trained.curve if "heldout_kl" in row]
        what = f"held-out KL {min(seen):.4g} after {len(trained.curve)} steps, {kl_before:.4g} before"
    raise QCompressError(
        f"{what}; nothing was written: lower --learning-rate {settings.learning_rate:g}, or give more steps"
    )


def scores_row(teacher_nll: float, before: Scores, after: Scores) -> Row:
    """KL to the teacher on the held-out text before and after, how many times less it is, and perplexities."""
    return {
        "kl_before": before.kl,
        "kl_after": after.kl,
        "factor": before.kl / after.kl,
        "perplexity_teacher": exp(teacher_nll),
        "perplexity_before": exp(before.nll),
        "perplexity_after": exp(after.nll),
    }


def training_row(trained: Trained, settings: DistillConfig) -> Row:
    steps = len(trained.curve)
    tokens = steps * settings.batch_size * settings.seq_len
    return {"steps": steps, "best_step": trained.best_step, "tokens": tokens, "stopped": trained.stopped}


def record(teacher: Path, settings: DistillConfig, text: Text, student: Student, trained: Trained, row: Row) -> str:
    """qcompress.json: everything that made this student, and the loss curve."""
    return record_text(
        "distill",
        settings.settings(),
        source=origin(teacher),
        student=origin(Path(settings.student)) if settings.student else None,
        calibration=text.windows.manifest | {"start": asdict(text.start)},
        heldout=text.heldout.manifest,
        blocks=student.blocks,
        sweep=student.sweep,
        loss=trained.curve,
        rows=[row],
    )
