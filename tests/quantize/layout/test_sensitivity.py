"""Measured harm: zero for unchanged parts, larger for fewer bits, and measured for each part alone."""

from dataclasses import replace

import pytest
import torch

from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint
from compress.core.config import QuantizeConfig
from compress.core.dtypes import Dtype
from compress.core.grid import Scheme
from compress.quantize.job import quantize_checkpoint
from compress.quantize.layout.budget import plan_layouts
from compress.quantize.layout.plan import make_plan, read_source
from compress.quantize.layout.sensitivity import (
    LayoutMeter,
    find_parts,
    log_probabilities,
    mean_kl,
    measure_parts,
    open_meter,
)
from compress.quantize.methods.rtn import rtn

IDS = torch.arange(48).view(2, 24)
COARSE, FINE = Scheme(4, 64, True, Dtype.float16), Scheme(8, 64, True, Dtype.float16)
CONFIG = QuantizeConfig(method="gptq", format="compressed-tensors", group_size=64)


def parts_of(path):
    source, read = read_source(path), Checkpoint(path).tensor
    return measure_parts(source, read, IDS, LayoutMeter(source, read, IDS).reference, [COARSE, FINE])


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
    parts = {part.name: part for part in parts_of(path)}
    whole, changed = load_model(path), load_model(path)
    for name, linear in changed.named_modules():
        if name.endswith("down_proj"):
            linear.weight.data = rtn(linear.weight, Scheme(group_size=64, sym=True)).dequantize()
    with torch.no_grad():
        p, q = (each(IDS).logits.log_softmax(-1) for each in (whole, changed))
    assert parts["mlp.down_proj"].kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-2)
    assert all(part.kl > 0 and part.errors[FINE] < part.errors[COARSE] / 50 for part in parts.values())


def test_a_16_bit_part_does_no_harm_and_a_mixed_part_does_less(tiny_qwen2):
    part = parts_of(tiny_qwen2)[0]
    first, *_ = part.modules
    coarse = dict.fromkeys(part.modules, COARSE)
    assert part.harm({}, COARSE) == 0 and part.harm(coarse, COARSE) == pytest.approx(part.kl)
    assert part.harm(dict.fromkeys(part.modules, FINE), COARSE) < part.harm(coarse | {first: FINE}, COARSE) < part.kl


def test_measured_harm_falls_with_more_bits(tiny_qwen2, tmp_path):
    source = read_source(tiny_qwen2)
    plans = plan_layouts(source, CONFIG, ["compressed-tensors"])
    harm = open_meter(tiny_qwen2, source).harm(plans)
    plain, small, wide = (
        harm(make_plan(source, replace(CONFIG, **changes)))
        for changes in ({}, {"head_bits": 4, "embedding_bits": 8}, {"eight_bit": ("down_proj",)})
    )
    assert wide < plain < small


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen2"])
def test_the_kl_of_rounding_a_layout_is_that_of_its_rounded_checkpoint(request, model, tmp_path):
    path = request.getfixturevalue(model)
    config = replace(CONFIG, method="rtn", head_bits=4, embedding_bits=8, eight_bit=("o_proj",))
    quantize_checkpoint(path, tmp_path / "out", config)
    with torch.no_grad():
        p, q = (load_model(each)(IDS).logits.log_softmax(-1) for each in (path, tmp_path / "out"))
    meter = LayoutMeter(read_source(path), Checkpoint(path).tensor, IDS)
    measured = meter.kl(make_plan(meter.source, config).schemes)
    assert measured == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-3)
    wide = make_plan(meter.source, replace(CONFIG, eight_bit=("layers",)))
    assert meter.rounding_kl(wide).linears < measured / 20 and meter.rounding_kl(wide).tables == 0
    linears, tables = meter.rounding_kl(make_plan(meter.source, config))
    assert linears == meter.kl(make_plan(meter.source, replace(config, head_bits=16, embedding_bits=16)).schemes)
    assert linears + tables == pytest.approx(max(measured, linears))
