import json
from dataclasses import replace

import pytest

from compress.core.errors import QCompressError
from compress.evaluate.tasks.samples import fresh_samples, stored_samples
from compress.evaluate.tasks.suite import KINDS

ROWS = [{"name": name, "digest": f"d-{name}"} for name in ("base", "awq") for _ in range(2)]


def keep(folder, name, *lines):
    text = "".join(
        json.dumps(dict(zip(("id", "kind", "value", "answers", "turns", "reason"), line, strict=True))) + "\n"
        for line in lines
    )
    (folder / f"{name}.scores.jsonl").write_text(text)


def line(item, kind, value, answer):
    return item, kind, value, [answer], [f"ask {item}"], "why"


@pytest.fixture
def folder(tmp_path):
    keep(
        tmp_path,
        "base",
        *(line(*row) for row in [("a", "qa", 1, "x"), ("b", "qa", 1, "x"), ("c", "qa", 1, "x"), ("m", "math", 0, "1")]),
    )
    keep(
        tmp_path,
        "awq",
        *(line(*row) for row in [("a", "qa", 1, "x"), ("b", "qa", 1, "y"), ("c", "qa", 0, "z"), ("m", "math", 0, "1")]),
    )
    return tmp_path


def test_kinds_alternate_and_the_largest_difference_comes_first(folder):
    assert [row["id"] for row in stored_samples(folder, ROWS, 9)] == ["c", "m", "b", "a"]
    (first,) = stored_samples(folder, ROWS, 1)
    assert first["turns"] == ["ask c"] and first["kind"] == "qa"
    answers = [(answer["name"], answer["digest"], answer["answers"], answer["score"]) for answer in first["answers"]]
    assert answers == [("base", "d-base", ["x"], 1), ("awq", "d-awq", ["z"], 0)]


def test_a_missing_answer_file_is_named(folder):
    (folder / "awq.scores.jsonl").unlink()
    with pytest.raises(QCompressError, match=r"awq\.scores\.jsonl: missing; pass the folder"):
        stored_samples(folder, ROWS, 1)


@pytest.mark.parametrize("line", ['{"id": "a", "ki', "3", "\n[]"])
def test_a_damaged_answer_file_is_named(folder, line):
    (folder / "awq.scores.jsonl").write_text(line)
    with pytest.raises(QCompressError, match=r"awq\.scores\.jsonl: .*qcompress eval"):
        stored_samples(folder, ROWS, 1)


def test_fresh_answers_are_to_the_same_prompts_for_all_checkpoints(tiny_llama, tiny_qwen2, monkeypatch):
    for kind in KINDS.values():
        monkeypatch.setitem(KINDS, kind.name, replace(kind, max_tokens=4))
    samples = fresh_samples([tiny_llama, tiny_qwen2], 3)
    assert [row["kind"] for row in samples] == list(KINDS)[:3]
    assert all([answer["name"] for answer in row["answers"]] == ["llama", "qwen2"] for row in samples)
    assert samples[0]["answers"][0]["answers"] != samples[0]["answers"][1]["answers"]
