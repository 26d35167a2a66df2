"""Scorers and suites: right and wrong answers, their reasons, and rejected items."""

import json
from dataclasses import replace
from fractions import Fraction

import pytest

from compress.core.errors import QCompressError
from compress.evaluate.tasks import conversation, json_schema, mathematics, python, questions
from compress.evaluate.tasks.item import Item, Score, score_item
from compress.evaluate.tasks.numbers import find_numbers, read_numeral
from compress.evaluate.tasks.spelling import names
from compress.evaluate.tasks.suite import load_suite, parse_item, select

ROW = {"id": "a", "kind": "qa", "language": "en", "turns": ["Who?"], "expected": {"answers": ["Mia"]}}


@pytest.mark.parametrize(
    ("answer", "spelling", "expected"),
    [
        ("The capital is **Paris**.", "paris", True),
        ("Parisian", "Paris", False),
        ("18 legs", "8", False),
        ("8.5 legs", "8", False),
        ("It has 8.", "8", True),
        ("1,000 metres", "1000", True),
        ("CAFÉ", "cafe", True),
        ("是李 白写的", "李白", True),
        ("ＣＯ２", "CO2", True),
        ("CO₂", "CO2", True),
        ("the Nile", "Nile", True),
        ("anything", "…", False),
    ],
)
def test_spellings_match_whole_words_only(answer, spelling, expected):
    assert names(answer, spelling) is expected


def test_a_rejected_spelling_makes_an_answer_wrong():
    expected = {"answers": ["Thursday"], "refused": ["Tuesday"]}
    assert questions.score(expected, ["Thursday"]).value == 1
    assert questions.score(expected, ["Tuesday or Thursday"]) == Score(0.0, "contains Tuesday")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,234.5", ["2469/2"]),
        ("-3/4", ["-3/4"]),
        (r"\frac{3}{4}", ["3/4"]),
        ("1 1/2", ["3/2"]),
        ("½", ["1/2"]),
        ("3-4", ["3", "4"]),
        ("x = −7.", ["-7"]),
        ("$1,200", ["1200"]),
        ("1/0", []),
        ("三分之二", ["2/3"]),
        ("负五", ["-5"]),
        ("一共有12个", ["12"]),
        ("none", []),
    ],
)
def test_numbers_are_read_exactly(text, numbers):
    assert [value for value, _ in find_numbers(text)] == [Fraction(number) for number in numbers]


@pytest.mark.parametrize(
    ("numeral", "value"),
    [
        ("十", 10),
        ("十五", 15),
        ("一百二", 120),
        ("一百零五", 105),
        ("两千", 2000),
        ("二〇二四", 2024),
        ("三千零五十", 3050),
        ("三万五", 35_000),
        ("十万", 100_000),
        ("三百二十一万", 3_210_000),
        ("一亿三千万", 130_000_000),
    ],
)
def test_chinese_numerals_are_read_exactly(numeral, value):
    assert read_numeral(numeral) == value


@pytest.mark.parametrize(
    ("answer", "number", "value"),
    [
        ("12 + 30 = 42", "42", 1),
        ("Answer: 42\nI used 3 steps.", "42", 1),
        ("The answer is 3 + 4 = 7.", "7", 1),
        (r"so \boxed{3/4}", "3/4", 1),
        ("0.75", "3/4", 1),
        ("0.33", "1/3", 1),
        ("0.3", "1/3", 0),
        ("0.34", "1/3", 0),
        ("答案：四十二", "42", 1),
        ("答案：42元，共3人", "42", 1),
        ("42.0", "42", 1),
        ("41", "42", 0),
        ("none", "42", 0),
        ("#### 1,000", "1000", 1),
    ],
)
def test_the_final_number_decides_the_score(answer, number, value):
    assert mathematics.score({"number": number}, [answer]).value == value


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('```json\n{"n": 1, "ok": true}\n```', "valid"),
        ('Sure {not json} {"n": 1.0, "ok": true}', "valid"),
        ('row["n"] is 1: {"n": 1, "ok": true}', "valid"),
        ('{"n": "1"}', "not valid"),
        ('{"n": 1}', "no ok"),
        ('{"n": 2, "ok": true}', "n is 2, not 1"),
        ('{"n": 1, "ok": false}', "ok is False"),
        ("[1, 2", "no JSON"),
        ("[" * 500, "no JSON"),
    ],
)
def test_json_is_validated_and_its_values_are_compared(answer, reason):
    score = json_schema.score({"schema": SCHEMA, "values": {"n": 1, "ok": True}}, [answer])
    assert score.reason.startswith(reason) and score.value == (reason == "valid")


def test_true_is_not_1_and_case_never_matters():
    assert not json_schema.equal(True, 1) and json_schema.equal(1, 1.0) and json_schema.equal("Red ", "red")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("```python\ndef f(x):\n    return x + 1\n```\nThis adds one.", "1 tests passed"),
        ("def f(x):\n    return x + 1\nThis adds one.", "1 tests passed"),
        ("Sure!\n\ndef f(x):\n    return x + 1\n\ndef g(x):\n    return (x", "1 tests passed"),
        ("```python\ndef f(x):\n    return x + 1", "1 tests passed"),
        ("def f(x): return x", "failed: assert f(1) == 2"),
        ("def f(x): return y", "error: assert f(1) == 2: NameError"),
        ("def f(x): return open('/etc/passwd').read()", "refused: assert f(1) == 2: PermissionError"),
        ("def g(x): return x", "no function f"),
        ("I cannot.", "no function f"),
    ],
)
def test_python_runs_and_the_reason_states_how_it_ended(answer, reason):
    score = python.score({"function": "f", "tests": ["assert f(1) == 2"]}, [answer])
    assert score.reason.startswith(reason) and score.value == (reason == "1 tests passed")


def test_a_conversation_scores_the_share_of_turns_that_are_right():
    expected = {"answers": [None, ["Mia"], ["Rex"]], "refused": [None, None, ["Max"]]}
    assert conversation.score(expected, ["", "Mia", "Rex"]).value == 1
    assert conversation.score(expected, ["Mia", "Bo", "Rex"]) == Score(0.5, "turn 2: expected Mia: Bo")
    assert conversation.score(expected, ["", "Mia", "Rex, not Max"]) == Score(0.5, "turn 3: contains Max")


def test_an_exception_in_a_scorer_is_not_a_wrong_answer():
    def broken(expected, answers):
        raise KeyError("x")

    kind = replace(questions.KIND, score=broken)
    assert score_item(kind, parse_item(ROW), ["Mia"]) == Score(None, "error: KeyError: 'x'")


def test_an_empty_answer_scores_0_with_the_reason_empty():
    assert score_item(questions.KIND, parse_item(ROW), [" \n"]) == Score(0.0, "empty")


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


JSON_ROW = ROW | {"kind": "json", "expected": {"schema": {"type": "objekt"}}}
TURNS_ROW = ROW | {"kind": "multi-turn", "turns": ["a", "b"]}
PYTHON_ROW = ROW | {"kind": "python", "expected": {"function": "f", "tests": ["assert f(1"]}}


def python_row(*tests):
    return ROW | {"kind": "python", "expected": {"function": "f", "tests": list(tests)}}


@pytest.mark.parametrize(
    "tests",
    [
        ["assert f(1) == 2 and all(f(x) for x in [1]) and (lambda y: f(y))(1)"],
        ["import math\nassert f(math.pi) == 3", "from os import path as p\nassert p"],
        ["max = 3\nassert f(max) == 4", "try: f(1)\nexcept ValueError as e: assert e.args"],
        ["def check(candidate): assert candidate(1) == 2", "check(f)"],
        ["from math import *\nassert f(pi) == 3"],
    ],
)
def test_ordinary_tests_are_accepted(tests):
    parse_item(python_row(*tests))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "invalid JSON at column 2 (Expecting"),
        ("[]", "expected a JSON object, not list"),
        ({**ROW, "id": 3}, "id must be a str"),
        ({**ROW, "kind": "song"}, "unknown kind song; use qa"),
        ({**ROW, "turns": []}, "turns must be one or more texts"),
        ({**ROW, "turns": ["a", "b"]}, "turns: qa needs exactly one turn, not 2"),
        ({**ROW, "extra": 1}, "unknown field extra"),
        ({**ROW, "expected": {}}, "expected.answers must be a list of texts"),
        ({**ROW, "kind": "math", "expected": {"number": "many"}}, "expected.number must be"),
        (JSON_ROW, "is not a JSON schema: 'objekt'"),
        (PYTHON_ROW, "is not Python"),
        (python_row("assert f(1) == g(2)"), "name g is undefined; call only f and built-ins"),
        (python_row("assert f(lambda x: x) == 1"), "a test passes a function to f; pass plain values only"),
        (python_row("assert f([1], key=len) == 1"), "a test passes a function to f"),
        ({**TURNS_ROW, "expected": {"answers": [["a"]]}}, "must have 2 entries, one per turn"),
        ({**TURNS_ROW, "expected": {"answers": [None, None]}}, "at least one turn needs an entry"),
        (ROW, "id a occurs twice"),
    ],
)
def test_a_malformed_item_is_rejected_with_file_and_line(tmp_path, row, reason):
    file = write(tmp_path / "suite.jsonl", ROW, "", row)
    with pytest.raises(QCompressError) as caught:
        load_suite(file)
    assert caught.value.message.startswith(f"{file}: line 3: ") and reason in caught.value.message
    assert "; correct or remove" in caught.value.message


def test_only_a_newline_ends_an_item(tmp_path):
    turns = ["a\u2028b", "c\u2029d\x85e"]
    row = ROW | {"kind": "multi-turn", "turns": turns, "expected": {"answers": [None, ["x"]]}}
    file = tmp_path / "suite.jsonl"
    file.write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode())
    (item,) = load_suite(file).items
    assert item.turns == tuple(turns)


def test_half_a_character_in_an_item_is_rejected_with_its_line(tmp_path):
    file = write(tmp_path / "suite.jsonl", ROW, ROW | {"id": "b", "turns": ["x \ud800"]})
    with pytest.raises(
        QCompressError, match=r"suite\.jsonl: line 2: \\ud800 is half a surrogate pair, not a character; correct"
    ):
        load_suite(file)


def test_a_file_or_kind_without_items_is_rejected(tmp_path):
    (tmp_path / "blank.jsonl").write_text("\n \n")
    with pytest.raises(QCompressError, match="no items"):
        load_suite(tmp_path / "blank.jsonl")
    with pytest.raises(QCompressError, match="the file is empty"):
        load_suite(write(tmp_path / "empty.jsonl"))
    with pytest.raises(QCompressError, match="no such file"):
        load_suite(tmp_path / "missing.jsonl")
    with pytest.raises(QCompressError, match="no item of kind math"):
        select(load_suite(write(tmp_path / "suite.jsonl", ROW)), ["math"])


def test_the_digest_changes_with_every_part_of_an_item(tmp_path):
    changes = [{}, {"id": "b"}, {"turns": ["Who is it?"]}, {"expected": {"answers": ["Bo"]}}, {"language": "zh"}]
    digests = {load_suite(write(tmp_path / "suite.jsonl", ROW | change)).digest for change in changes}
    assert len(digests) == len(changes)
    assert load_suite(write(tmp_path / "same.jsonl", ROW)).digest in digests


def test_a_language_without_instruction_gets_the_english_one():
    item = Item("a", "qa", "fr", ("Qui ?",), {"answers": ["Mia"]})
    assert questions.KIND.first_turn(item) == "Answer the question with a few words.\n\nQui ?"
