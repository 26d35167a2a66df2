"""run_stages(): train one stage after another, each from the best weights of the one before."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from calibration.windows import Windows
from compress.core.errors import BadValueError
from compress.core.report import Report, Row, silent
from compress.distill.config import DistillConfig
from compress.distill.model import Model
from compress.distill.sharding.parallel import from_first
from compress.distill.text.on_policy import continue_windows
from compress.distill.text.packing import Batch
from compress.distill.text.stages import TextStage
from compress.distill.text.windows import Text
from compress.distill.training.align import ALIGNMENT, AlignedTeacher, Alignment, map_blocks, save_alignment
from compress.distill.training.evaluator import StudentEvaluator
from compress.distill.training.journal import NOWHERE, StateSaver, TrainingJournal
from compress.distill.training.loop import Rewrite, Teacher, Trained, restore, train
from compress.distill.training.lora import adapters


@dataclass(frozen=True)
class Run:
    """The objects that all stages share. `end` is the id of the token that ends an answer.

    `alignment` is None if all stages have align_weight 0.
    """

    student: Model
    teacher: Teacher
    vocab: int
    end: int | None
    alignment: Alignment | None = None
    report: Report = silent
    journal: TrainingJournal | None = None
    save_every: int = 0


@dataclass(frozen=True)
class Finished:
    """The result of one stage. Its steps count from the start of the run, not of the stage."""

    stage: TextStage
    trained: Trained
    kl_before: float
    tokens_scored: int

    def row(self) -> Row:
        """The report row of the stage: steps, tokens, and KL before and after training on a few evaluation windows."""
        settings, trained = self.stage.settings, self.trained
        tokens = len(trained.curve) * settings.batch_size * settings.seq_len
        return {
            **self.stage.named(),
            "kl_before": self.kl_before,
            "kl_after": trained.best_kl,
            "tokens_scored": self.tokens_scored,
            "steps": len(trained.curve),
            "best_step": trained.best_step,
            "tokens_read": tokens,
            "stopped": trained.stopped,
        }


def make_alignment(student: Model, teacher: Model, stages: Sequence[TextStage], seed: int) -> Alignment | None:
    """The alignment of student and teacher, or None if all stages have align_weight 0."""
    if not any(stage.settings.align_weight for stage in stages):
        return None
    small, large = student.model.config, teacher.model.config
    pairs = map_blocks(small.num_hidden_layers, large.num_hidden_layers)
    return Alignment(small.hidden_size, large.hidden_size, pairs, seed).to(student.model.device)


def run_stages(
    run: Run, stages: Sequence[TextStage], texts: Sequence[Text], evaluators: Sequence[StudentEvaluator]
) -> list[Finished]:
    """Train `run.student` stage by stage, in place; returns a result for each stage.

    Each stage ends with its best weights, rounded to the stored dtype. If a stage does not lower the KL on its
    evaluation text, its changes are undone. The run stops at a loss that is not finite.
    """
    finished: list[Finished] = []
    for stage, text, evaluator in zip(stages, texts, evaluators, strict=True):
        saver = StateSaver(run.journal, len(finished), run.save_every, run.alignment)
        done = sum(len(one.trained.curve) for one in finished)
        finished.append(run_stage(run, stage, text.windows, evaluator, done, saver))
        if stage.name:
            run.report(finished[-1].row())
        if finished[-1].trained.stopped:
            break
    return finished


def run_stage(
    run: Run, stage: TextStage, windows: Windows, evaluator: StudentEvaluator, done: int, saver: StateSaver = NOWHERE
) -> Finished:
    """Train one stage; `done` counts the steps of earlier stages.

    If an interrupted run had already finished the stage, it returns the saved curve without training.
    """
    settings, student = stage.settings, run.student
    alignment = run.alignment if settings.align_weight else None
    kl_before = saver.note("kl_before", lambda: from_first(evaluator.measure(student).kl))
    with adapters(student.model, settings.lora_rank, settings.lora_alpha, settings.seed):
        trained = train(
            student,
            teacher_for(run.teacher, alignment),
            windows,
            evaluator,
            settings,
            kl_before=kl_before,
            dtype=getattr(torch, settings.dtype),
            report=lambda row: run.report(stage.named() | row),
            alignment=alignment,
            rewrite=student_answers(run, settings, done) if stage.on_policy else None,
            saver=saver,
        )
    if trained.weights:
        restore(student.model, trained.weights)
    trained.curve = [{**row, "step": done + row["step"], **stage.named()} for row in trained.curve]
    trained.best_step += done if trained.best_step else 0
    return Finished(stage, trained, kl_before, evaluator.tokens)


def teacher_for(teacher: Teacher, alignment: Alignment | None) -> Teacher:
    """The teacher; with `alignment`, a teacher that also returns hidden states.

    Raises ValueError if `alignment` is set and the teacher is a cache: caches contain no hidden states of blocks.
    """
    if alignment is None:
        return teacher
    if not isinstance(teacher, Model):
        raise BadValueError(
            f"align_weight: a {type(teacher).__name__} has no hidden states of blocks; leave out --align-weight"
        )
    return AlignedTeacher(teacher, alignment.pairs)


def student_answers(run: Run, settings: DistillConfig, done: int) -> Rewrite:
    """A function that replaces a batch's windows: each keeps its beginning, and the student writes the rest."""

    def rewrite(step: int, batch: Batch) -> Batch:
        return continue_windows(
            run.student.model, batch, seed=settings.seed, step=done + step, vocab=run.vocab, end=run.end
        )

    return rewrite


def alignment_path(out: Path) -> Path:
    """The path of the alignment's projection, a file next to the student."""
    return out.with_name(f"{out.name}.align.safetensors")


def check_alignment_file(stages: Sequence[TextStage], out: Path) -> None:
    """Raises QCompressError if a stage uses an alignment, and another program wrote the file of its projection."""
    if any(stage.settings.align_weight for stage in stages):
        ALIGNMENT.check(alignment_path(out))


def keep_alignment(run: Run, out: Path) -> None:
    """Write the alignment's projection next to the student, if the run has an alignment."""
    if run.alignment is not None:
        save_alignment(alignment_path(out), run.alignment)
