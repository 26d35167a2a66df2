"""What an answer causes scores 0, in bounded time; only a scorer that fails on its example has no score."""

import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from compress.evaluate.tasks import json_schema, mathematics, python, questions, scoring
from compress.evaluate.tasks.item import Item, Score, score_item
from compress.evaluate.tasks.retention import retention_by_kind
from compress.evaluate.tasks.scoring import Scorer
from compress.evaluate.tasks.suite import KINDS, load_suite
from compress.sandbox.layers import Limits
from compress.sandbox.python import run_python
from compress.sandbox.run import SandboxError

pytestmark = pytest.mark.slow  # runs whole jobs

SCHEMA = {"type": "object", "properties": {"n": {"type": "number", "multipleOf": 0.1}}, "required": ["n"]}
ITEMS = {
    "qa": Item("q", "qa", "en", ("Who?",), {"answers": ["Mia"], "refused": ["Bo"]}),
    "math": Item("m", "math", "en", ("How many?",), {"number": "12"}),
    "json": Item("j", "json", "en", ("Which?",), {"schema": SCHEMA, "values": {"n": 1}}),
    "python": Item("p", "python", "en", ("Write f.",), {"function": "f", "tests": ["assert f(1) == 2"]}),
    "multi-turn": Item("c", "multi-turn", "en", ("Hi.", "Who?"), {"answers": [None, ["Mia"]]}),
}
TEXTS = {
    "40 units": "亿" * 40,
    "9,000 units": "十百千万亿" * 1800,
    "5,000 digits": "9" * 5000,
    "a fraction of 5,000 digits": "1/" + "9" * 5000,
    "a zero of 5,000 digits": "1/" + "0" * 5000,
    "a decimal of 5,000 digits": "0." + "9" * 5000,
    "a power": "9**9**9",
    "1e400": "1e400",
    "minus signs": "x = " + "-" * 3000 + "1",
    "answers": "Answer: " * 3000,
    "fences": "```\n" * 3000,
    "line ends": "```python\n" + "\n" * 20_000,
    "dots": "." * 20_000,
    "digits and commas": "1," * 10_000,
    "brackets": "[" * 60_000,
    "closed brackets": "[" * 3000 + "]" * 3000,
    "braces": '{"n":' * 3000 + "1" + "}" * 3000,
    "an infinite number": '{"n": 1e400}',
    "a huge number": '{"n": ' + "9" * 4000 + "}",
    "a number that is too long": '{"n": ' + "9" * 5000 + "}",
    "NaN": '{"n": NaN}',
    "half characters": "\ud800" * 9,
    "NUL": "\0" * 9,
    "marks": "a" + "\u0301" * 20_000,
    "line separators": "\u2028" * 99,
}
CODES = {
    "3,000 unary minus": "def f(x): return " + "-" * 3000 + "1",
    "3,000 parentheses": "def f(x): return " + "(" * 3000 + "1" + ")" * 3000,
    "90 loops": "def f(x):\n" + "".join(" " * level + " for x in x:\n" for level in range(90)) + " " * 91 + "pass",
    "9,000 additions": "def f(x): return " + "+".join("1" for _ in range(9000)),
    "a power": "def f(x): return 9**9**9",
    "a huge constant": "def f(x): return 10**(10**8)",
    "60,000 brackets": "import os\ndef f(x): os.write(4, b'\\0\\0\\xea\\x60' + b'[' * 60_000)",
    "NUL": "def f(x): return '\0'",
    "half a character": "def f(x): return '\ud800'",
    "bad escape": "def f(x): return '\\N{x}'",
    "endless": "def f(x):\n  while True: pass",
    "a deep value": "def f(x):\n  y = []\n  for _ in range(3000): y = [y]\n  return y",
}


@pytest.mark.parametrize("kind", ITEMS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_degenerate_text_scores_0(kind, text):
    start = time.monotonic()
    score = score_item(KINDS[kind], ITEMS[kind], [text] * len(ITEMS[kind].turns))
    assert score.value == 0 and len(score.reason) < 400, score
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_degenerate_code_scores_0(code, monkeypatch):
    short = partial(run_python, limits=Limits(seconds=3, cpu_seconds=1))
    monkeypatch.setattr("compress.evaluate.tasks.python.run_python", short)
    score = score_item(python.KIND, ITEMS["python"], [code])
    assert score.value == 0 and score.reason, score


def test_an_unknown_fault_is_the_answers_unless_the_example_fails_too():
    def score(expected, answers):
        if answers[0] != "Mia":
            raise OverflowError("too large")
        return Score(1.0, "")

    kind = replace(questions.KIND, score=score)
    assert score_item(kind, ITEMS["qa"], ["Bo"]) == Score(0.0, "cannot be scored: error: OverflowError: too large")
    always = replace(kind, score=lambda expected, answers: 1 / 0)
    assert score_item(always, ITEMS["qa"], ["Bo"]) == Score(None, "error: ZeroDivisionError: division by zero")


@pytest.mark.parametrize("kind", KINDS)
def test_every_bundled_item_can_score_its_example(kind):
    for item in [item for item in load_suite().items if item.kind == kind][:: 20 if kind == "python" else 1]:
        example = KINDS[kind].example(item.expected)
        assert len(example) == len(item.turns)
        assert KINDS[kind].score(item.expected, example).value is not None


@pytest.fixture
def scorer():
    scorer = Scorer()
    yield scorer
    scorer.close()


def test_the_scoring_process_gives_the_same_scores(scorer):
    texts = {"qa": ["Mia"], "math": ["So it is 12."], "json": ['{"n": 1}'], "multi-turn": ["", "Mia"]}
    texts["python"] = ["def f(x): return x + 1"]
    for kind, item in ITEMS.items():
        for answers in (texts[kind], ["亿" * 40] * len(item.turns), [""] * len(item.turns)):
            assert scorer.score(item, answers) == score_item(KINDS[kind], item, answers)
        assert scorer.score(item, texts[kind]).value == 1


SLOW = {"type": "object", "properties": {"n": {"pattern": "^(a+)+$"}}}


def test_an_answer_that_takes_too_long_scores_0_and_the_next_one_is_scored(scorer, monkeypatch):
    monkeypatch.setattr(scoring, "worker_command", program(MAIN.format("SECONDS = 2")))
    item = replace(ITEMS["json"], expected={"schema": SLOW})
    score = scorer.score(item, ['{"n": "' + "a" * 40 + '!"}'])
    assert score == Score(0.0, "cannot be scored: error: ended the scorer, or took more than 30 s")
    assert scorer.score(item, ['{"n": "aa"}']).value == 1


def program(code):
    """A stand-in for `worker_command` that runs this code."""
    return lambda module: [sys.executable, "-c", code]


MAIN = "import compress.evaluate.tasks.scoring as s, signal, os; s.{}; s.main()"


def test_an_answer_that_ends_the_scorer_scores_0(scorer, monkeypatch):
    ends = "json.loads = lambda line, loads=s.json.loads: os._exit(1) if b'Bo' in line else loads(line)"
    monkeypatch.setattr(scoring, "worker_command", program(MAIN.format(ends)))
    item = replace(ITEMS["qa"], expected={"answers": ["Mia"]})
    assert scorer.score(item, ["Bo"]).value == 0
    assert scorer.score(item, ["Mia"]).value == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel ends processes with their parent on Linux")
def test_all_processes_end_with_a_killed_parent():
    item = replace(ITEMS["python"], expected={"function": "f", "tests": ["f()"]})
    code = "from compress.evaluate.tasks.scoring import Scorer\nfrom compress.evaluate.tasks.item import Item\n"
    code += f"Scorer().score({item!r}, ['def f():\\n  while True: pass'])"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        end = time.monotonic() + 30
        while len(descendants(parent.pid)) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        processes = descendants(parent.pid)
        parent.kill()
    assert len(processes) == 3  # of the scores, of the answer, of the tests
    end = time.monotonic() + 5
    while any(running(process) for process in processes) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [process for process in processes if running(process)]


def descendants(process: int) -> list[int]:
    """The ids of the children of a process, and of their children."""
    children = [int(text) for text in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return [one for child in children for one in (child, *descendants(child))]


def running(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_scorer_that_always_ends_has_no_score(scorer, monkeypatch):
    monkeypatch.setattr(scoring, "worker_command", program("raise SystemExit(3)"))
    assert scorer.score(ITEMS["qa"], ["Mia"]).value is None


def test_a_sandbox_that_does_not_start_is_no_fault_of_the_answer(scorer, monkeypatch):
    setup = "KINDS['python'] and setattr(__import__('compress.sandbox.run').sandbox.run, 'BOOT', 'raise SystemExit(7)')"
    monkeypatch.setattr(scoring, "worker_command", program(MAIN.format(setup)))
    with pytest.raises(SandboxError, match="ended with code 7"):
        scorer.score(ITEMS["python"], ["def f(x): return 2"])


def test_retention_never_rises_because_answers_are_degenerate():
    right = ["12"] * 8 + ["11"] * 2
    reference = [score_item(mathematics.KIND, ITEMS["math"], [text]).value for text in right]
    degenerate = list(TEXTS.values())
    for count in range(9):
        texts = [degenerate[(count + place) % len(degenerate)] for place in range(count)] + right[count:]
        candidate = [score_item(mathematics.KIND, ITEMS["math"], [text]).value for text in texts]
        kinds, _ = retention_by_kind({"math": reference}, {"math": candidate})
        assert kinds["math"].items == 10 and kinds["math"].value == pytest.approx(100 * (8 - count) / 8)


def test_a_schema_downloads_nothing():
    schema = {"properties": {"n": {"$ref": "http://127.0.0.1:9/schema"}}}
    item = replace(ITEMS["json"], expected={"schema": schema})
    with pytest.raises(ValueError, match=r"\$ref http://127\.0\.0\.1:9/schema does not exist in the schema"):
        json_schema.check(item)
    assert score_item(json_schema.KIND, item, ['{"n": 1}']).value == 0
