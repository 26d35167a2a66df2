import json

import pytest

from compress.core.errors import QCompressError
from compress.evaluate.report.collect import retention_of, speed_of

COMPARED = [{"name": "base", "digest": "b"}, {"name": "awq", "digest": "a"}]
KEYS = {"kind": "qa", "items": 1, "errors": 0, "empty": 0, "score": 1.0, "retention": None}


def write(path, rows):
    path.write_text(json.dumps(rows))
    return path


def row(name, digest, role="candidate", **changes):
    return KEYS | {"name": name, "digest": digest, "role": role} | changes


def test_rows_are_matched_by_digest_and_other_rows_left_out(tmp_path):
    rows = [row("base", "b", "reference"), row("renamed", "a"), row("awq", "old")]
    write(tmp_path / "eval.json", rows)
    assert retention_of(tmp_path, COMPARED) == retention_of(tmp_path / "eval.json", COMPARED) == rows[:2]


def test_rows_of_other_checkpoints_are_rejected_by_name(tmp_path):
    file = write(tmp_path / "x.json", [row("other", "o", "reference"), row("awq", "a")])
    with pytest.raises(QCompressError, match=r"x\.json: these results were measured against other, not base"):
        retention_of(file, COMPARED)
    write(file, [row("base", "b", "reference"), row("awq", "old")])
    with pytest.raises(QCompressError, match="are for base, awq, but the candidates have other files"):
        retention_of(file, COMPARED)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "invalid JSON"),
        ('[{"name": NaN}]', "contains NaN"),
        ("[1]", "row 1 has no key name"),
        ('[{"name": "a"}]', "row 1 has no key digest"),
    ],
)
def test_a_malformed_result_file_is_named_with_the_defect(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(QCompressError, match=rf"x\.json: {words}"):
        retention_of(tmp_path / "x.json", COMPARED)


def test_measured_speed_is_matched_by_digest_and_predicted_by_name(tmp_path):
    rows = [row("base", "b", kind="measured"), row("awq", "a", kind="measured"), row("awq", None, kind="predicted")]
    file = write(
        tmp_path / "bench.json", [*rows, row("gone", None, kind="predicted"), row("awq", "x", kind="measured")]
    )
    assert speed_of(file, COMPARED) == rows
    predicted = write(file, [row("awq", None, kind="predicted")])
    assert speed_of(predicted, COMPARED) == [row("awq", None, kind="predicted")]
