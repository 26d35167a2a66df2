import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.core.errors import QCompressError
from compress.distill.model import MicroBatch, Model, check_head

CPU = torch.device("cpu")
SIZES = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 1}


def random_model(dtype, head_scale):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(dtype).eval()
    model.lm_head.weight.data.normal_().mul_(head_scale)
    return Model(model, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_scale", [0.1, 4.0])
def test_a_plain_head_is_accepted_in_every_dtype(dtype, head_scale):
    check_head(random_model(dtype, head_scale), "teacher")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_with_a_bias_is_refused_in_every_dtype(dtype):
    model = random_model(dtype, 0.1)
    model.model.lm_head.bias = torch.nn.Parameter(3 * torch.randn(97).to(dtype))
    with pytest.raises(QCompressError, match="the output head of LlamaForCausalLM is not supported"):
        check_head(model, "teacher")


def out_of_memory_above(limit, sizes):
    def work(size):
        sizes.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return size

    return work


def test_a_micro_batch_is_halved_until_it_fits_and_stays_small(monkeypatch):
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    micro, sizes = MicroBatch(13, 32), []
    assert micro.fit(out_of_memory_above(4, sizes)) == 4
    assert micro.fit(out_of_memory_above(4, sizes)) == 4
    assert sizes == [13, 7, 4, 4]


def test_a_window_that_does_not_fit_is_an_error_with_its_length(monkeypatch):
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    with pytest.raises(QCompressError, match=r"1 x 32 tokens do not fit .* use --gradient-checkpointing"):
        MicroBatch(2, 32).fit(out_of_memory_above(0, []))
