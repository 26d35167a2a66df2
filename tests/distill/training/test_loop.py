"""The training loop: one reduction, one schedule, the best weights, and a stop at the first number that is none."""

from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from compress.checkpoint.load import load_model
from compress.core.errors import QCompressError
from compress.distill.config import TrainConfig
from compress.distill.model import MICRO_TOKENS, Model, check_head
from compress.distill.text.packing import as_batch
from compress.distill.training.evaluator import StudentEvaluator
from compress.distill.training.gradient_checkpointing import recomputing
from compress.distill.training.loop import (
    Objective,
    Trained,
    accumulate,
    learning_rate,
    make_accelerator,
    read_batches,
    restore,
    snapshot,
    train,
)
from compress.losses import distill_loss, next_tokens
from tests.distill.random_models import CPU, SIZES, random_windows, step_gradients
from tests.distill.random_models import random_llama as make_llama


def random_llama(seed: int) -> Model:
    return make_llama(seed, num_hidden_layers=1, tie_word_embeddings=True)


@pytest.fixture
def pair() -> tuple[Model, Model]:
    """A student and a teacher of one shape, different at random."""
    return random_llama(1), random_llama(2)


def run(pair: tuple[Model, Model], **settings: Any) -> tuple[Trained, StudentEvaluator, float]:
    student, teacher = pair
    options = {"steps": 30, "batch_size": 4, "seq_len": 12, "learning_rate": 1e-2, "eval_every": 10} | settings
    evaluator = StudentEvaluator(teacher, random_windows(6, seed=9), 40)
    before = evaluator.measure(student).kl
    windows = random_windows(16, seed=8)
    train_config = TrainConfig(**options)
    result = train(student, teacher, windows, evaluator, train_config, kl_before=before, dtype=torch.float32)
    return result, evaluator, before


def test_training_brings_the_student_nearer_to_its_teacher(pair):
    result, evaluator, before = run(pair)
    restore(pair[0].model, result.weights)
    assert evaluator.measure(pair[0]).kl == pytest.approx(result.best_kl, rel=1e-5)
    assert result.best_kl < 0.7 * before and result.stopped is None


def test_the_curve_has_a_row_for_every_step_and_the_heldout_kl_at_intervals(pair):
    result, _, _ = run(pair, steps=7, eval_every=3)
    assert [row["step"] for row in result.curve] == list(range(1, 8))
    assert all(isfinite(row[key]) for row in result.curve for key in ("loss", "kl", "ce"))
    assert [row["step"] for row in result.curve if "eval_kl" in row] == [3, 6, 7]
    expected = [0.7 * row["kl"] + 0.3 * row["ce"] for row in result.curve]
    assert [row["loss"] for row in result.curve] == pytest.approx(expected, rel=1e-5)


def test_the_same_seed_gives_the_same_curve():
    curves = [run((random_llama(1), random_llama(2)), steps=6)[0].curve for _ in range(2)]
    assert curves[0] == curves[1]


def test_the_teacher_is_left_as_it_was(pair):
    before = snapshot(pair[1].model, torch.float32)
    run(pair, steps=3)
    assert all(torch.equal(before[name], p) for name, p in pair[1].model.named_parameters())
    assert all(p.grad is None for p in pair[1].model.parameters())


def test_a_student_that_is_its_teacher_stays_where_it_is(pair):
    _, teacher = pair
    result, _, before = run((random_llama(2), teacher), alpha=1.0, steps=3, eval_every=1)
    assert before == 0 and result.best_step == 0
    assert all(row["loss"] == 0 for row in result.curve)


@pytest.mark.parametrize("tokens", [12, 24, 36, 1024])
def test_micro_batches_never_change_a_step(pair, monkeypatch, tokens):
    student, teacher = pair
    windows = random_windows(5, seed=3)
    windows.mask[2] = False

    def gradients(micro: int) -> tuple[dict[str, float], list[torch.Tensor]]:
        monkeypatch.setitem(MICRO_TOKENS, "cpu", micro)
        return step_gradients(student, teacher, as_batch(windows), batch_size=5, seq_len=12)

    whole, part = gradients(10**6), gradients(tokens)
    assert part[0] == pytest.approx(whole[0], rel=1e-5)
    for first, second in zip(part[1], whole[1], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "jsd"])
def test_the_settings_choose_the_divergence(pair, divergence):
    student, teacher = pair
    windows = random_windows(2, seed=3)
    settings = TrainConfig(batch_size=2, seq_len=12, divergence=divergence, beta=0.3)
    target = teacher.side(windows.ids)
    loss = Objective(student, settings, 40)(as_batch(windows), target, 7.0)
    labels, keep = next_tokens(windows.ids, windows.mask)
    options = {"alpha": 0.7, "temperature": 2.0, "divergence": divergence, "beta": 0.3, "total": 7.0}
    assert torch.equal(loss.loss, distill_loss(student.side(windows.ids), target, labels, keep, **options).loss)


def test_a_step_is_the_mean_over_all_tokens_that_count(pair, monkeypatch):
    student, teacher = pair
    monkeypatch.setitem(MICRO_TOKENS, "cpu", 24)
    settings, windows = TrainConfig(batch_size=5, seq_len=12), random_windows(5, seed=3)
    objective = Objective(student, settings, 40).requires_grad_(True)
    row = accumulate(make_accelerator(), objective, teacher, as_batch(windows))
    gradient = student.model.model.norm.weight.grad.clone()
    objective.zero_grad()
    keep = windows.mask[:, 1:]
    student_logits, teacher_logits = (
        m.model(windows.ids, use_cache=False).logits[:, :-1][keep] for m in (student, teacher)
    )
    log_s, p_t = (student_logits / 2).log_softmax(-1), (teacher_logits / 2).softmax(-1)
    kl = 4 * (p_t * (p_t.log() - log_s)).sum(-1).mean()
    ce = torch.nn.functional.cross_entropy(student_logits, windows.ids[:, 1:][keep])
    (0.7 * kl + 0.3 * ce).backward()
    assert row == pytest.approx({"loss": (0.7 * kl + 0.3 * ce).item(), "kl": kl.item(), "ce": ce.item()}, rel=1e-4)
    torch.testing.assert_close(gradient, student.model.model.norm.weight.grad, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_changes_no_bit_of_a_step(pair):
    student, teacher = pair
    windows, results, calls = random_windows(5, seed=3), [], []
    student.model.config.attention_dropout = 0.5
    student.model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for on in (False, True):
        with recomputing(student.model, on):
            results.append(step_gradients(student, teacher, as_batch(windows), batch_size=5, seq_len=12))
        assert not any(part.training for part in student.model.modules())
    assert results[0][0] == results[1][0] and len(calls) == 3  # once, then once and again
    assert all(torch.equal(first, second) for first, second in zip(results[0][1], results[1][1], strict=True))


def test_training_that_blows_up_stops_and_keeps_the_last_good_weights(pair):
    result, _, before = run(pair, learning_rate=1e30, eval_every=1)
    assert result.stopped is not None and "step" in result.stopped and len(result.curve) < 30
    assert all(torch.isfinite(tensor).all() for tensor in result.weights.values())
    assert result.best_kl <= before


def test_the_best_weights_are_kept_though_later_ones_are_worse(pair):
    result, evaluator, _ = run(pair, steps=40, learning_rate=0.5, eval_every=1)
    seen = {row["step"]: row["eval_kl"] for row in result.curve if "eval_kl" in row}
    if result.best_step:
        assert result.best_kl == min(seen.values()) == seen[result.best_step]
    else:
        assert result.best_kl < min(seen.values())
    restore(pair[0].model, result.weights)
    assert evaluator.measure(pair[0]).kl == pytest.approx(result.best_kl, rel=1e-5)


def test_a_weight_that_overflows_the_result_is_named(pair):
    with torch.no_grad():
        pair[0].model.model.norm.weight[3] = 1e6
    with pytest.raises(QCompressError, match=r"model.norm.weight: 1e\+06 overflows torch.float16"):
        snapshot(pair[0].model, torch.float16)


def test_the_learning_rate_rises_then_falls_to_a_tenth():
    rates = [learning_rate(step, 100, 2.0) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == max(rates) == 2.0 and rates[-1] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert learning_rate(1, 1, 2.0) == 2.0


def test_windows_are_read_in_order_and_again_in_another_order():
    windows = random_windows(5, seed=4)
    settings = TrainConfig(steps=5, batch_size=3, seq_len=12, seed=1)
    rows = torch.cat([batch.ids for _, batch in read_batches(windows, settings)])
    assert len(rows) == 15 and torch.equal(rows[:5], windows.ids) and not torch.equal(rows[5:10], windows.ids)
    for epoch in rows.split(5):
        assert sorted(map(tuple, epoch.tolist())) == sorted(map(tuple, windows.ids.tolist()))


@pytest.mark.parametrize(
    "model",
    [
        LlamaForCausalLM(LlamaConfig(**SIZES)),
        GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=7.0)),
        Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)),
    ],
    ids=["llama", "granite", "gemma2"],
)
def test_heads_give_the_logits_of_transformers(model):
    check_head(Model(model.eval(), CPU), "it")


def test_an_unsupported_head_is_refused():
    model = PhiForCausalLM(PhiConfig(**SIZES)).eval()
    with torch.no_grad():
        model.lm_head.bias += torch.arange(40.0)
    with pytest.raises(QCompressError, match="it: the output head of PhiForCausalLM is not supported"):
        check_head(Model(model, CPU), "it")


def test_heldout_scores_are_those_of_the_whole_logits(tiny_llama: Path, tiny_qwen2: Path):
    student, teacher = (Model(load_model(path), CPU) for path in (tiny_llama, tiny_qwen2))
    windows = random_windows(3, seed=5)
    evaluator = StudentEvaluator(teacher, windows, 100)
    keep, labels = windows.mask[:, 1:], windows.ids[:, 1:][windows.mask[:, 1:]]
    with torch.no_grad():
        student_log_p, teacher_log_p = (
            m.model(windows.ids, use_cache=False).logits[:, :-1][keep][:, :100].log_softmax(-1)
            for m in (student, teacher)
        )
    kl = (teacher_log_p.exp() * (teacher_log_p - student_log_p)).sum(-1).mean()
    scores = evaluator.measure(student)
    torch.testing.assert_close(torch.tensor(scores.kl), kl, rtol=1e-4, atol=1e-5)
    for score, logits in ((scores.nll, student_log_p), (evaluator.teacher_nll, teacher_log_p)):
        assert score == pytest.approx(-logits.gather(1, labels[:, None]).mean().item(), rel=1e-5)
