"""Fields of the routes for files are checked before any work."""

import pytest

from compress.serve.document_routes import QUESTION_LENGTH, fit_fields
from compress.serve.documents.content import MOST_CHARACTERS
from compress.serve.errors import RefusedError

FIELDS = {"text": "a b c", "room": 3, "how": "best", "question": "b?"}


def test_good_fields_pass():
    assert fit_fields(FIELDS) == ("a b c", 3, "best", "b?")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"text": None}, "text:"),
        ({"text": "x" * (MOST_CHARACTERS + 1)}, "text:"),
        ({"question": "x" * (QUESTION_LENGTH + 1)}, "question:"),
        ({"question": 3}, "question:"),
        ({"room": True}, "room:"),
        ({"room": -1}, "room:"),
        ({"how": "worst"}, "room:"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_any_other_field_is_refused_by_name(fields, named):
    with pytest.raises(RefusedError, match=f"^{named}"):
        fit_fields(FIELDS | fields)
