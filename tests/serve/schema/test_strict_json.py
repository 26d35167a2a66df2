"""JSON that cannot be written again, or that needs deep recursion, is refused when it is read."""

import pytest

from compress.serve.schema.strict_json import loads


@pytest.mark.parametrize(
    "text",
    ["1e999", "-1e999", "9" * 400, "NaN", '"\\ud800"', '{"\\udc00": 1}', b'"\xed\xa0\x80"', "[" * 980 + "]" * 980],
    ids=lambda text: str(text)[:12],
)
def test_a_value_that_cannot_be_written_again_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        loads(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ('"\\\\ud800"', "\\ud800"),
        (b"\xef\xbb\xbf[1.5, 7]", [1.5, 7]),
        ("[" * 64 + "]" * 64, None),
    ],
    ids=["pair", "backslash", "byte order mark", "64 levels"],
)
def test_ordinary_values_are_read(text, value):
    assert value is None or loads(text) == value
    loads(text)
