"""The limit of plan --hardware: what the gate of ship lets pass, and nothing else."""

from pathlib import Path

import pytest

from compress.core.config import QuantizeConfig
from compress.core.errors import GateFailure, QCompressError
from compress.evaluate.speed.capacity import LIBRARIES
from compress.quantize.layout.overview import make_overview
from compress.quantize.layout.plan import make_plan, read_source
from compress.ship.board_plan import board_limit
from compress.ship.boards import find_board
from compress.ship.fit import SYSTEM
from compress.ship.gate import Request, check_fit

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
STUDENT, LARGE = CONFIGS / "seed-student.json", CONFIGS / "qwen2.5-7b-instruct.json"


def plan(**settings):
    layout = QuantizeConfig(method="rtn", **settings)
    return layout, make_plan(read_source(STUDENT), layout)


def test_the_limit_is_the_last_size_that_the_gate_lets_pass(headers):
    limit = board_limit(LARGE, "rtx-4060", 4096, 4, "auto")
    fit = check_fit(headers("qwen2.5-7b-instruct"), find_board("rtx-4060"), Request(4096, 4))
    assert limit.size == fit.usable - fit.kv_cache - fit.allowance
    assert board_limit(LARGE, "rtx-4060", 4096, 4, "int8_per_token_head").size > limit.size


def test_unified_memory_leaves_room_to_load_the_file():
    size, memory = board_limit(STUDENT, "orin-nano", 512, 1, "auto").size, find_board("orin-nano").hardware.memory
    assert 2 * size + LIBRARIES + SYSTEM in (memory, memory - 1)
    assert board_limit(STUDENT, "rtx-4060", 512, 1, "auto").size > 1.9 * size


@pytest.mark.parametrize(
    ("board", "settings", "accepted"),
    [
        ("4x-rtx-4090d", {"format": "awq", "group_size": 128}, False),
        ("4x-rtx-4090d", {"format": "awq", "group_size": 64}, True),
        ("t4", {"format": "awq", "group_size": 128}, True),
        ("t4", {"format": "compressed-tensors", "head_bits": 4, "embedding_bits": 8}, True),
        ("orin-nano", {"format": "compressed-tensors", "head_bits": 4, "embedding_bits": 8}, False),
        ("orin-nano", {"format": "compressed-tensors", "head_bits": 4}, False),
        ("orin-nano", {"format": "awq", "head_bits": 4}, True),
    ],
)
def test_a_layout_is_accepted_if_the_gate_would_let_it_pass(headers, board, settings, accepted):
    assert board_limit(STUDENT, board, 1024, 1, "auto").accept(*plan(**settings)) == accepted
    checkpoint = headers("seed-student", settings["format"], **{k: v for k, v in settings.items() if k != "format"})
    if accepted:
        assert check_fit(checkpoint, find_board(board), Request(1024))
    else:
        with pytest.raises(GateFailure):
            check_fit(checkpoint, find_board(board), Request(1024))


def test_a_cache_that_fills_the_board_leaves_no_room():
    with pytest.raises(QCompressError, match=r"--context 4096 --requests 800 leave no room .* 182\.2 GB too much"):
        board_limit(LARGE, "rtx-4060", 4096, 800, "auto")
    with pytest.raises(QCompressError, match="model's context of 32,768; lower --context"):
        board_limit(LARGE, "rtx-4060", 40_000, 1, "auto")


def test_plain_four_bits_are_preferred_with_the_largest_group_that_divides():
    limit = board_limit(STUDENT, "4x-rtx-4090d", 1024, 1, "auto")
    arguments = {"max_size": limit.size, "accept": limit.accept}
    plain = make_overview(STUDENT, read_source(STUDENT), prefer_plain=True, **arguments).recommended
    assert (plain.config.group_size, plain.config.eight_bit, plain.config.head_bits) == (64, (), 16)
    least_harm = make_overview(STUDENT, read_source(STUDENT), **arguments).recommended
    assert least_harm.harm < plain.harm and least_harm.plan.bytes <= limit.size
