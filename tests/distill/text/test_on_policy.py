"""On-policy text: its beginning is the window's, the rest the student's own words, the same for the same seed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.checkpoint.read import Checkpoint
from compress.distill.config import DistillConfig, StageConfig
from compress.distill.job import distill_checkpoint
from compress.distill.text.on_policy import continue_windows, draw, prompt_lengths, uniform_numbers
from compress.distill.text.packing import Batch

IDS = torch.randint(0, 40, (3, 16), generator=torch.Generator().manual_seed(1))


def random_llama() -> Any:
    torch.manual_seed(3)
    shape: dict[str, Any] = {"intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=48, hidden_size=16, num_hidden_layers=2, initializer_range=0.5, **shape)
    return LlamaForCausalLM(config).eval()


def go_on(
    ids: torch.Tensor = IDS,
    mask: torch.Tensor | None = None,
    documents: torch.Tensor | None = None,
    **changed: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    options = {"seed": 0, "step": 1, "vocab": 40, "end": None} | changed
    continued = continue_windows(random_llama(), Batch(ids, mask, documents), **options)
    return continued.ids, continued.mask


def test_the_prompt_stays_and_only_generated_tokens_count():
    ids, mask = go_on()
    assert ids.shape == mask.shape == IDS.shape and torch.equal(ids[:, :8], IDS[:, :8])
    assert not mask[:, :8].any() and mask[:, 8:].all() and not torch.equal(ids, IDS)


def test_each_step_draws_other_tokens_and_a_repeated_step_the_same():
    assert torch.equal(go_on()[0], go_on()[0])
    assert not torch.equal(go_on()[0], go_on(step=2)[0]) and not torch.equal(go_on()[0], go_on(seed=1)[0])


def test_more_rows_never_change_a_row():
    torch.testing.assert_close(go_on()[0][:1], go_on(IDS[:1])[0])


def test_no_token_is_drawn_beyond_the_vocabulary_or_after_the_end():
    end = int(go_on()[0][0, 9])
    ids, mask = go_on(end=end)
    over = (ids[0, 8:] == end).nonzero()[0].item() + 8
    assert mask[0, 8 : over + 1].all() and not mask[0, over + 1 :].any() and (ids[0, over:] == end).all()
    assert ids.max() < 40


def test_every_token_is_drawn_as_the_model_sees_the_whole_text():
    ids, _ = go_on()
    with torch.no_grad():
        logits = random_llama()(ids).logits[:, :, :40].float()
    numbers = uniform_numbers(0, 1, 3, 16)
    for place in range(8, 16):
        assert torch.equal(draw(logits[:, place - 1], numbers[:, place]), ids[:, place])


def test_the_student_continues_and_sees_only_the_last_document_of_a_prompt():
    documents = torch.tensor([[0] * 5 + [1] * 11, [2] * 16, [-1, *[3] * 6, *[4] * 6, *[5] * 3]])
    mask = torch.ones(3, 16, dtype=torch.bool)
    continued = continue_windows(random_llama(), Batch(IDS, mask, documents), seed=0, step=1, vocab=40, end=None)
    assert continued.documents is not None and continued.documents[2].tolist() == [-1, *[3] * 6, *[4] * 9]
    numbers = uniform_numbers(0, 1, 3, 16)
    for row, (first, start) in enumerate(((5, []), (0, []), (7, [0]))):
        alone = torch.cat([continued.ids[row, start].view(-1), continued.ids[row, first:]])[None]
        with torch.no_grad():
            logits = random_llama()(alone).logits[0, :, :40].float()
        for place in range(8, 16):
            drawn = draw(logits[None, place - first + len(start) - 1], numbers[row : row + 1, place])
            assert drawn == continued.ids[row, place]


def test_the_first_token_of_a_document_makes_no_answer_of_the_second():
    documents, mask = torch.tensor([[0] * 7 + [1] * 9]), torch.ones(1, 16, dtype=torch.bool)
    mask[0, 7] = False
    assert prompt_lengths(mask, documents).tolist() == [8] and prompt_lengths(mask.roll(-1, 1)).tolist() == [7]


def test_in_a_conversation_the_student_begins_where_an_answer_does():
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[0, 6:9] = mask[0, 14:] = mask[1, 1:3] = mask[2, 10:] = True
    assert prompt_lengths(mask).tolist() == [6, 8, 10]
    ids, counts = go_on(mask=mask)
    for row, start in enumerate((6, 8, 10)):
        assert torch.equal(ids[row, :start], IDS[row, :start])
        assert not counts[row, :start].any() and counts[row, start:].all()


def test_a_window_of_two_tokens_still_has_a_prompt_and_an_answer():
    assert prompt_lengths(torch.ones(2, 2, dtype=torch.bool)).tolist() == [1, 1]


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.1, 0.2, 0.7]]).log().expand(20_000, 3)
    shares = draw(logits, torch.rand(20_000, generator=torch.Generator().manual_seed(0))).bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.7]), rtol=0, atol=0.02)


def test_reverse_kl_alone_is_the_default_loss_of_an_on_policy_stage(tiny_llama: Path, tmp_path: Path):
    stages = (StageConfig("own", on_policy=True, steps=12),)
    whole = DistillConfig(blocks=1, seq_len=32, learning_rate=1e-3, eval_every=1, stages=stages)
    (resolved,) = whole.resolved()
    assert (resolved.divergence, resolved.alpha, resolved.temperature) == ("reverse_kl", 1.0, 1.0)
    named = DistillConfig(blocks=1, stages=(StageConfig("own", on_policy=True, divergence="jsd"),)).resolved()
    assert named[0].divergence == "jsd"
    row = distill_checkpoint(tiny_llama, tmp_path / "out", whole)
    curve = Checkpoint(tmp_path / "out").record["loss"]
    assert row["kl_after"] < row["kl_before"]
    assert [point["loss"] for point in curve] == pytest.approx([point["kl"] for point in curve], rel=1e-5)
