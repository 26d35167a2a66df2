import json
from pathlib import Path

import pytest

from compress.core.cards import find_card
from compress.core.config import QuantizeConfig
from compress.quantize.gpu_estimate import first_block, gpu_flops, gpu_parts, gpu_row, stage_shapes
from compress.quantize.layout.job_plan import plan_without_weights

QWEN = json.loads((Path(__file__).parents[2] / "recipes/configs/qwen2.5-7b-instruct.json").read_text())


def plan(config):
    return plan_without_weights("qwen", QWEN, config)


def test_linears_that_share_an_input_are_one_stage():
    layout = plan(QuantizeConfig())
    assert first_block(layout) == "model.layers.0."
    assert sorted(stage_shapes(layout)) == [(3584, 3584), (3584, 18944), (4608, 3584), (37888, 3584)]


def test_a_7b_model_fits_a_24_gb_card_and_takes_minutes_on_an_h100():
    config = QuantizeConfig(samples=128, seq_len=2048)
    small, large = (gpu_row(plan(config), config, find_card(name)) for name in ("l4", "h100"))
    assert small["fits"] and "states stay in files" in small["gpu_memory"]
    assert large["fits"] and 10 < large["seconds_at_least"] < 60


def test_the_operations_double_with_error_correction_and_with_tokens():
    flops = [gpu_flops(plan(one), one)[0] for one in (
        QuantizeConfig(error_correction=0, samples=4096), QuantizeConfig(error_correction=0, samples=8192),
        QuantizeConfig(error_correction=0.5, samples=4096),
    )]  # fmt: skip
    assert flops[1] / flops[0] == pytest.approx(2, rel=0.05)
    assert 1.5 < flops[2] / flops[0] < 2


def test_plain_rounding_needs_a_block_and_its_codes_only():
    config = QuantizeConfig(method="rtn")
    parts = gpu_parts(plan(config), config)
    assert parts["states"] == parts["solving"] == 0 and parts["block"] == 2 * parts["codes"]
