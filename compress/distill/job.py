"""distill_checkpoint(): train a smaller student to match a teacher, and measure the distance before and after.

The student is written when training has finished; until then nothing exists at `out`.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import exp
from pathlib import Path
from typing import Any

import torch

from calibration.corpus import source_digest
from calibration.windows import Windows
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.memory_check import check_memory
from compress.checkpoint.model_card import origin
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint, files_digest, open_checkpoint
from compress.checkpoint.record import record_text
from compress.core.distributed import place
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig, LoopConfig
from compress.distill.student.build import (
    StudentModel,
    check_student,
    common_vocabulary,
    make_student,
    open_model,
    save_student,
    working_dtype,
)
from compress.distill.student.memory_estimate import cures, format_parts
from compress.distill.student.plan import StudentPlan, plan_distill, plan_row
from compress.distill.targets.cache import MANIFEST, windows_digest
from compress.distill.targets.cached_teacher import CachedTeacher, cache_text, open_cache
from compress.distill.text.packing import check_own_answers, check_packing
from compress.distill.text.stages import make_eval_windows, make_stages, stage_texts
from compress.distill.text.windows import Text, text_row
from compress.distill.training.journal import TrainingJournal, shared_journal
from compress.distill.training.logs import logged
from compress.distill.training.loop import Evaluator, Model, Scores, Teacher, make_accelerator
from compress.distill.training.stage_runner import Finished, Run, keep_alignment, make_alignment, run_stages

Row = dict[str, Any]
Report = Callable[[Row], None]
LOOP = LoopConfig()
STATE_BYTES = 28  # bytes per parameter of two saved states: weights, Adam's moments, the best weights


def silent(row: Row) -> None:
    """Discard a report row."""


def distill_checkpoint(
    teacher: PathOrCheckpoint, out: Path, settings: DistillConfig, report: Report = silent, *, loop: LoopConfig = LOOP
) -> Row:
    """Distill `teacher` into a student at `out`; returns the summary row. Nothing is left at `out` when it fails.

    An interrupted run continues from its last saved state to the same curve and weights. With a cache the teacher runs
    on the evaluation text only. The first of several processes writes and reports; the others return {}.
    QCompressError for bad input, a cache of other settings, a student with another tokenizer, and training without
    any improvement.
    """
    teacher = open_causal_lm(teacher)
    plan = plan_distill(teacher.path, settings)
    device = pick_device(teacher, plan, settings)
    check_student(teacher, settings)
    room = plan.student_size["float16_bytes"] + STATE_BYTES * plan.student_size["parameters"]
    with shared_journal(out, job_settings(teacher, settings), room, restart=loop.restart) as journal:
        if not journal.published and journal.writes:
            with logged(report, out, loop.log_dir) as log:
                distill(DistillJob(teacher, out, settings, plan, device, journal, log), loop.save_every)
        elif not journal.published:
            distill(DistillJob(teacher, out, settings, plan, device, journal, silent), loop.save_every)
        row = journal.notes["row"] if journal.writes else {}
        if journal.writes:
            journal.discard()
    return row


@dataclass(frozen=True)
class DistillJob:
    """The inputs of a distillation. `report` discards rows in all processes but the first."""

    teacher: Checkpoint
    out: Path
    settings: DistillConfig
    plan: StudentPlan
    device: torch.device
    journal: TrainingJournal
    report: Report


def job_settings(teacher: Checkpoint, settings: DistillConfig) -> Row:
    """Everything that determines the student's bytes: settings, digests of inputs, versions."""
    sources = {"teacher": teacher, "student": settings.student}
    inputs: Row = {name: open_checkpoint(source).digest for name, source in sources.items() if source}
    inputs |= {"texts": {text: source_digest(text) for text in settings.texts}, "processes": place()[1]}
    if settings.cache:
        inputs["cache"] = files_digest([Path(settings.cache) / MANIFEST])
    return {**settings.settings(), **inputs, **{name: version(name) for name in ("qcompress", "torch", "transformers")}}


def distill(job: DistillJob, save_every: int) -> None:
    """Train and write the student, and store the summary row in the journal."""
    started, settings, report = time.perf_counter(), job.settings, job.report
    tokenizer = job.teacher.tokenizer
    vocab = common_vocabulary(job.plan, tokenizer)
    cache = open_cache(settings, job.teacher, vocab) if settings.cache else None
    report(plan_row(job.plan, settings))
    teacher = open_model(job.teacher, working_dtype(job.device), job.device)
    stages = make_stages(settings)
    check_packing(teacher, str(job.teacher), settings.packing, max(stage.settings.seq_len for stage in stages))
    texts = [cache_text(cache, settings, tokenizer)] if cache else stage_texts(stages, tokenizer, teacher.model)
    for stage, text in zip(stages, texts, strict=True):
        report(stage.named() | text_row(text, stage.text, stage.needed) | {"eval_text": stage.settings.eval_text})
    student = make_student(job.teacher, job.plan, settings, texts[0].windows, vocab, job.device, report)
    for stage in stages:
        if stage.on_policy:
            check_own_answers(student.model.model, settings.packing, stage.settings.seq_len)
    eval_windows = make_eval_windows(settings, texts, tokenizer)
    *evaluators, evaluator = open_evaluators(teacher, eval_windows, vocab)
    before = evaluator.measure(student.model)
    report({"eval_tokens": evaluator.tokens, "kl_before": before.kl, "perplexity_before": exp(before.nll)})
    alignment = make_alignment(student.model, teacher, stages, settings.seed)
    targets: Teacher = CachedTeacher(cache, texts[0].windows, teacher) if cache else teacher
    del teacher  # with a cache, training needs its head only
    run = Run(student.model, targets, vocab, tokenizer.eos_token_id, alignment, report, job.journal, save_every)
    finished = run_stages(run, stages, texts, evaluators)
    check_gain(finished, job.journal)
    if not job.journal.writes:
        return
    after = evaluator.measure(student.model)
    row = {"out": str(job.out), **scores_row(evaluator.teacher_nll, before, after), **job.plan.student_size}
    row |= training_row(finished)
    text_of_record = record(job.teacher, settings, texts, eval_windows[-1], student, finished, row)
    job.journal.note("row", lambda: row | {"seconds": round(time.perf_counter() - started, 1)})
    keep_alignment(run, job.out)
    weights = finished[-1].trained.weights
    save_student(job.out, student, weights, Path(settings.student or job.teacher.path), text_of_record)


def pick_device(teacher: Checkpoint, plan: StudentPlan, settings: DistillConfig) -> torch.device:
    """The device of the training. QCompressError when it is a CPU without memory for all processes of this machine."""
    device = make_accelerator().device
    if device.type == "cpu":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        check_memory(
            str(teacher), processes * plan.memory, f"{cures(settings)} ({format_parts(plan.memory_parts)} per process)"
        )
    return device


def open_evaluators(teacher: Model, eval_windows: Sequence[Windows], vocab: int) -> list[Evaluator]:
    """An evaluator for each of these windows; the teacher runs once on equal windows."""
    distinct = {windows_digest(windows): windows for windows in eval_windows}
    evaluators = {digest: Evaluator(teacher, windows, vocab) for digest, windows in distinct.items()}
    return [evaluators[windows_digest(windows)] for windows in eval_windows]


def check_gain(finished: Sequence[Finished], journal: TrainingJournal) -> None:
    """QCompressError when training improved nothing. Saved work stays only if the run ended early."""
    if any(one.trained.best_step for one in finished):
        return
    stage, trained = finished[-1].stage, finished[-1].trained
    if trained.stopped:
        reason = f"{trained.stopped}, before the student was better than untrained"
    else:
        values = [row["eval_kl"] for row in trained.curve if "eval_kl" in row]
        kl = f"evaluation KL {finished[-1].kl_before:.4g} before, best {min(values):.4g}"
        reason = f"none of {len(trained.curve)} steps improved the student, {kl}"
        journal.forget()
    again = ", with --restart" if journal.file else ""
    where, rate = f"stage {stage.name}: " if stage.name else "", stage.settings.learning_rate
    cure = f"lower --learning-rate {rate:g} or raise --steps{again}"
    raise QCompressError(f"{where}{reason}; nothing was written: {cure}")


def scores_row(teacher_nll: float, before: Scores, after: Scores) -> Row:
    """KL to the teacher on the evaluation text before and after, the ratio of both, and perplexities."""
    return {
        "kl_before": before.kl,
        "kl_after": after.kl,
        "factor": before.kl / after.kl,
        "perplexity_teacher": exp(teacher_nll),
        "perplexity_before": exp(before.nll),
        "perplexity_after": exp(after.nll),
    }


def training_row(finished: Sequence[Finished]) -> Row:
    """Steps and tokens of the whole run, the step of its weights, why it stopped, and the row of every named stage."""
    rows = [one.row() for one in finished]
    best = max(row["best_step"] for row in rows)
    summed = {key: sum(row[key] for row in rows) for key in ("steps", "tokens")}
    stages = {"stages": rows} if finished[0].stage.name else {}
    return {
        "steps": summed["steps"],
        "best_step": best,
        "tokens": summed["tokens"],
        "stopped": rows[-1]["stopped"],
        **stages,
    }


def record(
    teacher: Checkpoint,
    settings: DistillConfig,
    texts: Sequence[Text],
    eval_windows: Windows,
    student: StudentModel,
    finished: Sequence[Finished],
    row: Row,
) -> str:
    """The text of qcompress.json: settings, inputs, loss curve, and the evaluation text of the whole run."""
    return record_text(
        "distill",
        settings.settings(),
        source=origin(teacher),
        student=origin(open_checkpoint(settings.student)) if settings.student else None,
        calibration=joined_manifest(texts) | {"start": asdict(texts[0].start)},
        eval_text=eval_windows.manifest,
        stages=[stage_record(one, text) for one, text in zip(finished, texts, strict=False) if one.stage.name],
        blocks=student.blocks,
        sweep=student.sweep,
        width=student.width,
        loss=[point for one in finished for point in one.trained.curve],
        rows=[row],
    )


def joined_manifest(texts: Sequence[Text]) -> Row:
    """The manifest of the first text, with the sources and tokens of all texts."""
    manifests = [text.windows.manifest for text in texts]
    if len(manifests) == 1:
        return manifests[0]
    sources = {source["digest"]: source for manifest in reversed(manifests) for source in manifest["sources"]}
    return manifests[0] | {"sources": list(sources.values()), "tokens": sum(one["tokens"] for one in manifests)}


def stage_record(one: Finished, text: Text) -> Row:
    """A stage in the record: its row and its texts."""
    row = {key: value for key, value in one.row().items() if key != "stage"}
    return {
        "name": one.stage.name,
        **row,
        "calibration": text.windows.manifest,
        "eval_text": text.eval_windows.manifest,
    }
