"""The student before training. It is cut out of the teacher or loaded from an existing checkpoint."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.checkpoint.finite import check_finite
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.load import spell_vocabulary
from compress.checkpoint.model_card import CARD, write_card
from compress.checkpoint.read import RECORD, Checkpoint
from compress.checkpoint.write import TensorSpec, save_checkpoint
from compress.core.errors import QCompressError
from compress.core.report import Report, Row
from compress.distill.config import StudentConfig
from compress.distill.model import Model, open_model
from compress.distill.student.plan import StudentPlan
from compress.model.blocks import Weights, load_all
from compress.model.depth import choose_blocks, sweep_depth
from compress.model.importance import ActivationImportance, measure_importance
from compress.model.shapes import block_lists
from compress.model.student import cut, shape_of

SWEEP_WINDOWS, SWEEP_LENGTH = 2, 128
IMPORTANCE_WINDOWS, IMPORTANCE_LENGTH = 16, 256


@dataclass(frozen=True)
class StudentModel:
    """The student before training: its model and its config.json.

    `blocks` are the numbers of the teacher's blocks that it keeps. `sweep` maps the first removed block of each
    possible cut to the KL of that cut. `width` describes how channels were chosen; None means that no width changed.
    """

    model: Model
    config: dict[str, Any]
    blocks: tuple[int, ...] | None = None
    sweep: dict[int, float] | None = None
    width: Row | None = None


def check_tokenizers(teacher: Checkpoint, student: Checkpoint) -> None:
    """Raises QCompressError if an existing student and the teacher have different tokenizers."""
    large, small = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    if large != small or spell_vocabulary(teacher.tokenizer) != spell_vocabulary(student.tokenizer):
        raise QCompressError(
            f"{student}: the tokenizer has {len(small):,} tokens, that of {teacher} has {len(large):,}, and both share "
            f"{len(large.items() & small.items()):,}; give a student with the teacher's tokenizer, "
            "or cut one with --blocks"
        )


def common_vocabulary(plan: StudentPlan, tokenizer: Any) -> int:
    """The number of token ids that both models and the tokenizer have. Higher ids are padding."""
    tokens = max(tokenizer.get_vocab().values()) + 1
    return min(int(plan.teacher["vocab_size"]), int(plan.student["vocab_size"]), tokens)


def load_student(checkpoint: Checkpoint, plan: StudentPlan, device: torch.device) -> StudentModel:
    """Load an existing student, in float32 on `device`."""
    return StudentModel(open_model(checkpoint, torch.float32, device), plan.student)


def cut_student(
    source: Checkpoint,
    plan: StudentPlan,
    settings: StudentConfig,
    windows: Windows,
    vocab: int,
    device: torch.device,
    report: Report,
) -> StudentModel:
    """Cut a student out of the teacher `source`; returns it in float32 on `device`."""
    weights, sweep = weight_reader(source), None
    blocks = tuple(range(plan.shape.num_layers))
    if plan.removed:
        ids, mask = (tensor[:SWEEP_WINDOWS, :SWEEP_LENGTH] for tensor in (windows.ids, windows.mask))
        mask = mask if mask[:, 1:].any() else torch.ones_like(mask)  # a chat may begin with a long user turn
        sweep = sweep_depth(source.config, weights, plan.removed, ids, mask, vocab, device=device)
        blocks = choose_blocks(sweep, len(blocks) + plan.removed, plan.removed)
        gone = min(sweep, key=lambda start: (sweep[start], start))
        removed, worst = f"{gone}-{gone + plan.removed - 1}", max(sweep.values())
        report({"removed_blocks": removed, "cut_kl": sweep[gone], "worst_cut_kl": worst})
        kinds = block_lists(source.config).get("layer_types", [])
        if len({*kinds}) > 1:
            report(
                {"teacher_blocks": count_kinds(kinds), "student_blocks": count_kinds([kinds[one] for one in blocks])}
            )
    importance, width = measure_width(source.config, weights, plan, blocks, settings, windows.ids, device)
    if width:
        report({"narrowed_by": width["importance"], "importance_tokens": width["tokens"]})
    config, cut_weights = cut(source.config, weights, plan.shape, blocks, importance)
    model = load_all(config, lambda name: check_finite(name, cut_weights(name)), torch.float32)
    return StudentModel(Model(model, device), config, blocks, sweep, width)


def count_kinds(kinds: list[str]) -> str:
    """The kinds of blocks with their numbers, such as "18 linear_attention, 6 full_attention".

    The run of blocks that changes the outputs least is removed, so a student of a hybrid may have them in another ratio
    than its teacher.
    """
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())


def measure_width(
    config: Row,
    weights: Weights,
    plan: StudentPlan,
    blocks: tuple[int, ...],
    settings: StudentConfig,
    ids: Tensor,
    device: torch.device,
) -> tuple[ActivationImportance | None, Row | None]:
    """The importance of channels for a narrower student, and a description for the record.

    Both are None if the student is as wide as its teacher. With the setting importance "weights", the importance is
    None: it is computed later. Activations are measured on the first windows of `ids` (windows, seq_len), through the
    kept blocks only.
    """
    teacher = shape_of(config)
    if plan.shape.same_width(teacher):
        return None, None
    if settings.importance == "weights":
        return None, {"importance": "weights", "windows": 0, "seq_len": 0, "tokens": 0}
    few = ids[:IMPORTANCE_WINDOWS, :IMPORTANCE_LENGTH]
    short, kept = cut(config, weights, replace(teacher, num_layers=plan.shape.num_layers), blocks)
    importance = measure_importance(short, lambda name: check_finite(name, kept(name)), few, device)
    size = {"windows": few.shape[0], "seq_len": few.shape[1], "tokens": few.numel()}
    return importance, {"importance": "activations", **size}


def save_student(out: Path, student: StudentModel, weights: dict[str, Tensor], tokenizer: Path, record: str) -> None:
    """Write the student's checkpoint: weights, config, tokenizer files, record and model card."""
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    config = {**student.config, "dtype": dtype, "architectures": [type(student.model.model).__name__]}
    pairs = [(TensorSpec.of(name, t), t) for name, t in weights.items()]
    save_checkpoint(out, config, pairs, source=tokenizer, extra={RECORD: record, CARD: write_card(json.loads(record))})
