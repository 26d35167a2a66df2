"""distill_checkpoint(): a teacher in, a trained smaller model out, and how far it is from its teacher before and after.

The student is written only when training is over; until then nothing exists at `out`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import exp
from pathlib import Path
from typing import Any

import torch

from calibration.errors import TooShortError
from calibration.start import StartToken
from calibration.windows import Windows, build_windows
from compress.checkpoint.finite import check_finite
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.load import load_model, load_tokenizer, measure_start, open_causal_lm
from compress.checkpoint.memory import check_memory
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import RECORD, digest, record_text
from compress.checkpoint.write import TensorSpec, check_room, save_checkpoint
from compress.distill.config import DistillConfig
from compress.distill.plan import Plan, plan_distill, plan_row
from compress.distill.train import Heldout, Model, Scores, Trained, check_head, make_accelerator, restore, train
from compress.errors import QCompressError
from compress.model.blocks import load_whole
from compress.model.depth import choose_blocks, sweep_depth
from compress.model.student import cut

Row = dict[str, Any]
Report = Callable[[Row], None]
HELDOUT_TOKENS = 1024
SWEEP_WINDOWS, SWEEP_LENGTH = 2, 128
START_WINDOWS, START_LENGTH = 4, 256


@dataclass(frozen=True)
class Text:
    """What is trained on, what is held out, and how their windows begin."""

    windows: Windows
    heldout: Windows
    start: StartToken


@dataclass(frozen=True)
class Student:
    """The student before training: model, config.json, and which blocks of the teacher it kept, by which sweep."""

    model: Model
    config: dict[str, Any]
    blocks: tuple[int, ...] | None = None
    sweep: dict[int, float] | None = None


def distill_checkpoint(teacher: Path, out: Path, settings: DistillConfig, report: Report = lambda row: None) -> Row:
    """Distill `teacher` into a student at `out`; returns the summary row. Nothing is left at `out` when it fails.

    QCompressError for bad input, for a student that has another tokenizer, and for training that never got better
    than the student was before it.
    """
    started = time.perf_counter()
    plan = plan_distill(teacher, settings)
    source, tokenizer = open_causal_lm(teacher), check_student(teacher, settings)
    check_room(out, plan.student_size["float16_bytes"])
    report(plan_row(plan, settings))
    device = pick_device(teacher, plan)
    big = open_model(teacher, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    text = read_text(settings, tokenizer, big.model)
    report(text_row(text, settings))
    vocab = common_vocabulary(plan, tokenizer)
    student = make_student(source, plan, settings, text.windows, vocab, device, report)
    heldout = Heldout(big, text.heldout, vocab)
    before = heldout.measure(student.model)
    report({"heldout_tokens": heldout.tokens, "kl_before": before.kl, "perplexity_before": exp(before.nll)})
    dtype = getattr(torch, settings.dtype)
    trained = train(
        student.model, big, text.windows, heldout, settings, kl_before=before.kl, dtype=dtype, report=report
    )
    refuse_no_gain(trained, before.kl, settings)
    restore(student.model.model, trained.weights)
    after = heldout.measure(student.model)
    row = {"out": str(out), **scores_row(heldout.teacher_nll, before, after), **plan.student_size}
    row |= {**training_row(trained, settings), "seconds": round(time.perf_counter() - started, 1)}
    save(
        out, student, trained, Path(settings.student or teacher), record(teacher, settings, text, student, trained, row)
    )
    return row


def pick_device(teacher: Path, plan: Plan) -> torch.device:
    """Where training runs. QCompressError when that is the CPU and its memory will not do."""
    device = make_accelerator().device
    if device.type == "cpu":
        check_memory(teacher, plan.memory)
    return device


def check_student(teacher: Path, settings: DistillConfig) -> Any:
    """The teacher's tokenizer. QCompressError, naming both, when the student's is another one."""
    tokenizer = load_tokenizer(teacher)
    if settings.student is None:
        return tokenizer
    open_causal_lm(settings.student)
    other = load_tokenizer(settings.student)
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    text = tokenizer.decode(list(range(0, len(ours), max(1, len(ours) // 256))))
    if ours != theirs or tokenizer(text)["input_ids"] != other(text)["input_ids"]:
        raise QCompressError(
            f"{settings.student}: its tokenizer ({len(theirs):,} tokens) is not that of {teacher} ({len(ours):,}, of "
            f"which {len(ours.items() & theirs.items()):,} are the same); give a student of the teacher's own family"
        )
    return tokenizer


def common_vocabulary(plan: Plan, tokenizer: Any) -> int:
    """How many tokens both models and the tokenizer know: what else a vocabulary holds is padding."""
    known = max(tokenizer.get_vocab().values()) + 1
    return min(int(plan.teacher["vocab_size"]), int(plan.student["vocab_size"]), known)


def open_model(path: Path, dtype: torch.dtype, device: torch.device) -> Model:
    """A checkpoint's model with a head that the loss understands."""
    model = Model(load_model(path, dtype), device)
    check_head(model, str(path))
    return model


def read_text(settings: DistillConfig, tokenizer: Any, teacher: Any) -> Text:
    """Windows to train on and windows held out, both beginning as the teacher wants them to.

    A text that is too short for the run is read again; how often is for the caller to report. QCompressError when the
    same text is in both, or when no token of one of them counts.
    """
    needed = settings.total_steps * settings.batch_size
    size: dict[str, Any] = {"seq_len": settings.seq_len, "seed": settings.seed}
    few = fitting_windows(settings.data, tokenizer, min(needed, START_WINDOWS), size)
    start = measure_start(teacher, tokenizer, few.ids[:, :START_LENGTH].to(teacher.device))
    size["start_token"] = start.token
    windows = fitting_windows(settings.data, tokenizer, needed, size)
    heldout = fitting_windows([settings.heldout], tokenizer, max(1, HELDOUT_TOKENS // settings.seq_len), size)
    seen = {source["digest"] for source in windows.manifest["sources"]}
    if seen & {source["digest"] for source in heldout.manifest["sources"]}:
        raise QCompressError(
            f"{settings.heldout}: is trained on, so it cannot be held out; give --heldout another text"
        )
    for name, found in ((", ".join(settings.data), windows), (settings.heldout, heldout)):
        if not found.mask[:, 1:].any():
            raise QCompressError(
                f"{name}: 0 of {found.mask.numel():,} tokens count in a loss; give conversations with assistant turns, "
                "or plain text"
            )
    return Text(windows, heldout, start)


def fitting_windows(sources: Sequence[str], tokenizer: Any, wanted: int, size: dict[str, Any]) -> Windows:
    """`wanted` windows, or as many as are in the text. CalibrationError when not even one is."""
    while True:
        try:
            return build_windows(sources, tokenizer, n_samples=wanted, **size)
        except TooShortError as error:
            if error.fitting < 1:
                raise
            wanted = min(error.fitting, wanted - 1)


def make_student(
    source: Checkpoint,
    plan: Plan,
    settings: DistillConfig,
    windows: Windows,
    vocab: int,
    device: torch.device,
    report: Report,
) -> Student:
    """The student that the settings describe, in float32 on `device`."""
    if settings.student is not None:
        return Student(open_model(Path(settings.student), torch.float32, device), plan.student)
    weights, sweep = weight_reader(source), None
    blocks = tuple(range(plan.shape.num_layers))
    if plan.removed:
        ids, mask = (tensor[:SWEEP_WINDOWS, :SWEEP_LENGTH] for tensor in (windows.ids, windows.mask))
        mask = mask if mask[:, 1:].any() else torch.ones_like(mask)  # a chat's first tokens may all be the user's
        sweep = sweep_depth(source.config, weights, plan.removed, ids, mask, vocab)
        blocks = choose_blocks(sweep, len(blocks) + plan.removed, plan.removed)
        gone = min(sweep, key=lambda start: (sweep[start], start))
        report(
            {"removed_blocks": f"{gone}-{gone + plan.removed - 1}", "kl": sweep[gone], "worst_kl": max(sweep.values())}
        )
    config, cut_weights = cut(source.config, weights, plan.shape, blocks)
    model = load_whole(config, lambda name: check_finite(name, cut_weights(name)), torch.float32)
    return Student(Model(model, device), config, blocks, sweep)


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


def text_row(text: Text, settings: DistillConfig) -> Row:
    """Which text, how many windows of it, how often they are read, and what they begin with."""
    windows = len(text.windows.ids)
    epochs = settings.total_steps * settings.batch_size / windows
    row = {"data": ", ".join(settings.data), "windows": windows, "epochs": round(epochs, 2)}
    return row | {"heldout": settings.heldout, "start_token": text.start.token}


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
        source={"path": str(teacher), "digest": digest(teacher)},
        calibration=text.windows.manifest | {"start": asdict(text.start)},
        heldout=text.heldout.manifest,
        blocks=student.blocks,
        sweep=student.sweep,
        loss=trained.curve,
        rows=[row],
    )


def save(out: Path, student: Student, trained: Trained, tokenizer: Path, text: str) -> None:
    """The checkpoint: the best weights, the student's config in their dtype, tokenizer files, the record."""
    dtype = str(next(iter(trained.weights.values())).dtype).removeprefix("torch.")
    config = {**student.config, "dtype": dtype, "architectures": [type(student.model.model).__name__]}
    pairs = [(TensorSpec(name, t.dtype, tuple(t.shape)), t) for name, t in trained.weights.items()]
    save_checkpoint(out, config, pairs, source=tokenizer, extra={RECORD: text})
