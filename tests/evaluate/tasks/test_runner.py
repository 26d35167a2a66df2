"""Running a suite: batches, resuming, and which stored answers are reused. Tiny random models give random text."""

import json
from dataclasses import replace

import pytest

from compress.checkpoint.load import stop_tokens
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.core.sampling import Answer, Sampling
from compress.evaluate.tasks.answer_log import AnswerLog
from compress.evaluate.tasks.item import Score
from compress.evaluate.tasks.prompting import answer_items, batches, decode, encode
from compress.evaluate.tasks.runner import (
    TaskRun,
    open_transformers,
    retention_rows,
    score_checkpoint,
    scores_file,
    write_scores,
)
from compress.evaluate.tasks.samples import read_scores
from compress.evaluate.tasks.suite import KINDS, load_suite
from compress.model.sample import before_stop

SETTINGS = {"runtime": "transformers", "dtype": "float32", "decoding": "greedy"}
ROWS = [
    {"id": "a", "kind": "qa", "language": "en", "turns": ["who?"], "expected": {"answers": ["x"]}},
    {"id": "b", "kind": "qa", "language": "en", "turns": ["who was it that asked the question?"]}
    | {"expected": {"answers": ["x"]}},
    {"id": "c", "kind": "multi-turn", "language": "en", "turns": ["i am x.", "who am i?"]}
    | {"expected": {"answers": [None, ["x"]]}},
    {"id": "d", "kind": "multi-turn", "language": "en", "turns": ["i am z.", "who?"]}
    | {"expected": {"answers": [None, ["z"]]}},
]


class StandIn:
    """A runtime with this function as its `generate`."""

    def __init__(self, generate):
        self.generate = generate

    def close(self):
        pass


def answer_ids(tokenizer, text):
    return Answer(tokenizer(text, add_special_tokens=False)["input_ids"], True)


def silent(row):
    pass


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    for name in ("qa", "multi-turn"):
        monkeypatch.setitem(KINDS, name, replace(KINDS[name], max_tokens=8))


@pytest.fixture
def run(tmp_path):
    file = tmp_path / "suite.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    suite = load_suite(file)
    return TaskRun(suite, suite.items, tmp_path / "out", SETTINGS, batch_size=2)


def answers_of(path, items, batch):
    runtime, tokenizer = open_transformers(Checkpoint(path)), Checkpoint(path).tokenizer
    return {item.id: answers for item, answers in answer_items(runtime, tokenizer, items, batch)}


def test_the_batch_size_never_changes_an_answer(tiny_llama, run):
    one, two = (answers_of(tiny_llama, run.items, size) for size in (1, 4))
    assert one == two and set(one) == set("abcd") and len(one["c"]) == 2


def test_greedy_answers_equal_those_of_a_plain_loop(tiny_llama, run):
    import torch

    from compress.checkpoint.load import load_model

    model, tokenizer = load_model(tiny_llama), Checkpoint(tiny_llama).tokenizer
    prompt = encode(tokenizer, [{"role": "user", "content": "who?"}])
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    runtime = open_transformers(Checkpoint(tiny_llama))
    expected = before_stop(ids[len(prompt) :], stop_tokens(Checkpoint(tiny_llama)))
    assert runtime.generate([prompt], Sampling(12)) == [expected]


def test_a_batch_holds_items_with_equally_many_turns(run):
    groups = [[item.id for item in group] for group in batches(run.items, 3)]
    assert sorted(name for group in groups for name in group) == list("abcd")
    assert [set(group) for group in groups] == [{*"ab"}, {*"cd"}]
    assert [len(group) for group in batches(run.items, 1)] == [1] * 4


def test_items_of_two_kinds_share_a_batch_and_keep_their_limits(run, monkeypatch):
    short, long = run.items[0], replace(run.items[1], kind="math")
    monkeypatch.setitem(KINDS, "qa", replace(KINDS["qa"], max_tokens=2))
    monkeypatch.setitem(KINDS, "math", replace(KINDS["math"], max_tokens=5))
    requests = []

    class Letters:
        chat_template = None

        def __call__(self, text):
            return {"input_ids": [1]}

        def decode(self, ids, **options):
            return "".join(ids)

    def generate(prompts, sampling):
        requests.append((len(prompts), sampling.max_tokens))
        return [Answer(list("abcdefgh"[: sampling.max_tokens]), False) for _ in prompts]

    pairs = answer_items(StandIn(generate), Letters(), [long, short], 8)
    assert {item.id: answers for item, answers in pairs} == {short.id: ["ab"], long.id: ["abcde"]}
    assert requests == [(2, 5)]


def test_each_answer_stays_in_its_own_conversation(tiny_llama, run):
    seen = []

    def generate(prompts, sampling):
        seen.extend(tokenizer.decode(prompt) for prompt in prompts)
        return [answer_ids(tokenizer, f"so {len(seen)}") for _ in prompts]

    tokenizer = Checkpoint(tiny_llama).tokenizer
    pairs = list(answer_items(StandIn(generate), tokenizer, run.items[2:], 1))
    assert [answers for _, answers in pairs] == [["so 1", "so 2"], ["so 3", "so 4"]]
    assert "i am z" in seen[1] and "so 1" in seen[1] and "i am z" not in seen[3] and "so 3" in seen[3]


def test_without_a_chat_template_prompts_are_questions_and_answers(tiny_llama):
    tokenizer = Checkpoint(tiny_llama).tokenizer
    tokenizer.chat_template = None
    messages = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "x"}]
    text = tokenizer.decode(
        encode(tokenizer, [*messages, {"role": "user", "content": "why?"}]), skip_special_tokens=True
    )
    assert text == "Question: who?\nAnswer: x\nQuestion: why?\nAnswer:"
    ids = tokenizer(" me.\nQuestion: and you?", add_special_tokens=False)["input_ids"]
    assert decode(tokenizer, ids) == "me."


def test_answers_end_before_the_first_stop():
    answers = [before_stop(ids, {2, 9}) for ids in ([5, 6, 2, 7, 2], [5], [2])]
    assert answers == [([5, 6], True), ([5], False), ([], True)]


def test_a_resumed_run_ends_with_the_same_bytes(tiny_llama, run, tmp_path):
    whole = score_checkpoint(Checkpoint(tiny_llama), "m", replace(run, out=tmp_path / "whole"), silent)

    def interrupted(checkpoint):
        runtime, calls = open_transformers(checkpoint), []

        def once(prompts, sampling):
            calls.append(len(prompts))
            if len(calls) > 1:
                raise KeyboardInterrupt
            return runtime.generate(prompts, sampling)

        return StandIn(once)

    with pytest.raises(KeyboardInterrupt):
        score_checkpoint(Checkpoint(tiny_llama), "m", replace(run, open_runtime=interrupted), silent)
    file = run.out / "m.answers.jsonl"
    with file.open("a") as torn:
        torn.write('{"id": "c", "ans')
    reported = []
    assert score_checkpoint(Checkpoint(tiny_llama), "m", run, reported.append) == whole
    assert [row["items"] for row in reported] == ["2/4", "4/4"]
    assert file.read_text() == (tmp_path / "whole" / "m.answers.jsonl").read_text()


def test_a_stored_answer_is_never_generated_again(tiny_llama, run):
    def refuse(checkpoint):
        raise AssertionError("generated again")

    first = score_checkpoint(Checkpoint(tiny_llama), "m", run, silent)
    assert score_checkpoint(Checkpoint(tiny_llama), "m", replace(run, open_runtime=refuse), silent) == first


@pytest.mark.parametrize("answer", ["a\u2028b\u2029c\x85d", "half \ud800 of a pair", "\r\n\x0c"])
def test_any_text_can_be_stored_and_read_again(tmp_path, answer):
    header = {"checkpoint": "c", "suite": "s", "settings": {}}
    for _ in range(2):
        log = AnswerLog(tmp_path / "m.answers.jsonl", header)
        log.add("a", [answer])
        assert AnswerLog(tmp_path / "m.answers.jsonl", header).answers == {"a": [answer]}


def test_half_a_character_in_an_answer_reaches_the_scores(run):
    answers = {item.id: ["x \ud800"] * len(item.turns) for item in run.items}
    scores = {item.id: Score(1.0, "\ud800") for item in run.items}
    write_scores(scores_file(run.out.parent, "m"), run.items, scores, answers)
    assert read_scores(scores_file(run.out.parent, "m"))["a"]["answers"] == ["x \ud800"]


def test_the_amount_of_work_is_reported_before_any_model_is_opened(tiny_llama, tiny_qwen2, run):
    opened, reported = [], []

    def open_runtime(checkpoint):
        opened.append(len(reported))
        return open_transformers(checkpoint)

    retention_rows(tiny_llama, [tiny_qwen2], replace(run, open_runtime=open_runtime), reported.append)
    assert reported[0] == {"checkpoints": 2, "items": 4, "answers": 8} and opened[0] == 2
    batches = [row for row in reported if "eta" in row]
    assert [row["items"] for row in batches] == ["2/4", "4/4"] * 2
    assert batches[0]["eta"] > 0 and batches[1]["eta"] > 0 and batches[3]["eta"] == 0


def test_restart_discards_stored_answers_even_of_other_settings(tiny_llama, run):
    first = score_checkpoint(Checkpoint(tiny_llama), "m", run, silent)
    reported = []
    again = replace(run, settings=SETTINGS | {"dtype": "auto"}, restart=True)
    assert score_checkpoint(Checkpoint(tiny_llama), "m", again, reported.append) == first
    assert [row["items"] for row in reported] == ["0/4", "2/4", "4/4"]
    header, *rows = [json.loads(line) for line in (run.out / "m.answers.jsonl").read_text().splitlines()]
    assert header["settings"]["dtype"] == "auto" and len(rows) == 4


def test_answers_of_another_run_are_rejected_by_the_name_of_the_difference(tiny_llama, tiny_qwen2, run):
    score_checkpoint(Checkpoint(tiny_llama), "m", run, silent)
    others = {
        "the checkpoint's files have changed": (tiny_qwen2, run),
        "the tasks have changed": (tiny_llama, replace(run, suite=replace(run.suite, digest="sha256:0"))),
        "runtime changed from transformers to vllm": (
            tiny_llama,
            replace(run, settings=SETTINGS | {"runtime": "vllm"}),
        ),
    }
    for words, (path, other) in others.items():
        with pytest.raises(QCompressError, match=f"stored, {words}; discard them with --restart, or .*--out") as caught:
            score_checkpoint(Checkpoint(path), "m", other, silent)
        assert "sha256" not in caught.value.message


def test_a_damaged_answer_log_is_rejected_with_its_line(tiny_llama, run):
    score_checkpoint(Checkpoint(tiny_llama), "m", run, silent)
    file = run.out / "m.answers.jsonl"
    file.write_text(file.read_text().replace('{"id": "b"', '"id": "b"'))
    with pytest.raises(QCompressError, match=r"line \d is not a JSON object"):
        score_checkpoint(Checkpoint(tiny_llama), "m", run, silent)


def test_a_missing_candidate_is_rejected_before_the_reference_runs(tiny_llama, run, tmp_path):
    with pytest.raises(QCompressError, match="no such directory"):
        retention_rows(tiny_llama, [tmp_path / "none"], run)
    assert not run.out.exists()


def oracle(checkpoint):
    """A runtime whose answer is always "x"."""
    return StandIn(lambda prompts, sampling: [answer_ids(checkpoint.tokenizer, "x") for _ in prompts])


def test_rows_hold_the_score_of_every_kind_and_the_retention(tiny_llama, tiny_qwen2, run):
    runtimes = {tiny_llama: oracle, tiny_qwen2: open_transformers}
    by_path = replace(run, open_runtime=lambda checkpoint: runtimes[checkpoint.path](checkpoint))
    rows = retention_rows(tiny_llama, [tiny_qwen2], by_path)
    by_role = {(row["role"], row["kind"]): row for row in rows}
    assert by_role["reference", "qa"]["score"] == 1 and by_role["reference", "multi-turn"]["score"] == 0.5
    assert by_role["reference", "all"]["score"] == 0.75 and by_role["reference", "all"]["retention"] is None
    assert by_role["candidate", "qa"]["retention"] == 0 and by_role["candidate", "all"]["items"] == 4
    assert json.loads((run.out / "eval.json").read_text()) == rows
    lines = [json.loads(line) for line in (run.out / "llama.scores.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list("abcd") and lines[0]["reason"] == "contains x"
    assert not [path for path in run.out.iterdir() if path.name.startswith(".")]
