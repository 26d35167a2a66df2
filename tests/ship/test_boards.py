"""Boards: every row of the hardware table has an image that runs on its compute capability."""

import re

import pytest

from compress.checkpoint.vllm_models import VLLM_VERSION
from compress.core.errors import QCompressError
from compress.evaluate.speed.hardware import HARDWARE
from compress.ship.boards import BOARDS, OFFICIAL, VLLM_ARCHITECTURES, find_board


def test_every_hardware_row_is_a_board():
    assert [board.hardware for board in BOARDS.values()] == list(HARDWARE)
    assert all(name == board.name for name, board in BOARDS.items())


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_the_image_is_pinned_and_has_code_for_the_board(board):
    if board.unified:
        assert re.fullmatch(r"[a-z./-]+@sha256:[0-9a-f]{64}", board.image) and board.runtime == "nvidia"
        assert board.image.endswith(board.image_digest) and board.command == ("vllm", "serve")
    else:
        assert board.image == OFFICIAL and OFFICIAL.endswith(f":v{VLLM_VERSION}") and not board.runtime
        assert board.capability in VLLM_ARCHITECTURES and board.image_digest is None
    assert re.fullmatch(r"0\.\d+\.\d+", board.vllm)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_board_names_the_pages_of_its_figures(board):
    assert len(board.sources) >= 3 and all(source.startswith("https://") for source in board.sources)


def test_the_official_image_has_no_code_for_orin():
    assert 87 not in VLLM_ARCHITECTURES and find_board("orin-nano").image != OFFICIAL


def test_an_unknown_board_lists_the_valid_names():
    with pytest.raises(QCompressError, match=r"--hardware orin-nan: .*; did you mean orin-nano\?"):
        find_board("orin-nan")
