"""Adapters: only they learn, and what is written is a plain checkpoint that says what the adapted model said."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from calibration.windows import Windows
from compress.checkpoint.read import Checkpoint
from compress.distill.config import DistillConfig, TrainConfig
from compress.distill.job import distill_checkpoint
from compress.distill.training.evaluator import StudentEvaluator
from compress.distill.training.loop import restore, snapshot, train
from compress.distill.training.lora import adapted, adapters, plain_parameters
from tests.distill.random_models import random_llama

pytest.importorskip("peft")


def random_windows(count: int, seed: int) -> Windows:
    ids = torch.randint(0, 40, (count, 12), generator=torch.Generator().manual_seed(seed))
    return Windows(ids, torch.ones_like(ids, dtype=torch.bool), {})


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(random_windows(2, 5).ids).logits


def test_training_changes_only_adapters_and_merging_keeps_the_outputs():
    student, teacher = random_llama(1), random_llama(2)
    before = snapshot(student.model, torch.float32)
    evaluator = StudentEvaluator(teacher, random_windows(4, 9), 40)
    kl = evaluator.measure(student).kl
    settings = TrainConfig(steps=8, batch_size=4, seq_len=12, learning_rate=3e-2, eval_every=8)
    with adapters(student.model, 4, 8.0):
        windows = random_windows(16, 8)
        result = train(student, teacher, windows, evaluator, settings, kl_before=kl, dtype=torch.float32)
        base = {n.replace(".base_layer", ""): p for n, p in student.model.named_parameters() if "lora_" not in n}
        assert all(torch.equal(before[name], p) for name, p in base.items()) and base.keys() == before.keys()
        adapted_logits = logits(student.model)
    assert result.best_step == 8 and result.best_kl < kl
    torch.testing.assert_close(logits(student.model), logits_of(before))
    restore(student.model, result.weights)
    torch.testing.assert_close(logits(student.model), adapted_logits, rtol=1e-5, atol=1e-5)
    changed = {name for name, tensor in result.weights.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "_proj" in name}


def logits_of(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    model = random_llama(7)
    restore(model.model, weights)
    return logits(model.model)


def test_rank_0_leaves_the_model_alone():
    student = random_llama(1)
    with adapters(student.model, 0):
        assert not adapted(student.model)
        merged, plain = dict(plain_parameters(student.model)), dict(student.model.named_parameters())
        assert merged.keys() == plain.keys() and all(merged[name] is plain[name] for name in plain)


def test_leaving_makes_the_model_plain_again_even_after_an_error():
    student = random_llama(1)
    names = [name for name, _ in student.model.named_parameters()]
    with pytest.raises(RuntimeError), adapters(student.model, 2):
        assert len(adapted(student.model)) == 14
        raise RuntimeError
    assert [name for name, _ in student.model.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in student.model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with adapters(student.model, 2):  # as the next stage does
            assert len(adapted(student.model)) == 14


def test_adapters_begin_the_same_whatever_was_drawn_before():
    results = []
    for seed in (3, 4):
        student = random_llama(1)
        torch.manual_seed(seed)
        with adapters(student.model, 2):
            results.append([p.clone() for name, p in student.model.named_parameters() if "lora_A" in name])
        torch.testing.assert_close(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed)))
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_a_fresh_adapter_changes_nothing():
    student = random_llama(1)
    before = logits(student.model)
    with adapters(student.model, 2):
        assert torch.equal(logits(student.model), before)


def test_the_written_student_is_a_plain_checkpoint(tiny_llama: Path, tmp_path: Path):
    short = {"alpha": 1.0, "steps": 6, "seq_len": 32, "learning_rate": 5e-3, "eval_every": 2}
    row = distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(blocks=1, lora_rank=4, **short))
    assert row["kl_after"] < row["kl_before"]
    student, teacher = Checkpoint(tmp_path / "out"), Checkpoint(tiny_llama)
    assert set(student.tensors) == {name for name in teacher.tensors if "layers.1." not in name}
    assert torch.equal(student.tensor("model.norm.weight"), teacher.tensor("model.norm.weight"))
    assert torch.equal(student.tensor("model.embed_tokens.weight"), teacher.tensor("model.embed_tokens.weight"))


@pytest.mark.parametrize("settings", [{"lora_rank": -1}, {"lora_alpha": 4.0}, {"lora_rank": 2, "lora_alpha": -1.0}])
def test_an_impossible_rank_or_scale_is_named(settings):
    with pytest.raises(ValueError, match=list(settings)[-1]):
        DistillConfig(blocks=1, **settings)
