import pytest

from compress.core.cards import CARDS, find_card
from compress.core.errors import QCompressError


def test_seconds_are_those_of_the_slower_of_arithmetic_and_memory():
    card = find_card("h100")
    assert card.seconds(card.flops, card.float32_flops, 0) == 2
    assert card.seconds(card.flops, 0, 5 * card.bandwidth) == 5


def test_an_unknown_card_is_an_error_that_names_the_others():
    with pytest.raises(QCompressError, match=r"--hardware h10: use one of t4, .*did you mean h100"):
        find_card("h10")
    assert len({card.name for card in CARDS}) == len(CARDS)
