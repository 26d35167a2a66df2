import pytest

from compress.core.errors import GateFailure
from compress.evaluate.history.falls import check_falls, format_change


@pytest.mark.parametrize(
    ("change", "unit", "text"),
    [(-3.04, "points", "-3.0 points"), (0.01234, "nats", "+0.0123 nats"), (1.5, "%", "+1.50 %"), (None, "%", "n/a")],
)
def test_a_change_has_a_sign_and_its_unit(change, unit, text):
    assert format_change({"change": change, "unit": unit}) == text


def test_every_fallen_result_is_named_and_no_other():
    rows = [
        {"name": "awq", "kind": kind, "change": -9.0, "unit": "points", "fell": kind != "math"}
        for kind in ("qa", "math", "json")
    ]
    with pytest.raises(GateFailure, match=r"awq got worse since v1: qa -9.0 points, json -9.0 points;"):
        check_falls(rows, "v1")
    check_falls(rows[1:2], "v1")
