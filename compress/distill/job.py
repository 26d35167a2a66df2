"""distill_checkpoint(): train a smaller student to match a teacher, and measure the distance before and after.

The student is written after training; until then nothing exists at `out`.
"""

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from calibration.corpus import source_digest
from calibration.windows import Windows
from compress.checkpoint.digest import files_digest
from compress.checkpoint.heldout import START
from compress.checkpoint.load import open_for_text
from compress.checkpoint.memory_check import check_gpu_memory, check_memory
from compress.checkpoint.model_card import origin
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.checkpoint.record import record_text
from compress.checkpoint.workdir import check_small_files_unchanged, check_weights_unchanged
from compress.core.distributed import first, place
from compress.core.errors import QCompressError
from compress.core.report import Report, Row, silent
from compress.distill.config import DistillConfig, LoopConfig
from compress.distill.model import Model, open_model, working_dtype
from compress.distill.sharding.fsdp import make_accelerator
from compress.distill.student.build import (
    StudentModel,
    check_tokenizers,
    common_vocabulary,
    cut_student,
    load_student,
    save_student,
)
from compress.distill.student.memory_estimate import cures, format_parts, gpu_cures
from compress.distill.student.plan import StudentPlan, plan_distill, plan_parts, plan_row
from compress.distill.targets.cache import MANIFEST, Cache, windows_digest
from compress.distill.targets.cached_teacher import CachedTeacher, cache_text, open_cache
from compress.distill.text.packing import check_on_policy, check_packing
from compress.distill.text.stages import TextStage, check_untrained, make_stages, stage_texts
from compress.distill.text.windows import Text, text_row
from compress.distill.training.evaluator import StudentEvaluator
from compress.distill.training.journal import TrainingJournal, shared_journal
from compress.distill.training.logs import logged
from compress.distill.training.loop import Teacher
from compress.distill.training.stage_runner import (
    Finished,
    Run,
    check_alignment_file,
    keep_alignment,
    make_alignment,
    run_stages,
)
from compress.distill.training.yardstick import Distance, Yardstick, with_errors, yardstick_windows

LOOP = LoopConfig()
STATE_BYTES = 28  # bytes per parameter for two saved states of weights, Adam's moments and best weights


def distill_checkpoint(
    teacher: PathOrCheckpoint, out: Path, settings: DistillConfig, report: Report = silent, *, loop: LoopConfig = LOOP
) -> Row:
    """Distill `teacher` into a student at `out`; returns the summary row. If this fails, nothing is left at `out`.

    An interrupted run continues from its last saved state and ends with the same curve and weights. With a cache, the
    teacher runs on the evaluation text only. Of several processes, only the first writes and reports; the others
    return {}.
    Raises QCompressError if an input is bad, if the cache was captured with other settings, if the student has another
    tokenizer, or if training does not improve the student.
    """
    teacher = open_for_text(teacher)
    plan = plan_distill(teacher, settings)
    device = training_device(loop.device, teacher, plan, settings)
    student = open_for_text(settings.student) if settings.student else None
    if student is not None:
        check_tokenizers(teacher, student)
    room = plan.student_size["float16_bytes"] + STATE_BYTES * plan.student_size["parameters"]
    with shared_journal(out, job_settings(teacher, student, settings), room, restart=loop.restart) as journal:
        if not journal.published:
            with logged(report, out, loop.log_dir) if journal.writes else nullcontext(silent) as log:
                job = DistillJob(teacher, student, out, settings, plan, device, journal, log)
                distill(job, loop)
        row = journal.notes["row"] if journal.writes else {}
        if journal.writes:
            journal.discard()
    return row


@dataclass(frozen=True)
class DistillJob:
    """The inputs of a distillation. `student` is an existing checkpoint, or None to cut one out of the teacher.

    Only the first process prints rows: in the others, `report` discards them.
    """

    teacher: Checkpoint
    student: Checkpoint | None
    out: Path
    settings: DistillConfig
    plan: StudentPlan
    device: torch.device
    journal: TrainingJournal
    report: Report


@dataclass(frozen=True)
class TrainingText:
    """The stages of the run, the text of each stage, and the cache, if the run uses one."""

    stages: list[TextStage]
    texts: list[Text]
    cache: Cache | None


def job_settings(teacher: Checkpoint, student: Checkpoint | None, settings: DistillConfig) -> Row:
    """All values that determine the student's bytes: settings, digests of inputs, versions of packages."""
    inputs: Row = {"teacher": teacher.digest} | ({"student": student.digest} if student else {})
    inputs["small_files"] = (student or teacher).small_files_digest
    inputs |= {"texts": {text: source_digest(text) for text in settings.texts}, "processes": place()[1]}
    if settings.cache:
        inputs["cache"] = files_digest([Path(settings.cache) / MANIFEST])
    return {**settings.settings(), **inputs, **{name: version(name) for name in ("qcompress", "torch", "transformers")}}


def distill(job: DistillJob, loop: LoopConfig) -> None:
    """Train the student, write it, and store the summary row in the journal."""
    started, settings, report = time.perf_counter(), job.settings, job.report
    tokenizer, vocab = job.teacher.tokenizer, common_vocabulary(job.plan, job.teacher.tokenizer)
    report(plan_row(job.plan, settings))
    report({"loads": job.teacher.path.name})
    teacher = open_model(job.teacher, working_dtype(job.teacher, job.device), job.device)
    text = read_training_text(job, teacher, vocab)
    student = make_student(job, text, vocab)
    for checkpoint in filter(None, (job.teacher, job.student)):
        first(partial(check_weights_unchanged, checkpoint))
    heldout = yardstick_windows(job.teacher, settings.eval_text, loop.eval_samples, loop.eval_seq_len, job.device)
    check_untrained(text.texts, heldout)
    evaluators = make_evaluators(teacher, [one.eval_windows for one in text.texts], vocab)
    yardstick = Yardstick(job.teacher, heldout, vocab, job.device, report) if job.journal.writes else None
    before = yardstick.measure(student.model) if yardstick else None
    if yardstick and before:
        report(yardstick.row() | distance_row("before", before))
        report(training_estimate(yardstick, text.stages, cached=text.cache is not None))
    alignment = make_alignment(student.model, teacher, text.stages, settings.seed)
    targets: Teacher = CachedTeacher(text.cache, text.texts[0].windows, teacher) if text.cache else teacher
    del teacher  # with a cache, training needs only the teacher's head
    run = Run(student.model, targets, vocab, tokenizer.eos_token_id, alignment, report, job.journal, loop.save_every)
    finished = run_stages(run, text.stages, text.texts, evaluators)
    check_gain(finished, job.journal)
    if yardstick is None or before is None:
        return
    after = yardstick.measure(student.model)
    row = {"out": str(job.out), **scores_row(yardstick, before, after), **job.plan.student_size}
    row |= training_row(finished)
    text_of_record = record(job, text.texts, heldout, student, finished, row)
    job.journal.note("row", lambda: row | {"seconds": round(time.perf_counter() - started, 1)})
    keep_alignment(run, job.out)
    check_small_files_unchanged(job.student or job.teacher, job.journal.settings["small_files"])
    save_student(job.out, student, finished[-1].trained.weights, (job.student or job.teacher).path, text_of_record)


def read_training_text(job: DistillJob, teacher: Model, vocab: int) -> TrainingText:
    """Read the stages, their texts and the cache.

    Raises QCompressError if the cache does not fit the run, or if a text is unreadable or too short.
    """
    settings, tokenizer = job.settings, job.teacher.tokenizer
    cache = open_cache(settings, job.teacher, vocab) if settings.cache else None
    stages = make_stages(settings)
    check_alignment_file(stages, job.out)
    check_packing(teacher, str(job.teacher), settings.packing, max(stage.settings.seq_len for stage in stages))
    texts = [cache_text(cache, settings, tokenizer)] if cache else stage_texts(stages, tokenizer, teacher.model)
    for stage, text in zip(stages, texts, strict=True):
        job.report(stage.named() | text_row(text, stage.text, stage.needed) | {"eval_text": stage.settings.eval_text})
    return TrainingText(stages, texts, cache)


def make_student(job: DistillJob, text: TrainingText, vocab: int) -> StudentModel:
    """Make the untrained student. Raises QCompressError if it cannot generate text for an on-policy stage."""
    if job.student is not None:
        student = load_student(job.student, job.plan, job.device)
    else:
        windows = text.texts[0].windows
        student = cut_student(job.teacher, job.plan, job.settings, windows, vocab, job.device, job.report)
    for stage in text.stages:
        if stage.on_policy:
            check_on_policy(student.model.model, job.settings.packing, stage.settings.seq_len)
    return student


def training_device(name: str, teacher: Checkpoint, plan: StudentPlan, settings: DistillConfig) -> torch.device:
    """The device that trains. `name` is the value of --device.

    Raises QCompressError if the memory is too small: the machine's for all processes, or the GPU's for a single one.
    """
    device = make_accelerator(name).device
    if device.type == "cuda":
        check_device_memory(teacher, plan, settings)
    else:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        check_memory(
            str(teacher), processes * plan.memory, f"{cures(settings)} ({format_parts(plan.memory_parts)} per process)"
        )
    return device


def check_device_memory(teacher: Checkpoint, plan: StudentPlan, settings: DistillConfig) -> None:
    """Raises QCompressError if one process cannot train on the free memory of the GPU.

    Activations and the loss are not counted, because micro-batches and chunks shrink. Several processes are not
    checked, because FSDP and ZeRO shard the other parts.
    """
    parts = {name: size for name, size in plan_parts(plan, settings).items() if name not in ("activations", "loss")}
    if place()[1] == 1:
        cure = f"use {gpu_cures(settings)} ({format_parts(parts)}, then activations)"
        check_gpu_memory(str(teacher), sum(parts.values()), cure)


def make_evaluators(teacher: Model, eval_windows: Sequence[Windows], vocab: int) -> list[StudentEvaluator]:
    """One evaluator for each element of `eval_windows`. Equal windows share an evaluator, so the teacher runs once."""
    distinct = {windows_digest(windows): windows for windows in eval_windows}
    evaluators = {digest: StudentEvaluator(teacher, windows, vocab) for digest, windows in distinct.items()}
    return [evaluators[windows_digest(windows)] for windows in eval_windows]


def check_gain(finished: Sequence[Finished], journal: TrainingJournal) -> None:
    """Raises QCompressError if no stage improved the student. Saved work stays only if the run stopped early."""
    if any(one.trained.best_step for one in finished):
        return
    stage, trained = finished[-1].stage, finished[-1].trained
    if trained.stopped:
        reason = f"training stopped at {trained.stopped}, before it improved the student"
    else:
        values = [row["eval_kl"] for row in trained.curve if "eval_kl" in row]
        tokens = f"{finished[-1].tokens_scored:,} tokens of {stage.settings.eval_text}"
        kl = f"KL on {tokens} was {finished[-1].kl_before:.4g} before training, at best {min(values):.4g} after"
        reason = f"{len(trained.curve)} steps did not improve the student, {kl}"
        journal.forget()
    again = ", with --restart" if journal.file else ""
    where, rate = f"stage {stage.name}: " if stage.name else "", stage.settings.learning_rate
    cure = f"lower --learning-rate {rate:g} or raise --steps{again}"
    raise QCompressError(f"{where}{reason}; no student was written; {cure}")


def scores_row(yardstick: Yardstick, before: Distance, after: Distance) -> Row:
    """The student's KL to the teacher before and after training, their ratio, and perplexities, on held-out windows."""
    teacher = with_errors(perplexity_teacher=yardstick.teacher_perplexity)
    kl = with_errors(kl_before=before.kl, kl_after=after.kl) | {"factor": before.kl.value / after.kl.value}
    perplexities = with_errors(perplexity_before=before.perplexity, perplexity_after=after.perplexity)
    return kl | teacher | perplexities | yardstick.row()


def training_estimate(yardstick: Yardstick, stages: Sequence[TextStage], *, cached: bool) -> Row:
    """The steps and tokens of all stages, and the expected time of training. On-policy text has no estimate."""
    tokens = sum(stage.needed * stage.settings.seq_len for stage in stages)
    row: Row = {
        "trains": "student",
        "steps": sum(stage.settings.total_steps for stage in stages),
        "tokens_read": tokens,
    }
    if any(stage.on_policy for stage in stages):
        return row
    return row | {"eta": yardstick.training_seconds(tokens, teacher=not cached)}


def distance_row(when: str, distance: Distance) -> Row:
    """A student's KL and perplexity as a row. The keys end in `when`, which is "before" or "after" training."""
    return with_errors(**{f"kl_{when}": distance.kl, f"perplexity_{when}": distance.perplexity})


def training_row(finished: Sequence[Finished]) -> Row:
    """Steps and tokens of the whole run, its best step, the reason of an early stop, and a row for each named stage."""
    rows = [one.row() for one in finished]
    best = max(row["best_step"] for row in rows)
    summed = {key: sum(row[key] for row in rows) for key in ("steps", "tokens_read")}
    stages = {"stages": rows} if finished[0].stage.name else {}
    return {
        "steps": summed["steps"],
        "best_step": best,
        "tokens_read": summed["tokens_read"],
        "stopped": rows[-1]["stopped"],
        **stages,
    }


def record(
    job: DistillJob,
    texts: Sequence[Text],
    heldout: Windows,
    student: StudentModel,
    finished: Sequence[Finished],
    row: Row,
) -> str:
    """The text of the student's qcompress.json: settings, inputs, loss curve, and the run's evaluation text."""
    return record_text(
        "distill",
        job.settings.settings(),
        source=origin(job.teacher),
        student=origin(job.student) if job.student else None,
        calibration=joined_manifest(texts) | {"start": asdict(texts[0].start)},
        eval_text=heldout.manifest,
        start=heldout.manifest[START],
        stages=[stage_record(one, text) for one, text in zip(finished, texts, strict=False) if one.stage.name],
        blocks=student.blocks,
        sweep=student.sweep,
        width=student.width,
        loss=[point for one in finished for point in one.trained.curve],
        rows=[row],
    )


def joined_manifest(texts: Sequence[Text]) -> Row:
    """One manifest for all texts: the first text's manifest, with the sources and the tokens of all texts."""
    manifests = [text.windows.manifest for text in texts]
    if len(manifests) == 1:
        return manifests[0]
    sources = {source["digest"]: source for manifest in reversed(manifests) for source in manifest["sources"]}
    return manifests[0] | {"sources": list(sources.values()), "tokens": sum(one["tokens"] for one in manifests)}


def stage_record(one: Finished, text: Text) -> Row:
    """The record's entry for a stage: its report row and its texts."""
    row = {key: value for key, value in one.row().items() if key != "stage"}
    return {
        "name": one.stage.name,
        **row,
        "calibration": text.windows.manifest,
        "eval_text": text.eval_windows.manifest,
    }
