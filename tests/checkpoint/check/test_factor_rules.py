"""Factors between a packed linear and its source, where gptq gave inputs weights of their own."""

import pytest
import torch

from compress.checkpoint.check.factor_rules import GROUP, comparable
from compress.checkpoint.check.factors import Pair, fit_inputs, fit_outputs
from compress.core.grid import QuantizedWeight


@pytest.fixture
def make_pair():
    """make_pair(unlike, factor): a linear (16, 64) in groups of 32 whose first `unlike` inputs have other weights.

    The scales of the second group are multiplied by `factor`.
    """

    def make(unlike: int, factor: float = 1.0) -> Pair:
        source = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
        source[:, :unlike] *= 0.02
        stored = source.clone()
        stored[:, :unlike] = -300 * source[:, :unlike].roll(1, 0)
        scales = stored.view(16, 2, 32).abs().amax(-1) / 7
        codes = (stored.view(16, 2, 32) / scales[..., None]).round().clamp(-8, 7).view(16, 64) + 8
        weight = QuantizedWeight(
            codes.byte(), scales * torch.tensor([1.0, factor]), torch.full_like(scales, 8), sym=True
        )
        return Pair("linear", weight, source)

    return make


@pytest.mark.parametrize(("factor", "sound"), [(1.0, True), (-1.0, False), (0.05, False)])
def test_inputs_with_other_weights_do_not_count_but_factors_do(make_pair, factor, sound):
    pair = make_pair(unlike=1, factor=factor)
    counted = comparable(fit_inputs([pair]))
    assert counted.tolist() == [0.0] + [1.0] * 63
    groups = fit_outputs(pair, torch.ones(64), counted, measure_steps=False).groups[:, 1]
    assert bool(((groups > GROUP[0]) & (groups < GROUP[1])).all()) is sound


def test_all_inputs_count_if_many_are_unlike_their_source(make_pair):
    assert comparable(fit_inputs([make_pair(unlike=16)])).tolist() == [1.0] * 64


def test_a_group_is_compared_without_its_unlike_inputs(make_pair):
    pair = make_pair(unlike=1)
    everything = fit_outputs(pair, torch.ones(64), torch.ones(64), measure_steps=False).groups[:, 0]
    counted = fit_outputs(pair, torch.ones(64), comparable(fit_inputs([pair])), measure_steps=False).groups[:, 0]
    assert (counted - 1).abs().max() < (everything - 1).abs().max()
