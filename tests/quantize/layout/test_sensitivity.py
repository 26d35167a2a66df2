"""Measured harm: zero for unchanged parts, larger for fewer bits, and measured for each part alone."""

from dataclasses import replace

import pytest
import torch

from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint
from compress.core.config import QuantizeConfig
from compress.core.dtypes import Dtype
from compress.core.grid import Scheme
from compress.quantize.layout.budget import plan_layouts
from compress.quantize.layout.plan import make_plan, read_source
from compress.quantize.layout.sensitivity import find_parts, log_probabilities, mean_kl, measure_harm, measure_parts
from compress.quantize.methods.rtn import rtn

IDS = torch.arange(48).view(2, 24)
COARSE, FINE = Scheme(4, 64, True, Dtype.float16), Scheme(8, 64, True, Dtype.float16)
CONFIG = QuantizeConfig(method="gptq", format="compressed-tensors", group_size=64)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen2"])
def test_streamed_logits_equal_those_of_the_whole_model(request, model):
    path = request.getfixturevalue(model)
    read = Checkpoint(path).tensor
    streamed = torch.stack(list(log_probabilities(read_source(path), IDS, (read, read, read))))
    with torch.no_grad():
        torch.testing.assert_close(streamed, load_model(path)(IDS).logits.log_softmax(-1), atol=1e-4, rtol=1e-4)
    assert mean_kl(streamed, streamed) == 0


def test_every_packed_module_is_in_exactly_one_part(tiny_qwen2, tiny_llama):
    for path in (tiny_qwen2, tiny_llama):
        source = read_source(path)
        modules = [module for part in find_parts(source) for module in part.modules]
        ends = {source.vocabulary.head, source.vocabulary.embedding}
        assert sorted(modules) == sorted({*source.linears, *ends})


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen2"])
def test_the_kl_of_a_part_is_that_of_a_model_with_only_it_rounded(request, model):
    path = request.getfixturevalue(model)
    source = read_source(path)
    parts = {part.name: part for part in measure_parts(source, Checkpoint(path).tensor, IDS, [COARSE, FINE])}
    whole, changed = load_model(path), load_model(path)
    for name, linear in changed.named_modules():
        if name.endswith("down_proj"):
            linear.weight.data = rtn(linear.weight, Scheme(group_size=64, sym=True)).dequantize()
    with torch.no_grad():
        p, q = (each(IDS).logits.log_softmax(-1) for each in (whole, changed))
    assert parts["mlp.down_proj"].kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-2)
    assert all(part.kl > 0 and part.errors[FINE] < part.errors[COARSE] / 50 for part in parts.values())


def test_a_16_bit_part_does_no_harm_and_a_mixed_part_does_less(tiny_qwen2):
    part = measure_parts(read_source(tiny_qwen2), Checkpoint(tiny_qwen2).tensor, IDS, [COARSE, FINE])[0]
    first, *_ = part.modules
    coarse = dict.fromkeys(part.modules, COARSE)
    assert part.harm({}, COARSE) == 0 and part.harm(coarse, COARSE) == pytest.approx(part.kl)
    assert part.harm(dict.fromkeys(part.modules, FINE), COARSE) < part.harm(coarse | {first: FINE}, COARSE) < part.kl


def test_measured_harm_falls_with_more_bits(tiny_qwen2, tmp_path):
    source = read_source(tiny_qwen2)
    plans = plan_layouts(source, CONFIG, ["compressed-tensors"])
    harm = measure_harm(tiny_qwen2, source, plans)
    plain, small, wide = (
        harm(make_plan(source, replace(CONFIG, **changes)))
        for changes in ({}, {"head_bits": 4, "embedding_bits": 8}, {"eight_bit": ("down_proj",)})
    )
    assert wide < plain < small
