"""The memory estimate: what makes it less, and what a machine that has too little is told."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.core.cards import find_card
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig
from compress.distill.job import distill_checkpoint
from compress.distill.student.memory_estimate import gpu_parts, gpu_row, memory_parts
from compress.distill.text.packing import attention
from compress.model.malloc import saved_numbers

SIZES = {"vocab_size": 64, "hidden_size": 192, "intermediate_size": 512}
CONFIG = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8, "vocab_size": 1000}


def parts(**options):
    return memory_parts(10**7, 10**6, CONFIG, DistillConfig(blocks=1, **options), 1024)


def test_weights_gradients_and_moments_are_exact():
    estimate = parts()
    names = ("teacher", "student", "gradients", "moments", "best_weights")
    assert [estimate[name] for name in names] == [4 * 10**7, 4 * 10**6, 4 * 10**6, 8 * 10**6, 2 * 10**6]


@pytest.mark.parametrize("documents", [1, 2])
def test_the_numbers_that_autograd_keeps_of_a_block_are_counted_to_five_percent(documents):
    config = LlamaConfig(**SIZES, num_attention_heads=6, num_key_value_heads=2, head_dim=32, num_hidden_layers=1)
    kept = [count_saved(LlamaForCausalLM(config), documents)]
    config.num_hidden_layers = 3
    kept.append(count_saved(LlamaForCausalLM(config), documents))
    expected = saved_numbers(config.to_dict()) + (64 if documents > 1 else 0)
    assert (kept[1] - kept[0]) / 2 / 64 == pytest.approx(expected, rel=0.05 if documents > 1 else 0.15)


def count_saved(model, documents):
    """float32 numbers that autograd keeps of a forward over 64 tokens, parameters left out."""
    parameters, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept.update({storage.data_ptr(): storage.nbytes()} if storage.data_ptr() not in parameters else {})
        return tensor

    ids, apart = torch.arange(64)[None], torch.arange(64)[None] // (64 // documents)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(ids, use_cache=False, **attention(apart, model))
    return sum(kept.values()) / 4


def test_a_smaller_step_needs_less_than_a_whole_micro_batch():
    small, whole, large = (parts(batch_size=count, seq_len=256)["activations"] for count in (1, 4, 16))
    assert 4 * small == whole == large


@pytest.mark.parametrize(
    ("option", "less"),
    [
        ({"gradient_checkpointing": True}, "activations"),
        ({"cache": "cache"}, "teacher"),
        ({"lora_rank": 4}, "moments"),
    ],
)
def test_every_suggested_option_lowers_the_memory_estimate(option, less):
    assert parts(**option)[less] < 0.7 * parts()[less] and sum(parts(**option).values()) < sum(parts().values())


def test_too_little_memory_is_an_error_with_the_need_and_the_options(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 10**6}))
    with pytest.raises(
        QCompressError, match=r"needs about 0.\d GB.*use --gradient-checkpointing, --cache .*student 0.00"
    ):
        distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(blocks=1, steps=1, seq_len=8))


def on_gpu(**options):
    settings = DistillConfig(blocks=1, **options)
    return settings, gpu_parts(10**9, 10**8, CONFIG, settings, 8192, 10**5)


def test_a_gpu_holds_a_teacher_in_16_bits_and_moments_in_float32():
    parts = on_gpu()[1]
    assert (parts["teacher"], parts["gradients"], parts["moments"]) == (2 * 10**9, 4 * 10**8, 8 * 10**8)


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"cache": "c"}, {"lora_rank": 4}])
def test_every_cure_lowers_the_memory_of_a_gpu(options):
    assert sum(on_gpu(**options)[1].values()) < sum(on_gpu()[1].values())


def test_a_job_that_does_not_fit_a_card_names_what_makes_it_fit():
    settings, parts = on_gpu()
    row = gpu_row(parts | {"teacher": 30 * 10**9}, 1e9, settings, find_card("l4"))
    assert not row["fits"] and "--gradient-checkpointing" in row["cure"] and "FSDP2" in row["cure"]
    assert gpu_row(parts, 1e9, settings, find_card("l4"))["cure"] is None
