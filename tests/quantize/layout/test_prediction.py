import pytest

from compress.core.config import METHODS
from compress.quantize.layout.prediction import FACTOR, SHARES, RoundingKl, predict_kl


def test_every_method_has_a_share_and_none_is_above_plain_rounding():
    assert tuple(SHARES) == METHODS and FACTOR > 1
    assert all(0 < share <= SHARES["rtn"] for share in SHARES.values())


def test_a_packed_head_has_the_share_of_plain_rounding_with_every_method():
    plain, packed = predict_kl(RoundingKl(0.5, 0.0)), predict_kl(RoundingKl(0.5, 0.2))
    for method in METHODS:
        assert plain[method] == pytest.approx(0.5 * SHARES[method])
        assert packed[method] - plain[method] == pytest.approx(0.2 * SHARES["rtn"])
