"""Hidden states beside the loss: only of mapped blocks, nothing where both are one, nothing in the student."""

from pathlib import Path

import pytest
import torch

from compress.checkpoint.read import Checkpoint, read_header
from compress.distill.config import DistillConfig, TrainConfig
from compress.distill.job import distill_checkpoint
from compress.distill.model import Model
from compress.distill.text.packing import as_batch
from compress.distill.training.align import AlignedTeacher, Alignment, align_weight, distance, map_blocks
from compress.distill.training.loop import Objective, accumulate, make_accelerator
from compress.losses import Loss
from tests.distill.random_models import random_llama as make_llama
from tests.distill.random_models import random_windows


def random_llama(seed: int, blocks: int = 3, width: int = 16) -> Model:
    return make_llama(seed, num_hidden_layers=blocks, hidden_size=width)


def step(student: Model, teacher: Model, alignment: Alignment, weight: float) -> tuple[dict[str, float], Objective]:
    """One step's row, and the objective with its gradients."""
    settings, windows = TrainConfig(batch_size=4, seq_len=12, alpha=1.0, align_weight=weight), random_windows(4, seed=3)
    student.model.requires_grad_(True)
    objective = Objective(student, settings, 40, alignment)
    answers = AlignedTeacher(teacher, alignment.pairs)
    return accumulate(make_accelerator(), objective, answers, as_batch(windows)), objective


def test_a_student_that_is_its_teacher_costs_exactly_nothing():
    row, _ = step(random_llama(2), random_llama(2), Alignment(16, 16, map_blocks(3, 3)), 1.0)
    assert row["align"] == 0 and row["loss"] == 0


def test_the_last_blocks_are_a_pair_and_depths_are_proportional():
    assert map_blocks(3, 3) == [(1, 1), (2, 2), (3, 3)]
    assert map_blocks(2, 6) == [(1, 3), (2, 6)]
    assert map_blocks(20, 30)[-1] == (20, 30) and map_blocks(4, 2) == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_the_loss_is_one_less_the_mean_cosine_over_pairs_and_tokens_that_count():
    student, teacher = random_llama(1, blocks=2), random_llama(2, width=32)
    alignment, windows = Alignment(16, 32, [(1, 2), (2, 3)]), random_windows(4, seed=3)
    row, _ = step(student, teacher, alignment, 0.5)
    keep = windows.mask[:, 1:]
    with torch.no_grad():
        states = [m.model.base_model(windows.ids, output_hidden_states=True).hidden_states for m in (student, teacher)]
        cosines = [
            torch.cosine_similarity(
                states[0][block][:, :-1] @ alignment.projection.T, states[1][teacher_block][:, :-1], -1
            )
            for block, teacher_block in alignment.pairs
        ]
    expected = sum(1 - cosine[keep].mean() for cosine in cosines).item() / 2
    assert row["align"] == pytest.approx(expected, rel=1e-4)
    assert row["loss"] == pytest.approx(row["kl"] + 0.5 * row["align"], rel=1e-5)


def test_the_gradient_reaches_mapped_blocks_only(monkeypatch):
    monkeypatch.setattr("compress.distill.training.loop.distill_loss", nothing)
    student = random_llama(1)
    alignment = Alignment(16, 16, [(2, 2)])
    step(student, random_llama(2), alignment, 1.0)
    blocks = student.model.model.layers
    reached = [any(p.grad is not None and p.grad.any() for p in block.parameters()) for block in blocks]
    assert reached == [True, True, False] and alignment.projection.grad.any()
    assert student.model.lm_head.weight.grad is None and student.model.model.norm.weight.grad is None


def nothing(side, targets, labels, keep, **_):
    """A loss without a gradient."""
    return Loss(torch.zeros(()), torch.zeros(keep.shape), torch.zeros(keep.shape))


def test_the_projection_has_a_separate_group_and_begins_nearly_orthogonal():
    student, alignment = random_llama(1), Alignment(16, 24, [(3, 3)])
    groups = Objective(student, TrainConfig(), 40, alignment).groups()
    assert [len(group["params"]) for group in groups] == [len(list(student.model.parameters())), 1]
    torch.testing.assert_close(alignment.projection.T @ alignment.projection, torch.eye(16), rtol=0, atol=1e-5)
    assert torch.equal(Alignment(16, 16, [(3, 3)]).projection, torch.eye(16))


def test_the_weight_is_whole_for_half_the_run_and_then_falls_to_nothing():
    weights = [align_weight(step, 10, 2.0) for step in range(1, 12)]
    assert weights[:6] == [2.0] * 6 and weights[-1] == 0.0
    assert weights[6:] == sorted(weights[6:], reverse=True) and 0 < weights[9] < weights[6] < 2.0


def test_a_states_length_never_changes_its_distance():
    student, teacher = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(distance(1000 * student, teacher), distance(student, 0.01 * teacher))


def test_the_projection_lies_beside_the_student_and_never_in_it(tiny_llama: Path, tmp_path: Path):
    short = {"steps": 3, "seq_len": 32, "batch_size": 2, "learning_rate": 3e-3, "eval_every": 1}
    row = distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(blocks=1, align_weight=1.0, **short))
    assert row["kl_after"] < row["kl_before"]
    plain = {name for name in Checkpoint(tiny_llama).tensors if "layers.1." not in name}
    assert set(Checkpoint(tmp_path / "out").tensors) == plain
    assert list(read_header(tmp_path / "out.align.safetensors")) == ["projection"]
    assert "projection" not in (tmp_path / "out/config.json").read_text()


def test_hidden_states_and_a_cache_are_refused_together():
    with pytest.raises(ValueError, match="align_weight=1 and cache=c: a cache holds no hidden states of the blocks"):
        DistillConfig(blocks=1, align_weight=1.0, cache="c")


def test_without_alignment_no_projection_file_is_written(tiny_llama: Path, tmp_path: Path):
    distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(blocks=1, steps=2, seq_len=32, eval_every=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.distill.jsonl"]
