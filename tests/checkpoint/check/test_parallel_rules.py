"""Rule TP on planned checkpoints: config.json and schemes decide, without tensors."""

from pathlib import Path

import pytest

from compress.checkpoint.check.parallel_rules import split_fault
from compress.checkpoint.check.table import make_table
from compress.checkpoint.read import read_json
from compress.core.config import QuantizeConfig
from compress.quantize.layout.plan import make_plan, read_source

CONFIGS = Path(__file__).parents[3] / "recipes" / "configs"


def fault(name, ranks, group_size=128, layout="awq"):
    path = CONFIGS / f"{name}.json"
    config = read_json(path) | {"quantization_config": {"quant_method": layout}}
    plan = make_plan(read_source(path), QuantizeConfig(method="rtn", format=layout, group_size=group_size))
    return split_fault(config, make_table(config), plan.schemes, ranks)


@pytest.mark.parametrize(
    ("name", "ranks", "group_size", "reason"),
    [
        ("qwen2.5-7b-instruct", 4, 128, None),
        ("qwen2.5-7b-instruct", 8, 128, "num_attention_heads: 28 is not a multiple of 8"),
        ("seed-student", 4, 128, "down_proj: 6912/4 = 1728 inputs is not a multiple of group_size 128"),
        ("seed-student", 4, 64, None),
        ("seed-student", 2, 128, None),
        ("qwen2.5-0.5b-instruct", 2, 128, "o_proj: 896/2 = 448 inputs is not a multiple of group_size 128"),
    ],
)
def test_a_planned_checkpoint_divides_or_the_fault_has_its_numbers(name, ranks, group_size, reason):
    result = fault(name, ranks, group_size)
    assert result is None if reason is None else reason in result and f"{ranks} GPUs cannot share" in result
