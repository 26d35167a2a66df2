"""Packing: a document in a window computes what it computes alone, whoever its neighbours are, or is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from calibration.windows import Windows, build_windows
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.distill.config import CaptureConfig, DistillConfig
from compress.distill.job import distill_checkpoint
from compress.distill.model import Model
from compress.distill.targets.cache import windows_digest
from compress.distill.targets.cached_teacher import CachedTeacher
from compress.distill.targets.capture import capture_teacher
from compress.distill.text.packing import (
    START,
    Batch,
    as_batch,
    check_on_policy,
    check_packing,
    later_first_tokens,
    pack,
    positions,
    single_document,
    visible,
)
from compress.distill.training.evaluator import StudentEvaluator
from compress.distill.training.gradient_checkpointing import recomputing
from compress.losses import cross_entropy, next_tokens
from tests.distill.random_models import CPU, SIZES, step_gradients

FIRST, SECOND = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(5))
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "eager llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation="eager")),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "mistral, sliding": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
    "gemma3, some sliding": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    ),
}


def model(name: str = "llama", seed: int = 1) -> Model:
    torch.manual_seed(seed)
    return Model(MODELS[name]().eval(), CPU)


def window(*parts: torch.Tensor, start: int | None = None) -> Batch:
    """One window of these documents."""
    ids, documents = torch.cat(parts), torch.cat([torch.full_like(part, i) for i, part in enumerate(parts)])
    if start is not None:
        ids, documents = (torch.cat([torch.tensor([one]), rest]) for one, rest in ((start, ids), (START, documents)))
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    mask[:, 1:] &= ~later_first_tokens(documents[None])
    return Batch(ids[None], mask, documents[None])


def states(network: Model, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return network.side(batch.ids, batch.documents).hidden[0]


@pytest.mark.parametrize("start", [None, 1])
@pytest.mark.parametrize("name", MODELS)
def test_a_documents_hidden_states_are_those_it_has_alone(name, start):
    network, before = model(name), 7 + (start is not None)
    alone = states(network, window(SECOND, start=start))[start is not None :]
    packed = states(network, window(FIRST, SECOND, FIRST, start=start))
    torch.testing.assert_close(packed[before : before + 6], alone, rtol=1e-5, atol=2e-6)
    everything = states(network, window(FIRST, SECOND, FIRST, start=start)._replace(documents=None))
    assert (everything[before : before + 6] - alone).abs().max() > 1e-2


def test_a_documents_loss_and_gradients_do_not_change_with_its_neighbours():
    pair = model(seed=1), model(seed=2)
    full: list[float] = []
    results = []
    for neighbour in (FIRST, FIRST.flip(0)):
        batch = window(neighbour, SECOND)
        batch.mask[:, :8] = False
        results.append(step_gradients(*pair, batch))
        full.append(step_gradients(*pair, batch._replace(documents=None))[0]["loss"])
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6) and full[0] != pytest.approx(full[1], rel=1e-3)
    for first, second in zip(results[0][1], results[1][1], strict=True):
        kept = (
            slice(None) if first.shape[0] != 40 else SECOND.unique()
        )  # the neighbour's tokens change only their own rows
        torch.testing.assert_close(first[kept], second[kept], rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_changes_no_bit_of_a_packed_step():
    student, teacher, batch = model(seed=1), model(seed=2), window(FIRST, SECOND, start=1)
    results = []
    for on in (False, True):
        with recomputing(student.model, on):
            results.append(step_gradients(student, teacher, batch))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(first, second) for first, second in zip(results[0][1], results[1][1], strict=True))


def test_windows_of_one_document_take_the_plain_path_bit_for_bit():
    network, batch = model(), window(torch.cat([FIRST, SECOND]), start=1)
    assert single_document(batch.documents) and not single_document(window(FIRST, SECOND).documents)
    assert torch.equal(states(network, batch), states(network, batch._replace(documents=None)))


def test_positions_begin_anew_and_all_see_the_start_token():
    documents = torch.tensor([[START, 4, 4, 5, 6, 6], [7, 7, 7, 8, 8, 8]])
    assert positions(documents).tolist() == [[0, 1, 2, 1, 1, 2], [0, 1, 2, 0, 1, 2]]
    assert visible(documents)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 1, 1],
    ]
    assert visible(documents, 2)[1, 0, 2].tolist() == [False, True, True, False, False, False]
    assert later_first_tokens(documents).int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 0, 0]]


def test_full_packing_leaves_windows_as_they_were(tiny_llama):

    windows = build_windows(["default"], Checkpoint(tiny_llama).tokenizer, n_samples=20, seq_len=64, start_token=1)
    full, packed = pack(windows, "full"), pack(windows, "documents")
    assert full.documents is None and torch.equal(full.mask, windows.mask) and torch.equal(full.ids, windows.ids)
    assert packed.documents is not None and (packed.documents[:, 0] == START).all()
    assert torch.equal(packed.documents[:, 1:], windows.documents[:, 1:])
    lost = windows.mask & ~packed.mask
    borders = windows.documents[:, 2:] != windows.documents[:, 1:-1]
    assert torch.equal(lost[:, 2:], borders & windows.mask[:, 2:]) and not lost[:, :2].any()
    assert len({windows_digest(one) for one in (full, packed, replace(packed, documents=packed.documents + 2))}) == 3


def test_held_out_scores_are_those_of_documents_alone():
    student, teacher, both = model(seed=1), model(seed=2), window(FIRST, SECOND)
    evaluator = StudentEvaluator(teacher, Windows(both.ids, both.mask, {}, both.documents), 40)
    nll = 0.0
    for part in (window(FIRST), window(SECOND)):
        with torch.no_grad():
            nll += cross_entropy(student.side(part.ids), *next_tokens(part.ids, part.mask), vocab=40).sum().item()
    assert evaluator.tokens == 12 and evaluator.measure(student).nll == pytest.approx(nll / 12, rel=1e-6)


def test_a_model_that_cannot_keep_documents_apart_is_refused_by_name():
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, state_size=4, num_hidden_layers=1))
    sided = object.__new__(Model)
    sided.model, sided.head = mamba.eval(), model().head
    with pytest.raises(QCompressError, match=r"it: MambaForCausalLM .* use --packing full"):
        check_packing(sided, "it", "documents", 12)
    check_packing(sided, "it", "full", 12)
    for name in MODELS:
        check_packing(model(name), "it", "documents", 12)


def test_packed_on_policy_text_refuses_a_sliding_window_below_seq_len():
    sliding = model("mistral, sliding").model
    with pytest.raises(
        QCompressError, match="on_policy: MistralForCausalLM generates with a sliding window of 4 tokens"
    ):
        check_on_policy(sliding, "documents", 12)
    check_on_policy(sliding, "documents", 4)
    check_on_policy(sliding, "full", 12)


def test_an_unknown_packing_is_named():
    for make in (lambda: DistillConfig(blocks=1, packing="some"), lambda: CaptureConfig(packing="some")):
        with pytest.raises(ValueError, match="packing=some: must be one of documents, full"):
            make()


def test_a_cache_refuses_equal_windows_with_other_document_borders():
    class Lent:
        path = "cache"

    ids = torch.stack([torch.cat([FIRST, SECOND])] * 2)
    documents = torch.stack([window(FIRST, SECOND).documents[0], window(ids[0]).documents[0]])
    windows = Windows(ids, torch.ones_like(ids, dtype=torch.bool), {}, documents)
    with pytest.raises(QCompressError, match="windows 0 and 1 have equal tokens but different masks or documents"):
        CachedTeacher(Lent(), windows, model())  # type: ignore[arg-type]
    assert len(as_batch(windows).split(1)) == 2


def test_a_cache_of_packed_documents_gives_the_loss_curve_of_the_teacher(tiny_llama, tmp_path):
    for name, count in (("data", 60), ("heldout", 12)):
        lines = [json.dumps({"text": f"{name} {i * i}: {'fox ' * (i % 5)}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    text = {"text": (str(tmp_path / "data.jsonl"),), "seq_len": 32}
    capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(samples=8, dtype="float32", **text))
    short = {"blocks": 1, "steps": 2, "eval_text": str(tmp_path / "heldout.jsonl"), "learning_rate": 3e-3, **text}
    curves: dict[str, list[float]] = {}
    for name, options in (("live", {}), ("cached", {"cache": str(tmp_path / "cache")}), ("full", {"packing": "full"})):
        distill_checkpoint(tiny_llama, tmp_path / name, DistillConfig(**short, **options))
        curves[name] = [row["loss"] for row in Checkpoint(tmp_path / name).record["loss"]]
    assert curves["cached"] == pytest.approx(curves["live"], rel=1e-6)
    assert curves["full"] != pytest.approx(curves["live"], rel=1e-3)
