"""Models asked: batches, resuming, and whose answers they are. Tiny random models: what they say means nothing."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest

from compress.checkpoint.load import stop_tokens
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.evaluate.tasks.prompting import answer_items, batches, decode, encode
from compress.evaluate.tasks.runner import Asking, retention_rows, solve
from compress.evaluate.tasks.suite import KINDS, load_suite
from compress.model.sample import before_stop
from compress.runtimes.transformers_generate import transformers_engine

SETTINGS = {"engine": "transformers", "dtype": "float32", "decoding": "greedy"}
ROWS = [
    {"id": "a", "kind": "qa", "language": "en", "turns": ["who?"], "expected": {"answers": ["x"]}},
    {"id": "b", "kind": "qa", "language": "en", "turns": ["who was it that asked the question?"]}
    | {"expected": {"answers": ["x"]}},
    {"id": "c", "kind": "multi-turn", "language": "en", "turns": ["i am x.", "who am i?"]}
    | {"expected": {"answers": [None, ["x"]]}},
    {"id": "d", "kind": "multi-turn", "language": "en", "turns": ["i am z.", "who?"]}
    | {"expected": {"answers": [None, ["z"]]}},
]


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    for name in ("qa", "multi-turn"):
        monkeypatch.setitem(KINDS, name, replace(KINDS[name], max_tokens=8))


@pytest.fixture
def asking(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    suite = load_suite(file)
    return Asking(suite, suite.items, tmp_path / "out", SETTINGS, batch=2)


def answers_of(path, items, batch):
    with transformers_engine(Checkpoint(path)) as engine:
        return {item.id: answers for item, answers in answer_items(engine, Checkpoint(path).tokenizer, items, batch)}


def test_the_batch_never_changes_an_answer(tiny_llama, asking):
    one, two = (answers_of(tiny_llama, asking.items, size) for size in (1, 4))
    assert one == two and set(one) == set("abcd") and len(one["c"]) == 2


def test_greedy_answers_are_those_of_a_plain_loop(tiny_llama, asking):
    import torch

    from compress.checkpoint.load import load_model

    model, tokenizer = load_model(tiny_llama), Checkpoint(tiny_llama).tokenizer
    prompt = encode(tokenizer, [{"role": "user", "content": "who?"}])
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    with transformers_engine(Checkpoint(tiny_llama)) as engine:
        assert engine([prompt], 12) == [before_stop(ids[len(prompt) :], stop_tokens(Checkpoint(tiny_llama))).ids]


def test_batches_hold_like_items_and_each_item_once(asking):
    groups = [[item.id for item in group] for group in batches(asking.items, 3)]
    assert sorted(name for group in groups for name in group) == list("abcd") and [set(group) for group in groups] == [
        {*"ab"},
        {*"cd"},
    ]
    assert [len(group) for group in batches(asking.items, 1)] == [1] * 4


def test_each_answer_stays_in_its_own_conversation(tiny_llama, asking):
    seen = []

    def engine(prompts, max_tokens):
        seen.extend(tokenizer.decode(prompt) for prompt in prompts)
        return [tokenizer(f"so {len(seen)}", add_special_tokens=False)["input_ids"] for _ in prompts]

    tokenizer = Checkpoint(tiny_llama).tokenizer
    found = list(answer_items(engine, tokenizer, asking.items[2:], 1))
    assert [answers for _, answers in found] == [["so 1", "so 2"], ["so 3", "so 4"]]
    assert "i am z" in seen[1] and "so 1" in seen[1] and "i am z" not in seen[3] and "so 3" in seen[3]


def test_a_model_without_a_template_gets_questions_and_answers(tiny_llama):
    tokenizer = Checkpoint(tiny_llama).tokenizer
    tokenizer.chat_template = None
    asked = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "x"}]
    text = tokenizer.decode(encode(tokenizer, [*asked, {"role": "user", "content": "why?"}]), skip_special_tokens=True)
    assert text == "Question: who?\nAnswer: x\nQuestion: why?\nAnswer:"
    ids = tokenizer(" me.\nQuestion: and you?", add_special_tokens=False)["input_ids"]
    assert decode(tokenizer, ids) == "me."


def test_answers_end_before_the_first_stop():
    found = [before_stop(ids, {2, 9}) for ids in ([5, 6, 2, 7, 2], [5], [2])]
    assert found == [([5, 6], True), ([5], False), ([], True)]


def test_an_interrupted_run_goes_on_with_the_next_item_and_ends_the_same(tiny_llama, asking, tmp_path):
    whole = solve(Checkpoint(tiny_llama), "m", replace(asking, out=tmp_path / "whole"), lambda *told: None)

    @contextmanager
    def interrupted(checkpoint):
        with transformers_engine(checkpoint) as engine:
            calls = []

            def once(prompts, max_tokens):
                calls.append(len(prompts))
                if len(calls) > 1:
                    raise KeyboardInterrupt
                return engine(prompts, max_tokens)

            yield once

    with pytest.raises(KeyboardInterrupt):
        solve(Checkpoint(tiny_llama), "m", replace(asking, open_engine=interrupted), lambda *told: None)
    file = asking.out / "m.answers.jsonl"
    with file.open("a") as torn:
        torn.write('{"id": "c", "ans')
    told = []
    assert solve(Checkpoint(tiny_llama), "m", asking, lambda *progress: told.append(progress)) == whole
    assert told[0] == ("m", 2, 4) and told[-1] == ("m", 4, 4)
    assert file.read_text() == (tmp_path / "whole" / "m.answers.jsonl").read_text()


def test_what_is_answered_is_never_asked_again(tiny_llama, asking):
    def refuse(checkpoint):
        raise AssertionError("asked again")

    first = solve(Checkpoint(tiny_llama), "m", asking, lambda *told: None)
    assert solve(Checkpoint(tiny_llama), "m", replace(asking, open_engine=refuse), lambda *told: None) == first


def test_other_checkpoints_suites_and_settings_are_refused_by_name(tiny_llama, tiny_qwen2, asking):
    solve(Checkpoint(tiny_llama), "m", asking, lambda *told: None)
    others = {
        "checkpoint": (tiny_qwen2, asking),
        "suite": (tiny_llama, replace(asking, suite=replace(asking.suite, digest="sha256:0"))),
        "settings": (tiny_llama, replace(asking, settings=SETTINGS | {"engine": "vllm"})),
    }
    for name, (path, other) in others.items():
        with pytest.raises(QCompressError, match=rf"m\.answers\.jsonl: holds answers with {name} .*--out"):
            solve(Checkpoint(path), "m", other, lambda *told: None)


def test_a_damaged_answer_file_is_refused_with_its_line(tiny_llama, asking):
    solve(Checkpoint(tiny_llama), "m", asking, lambda *told: None)
    file = asking.out / "m.answers.jsonl"
    file.write_text(file.read_text().replace('{"id": "b"', '"id": "b"'))
    with pytest.raises(QCompressError, match=r"line \d: is no answer"):
        solve(Checkpoint(tiny_llama), "m", asking, lambda *told: None)


def test_a_candidate_that_is_not_there_is_refused_before_the_reference_is_asked(tiny_llama, asking, tmp_path):
    with pytest.raises(QCompressError, match="no such directory"):
        retention_rows(tiny_llama, [tmp_path / "none"], asking)
    assert not asking.out.exists()


def oracle(checkpoint):
    """An engine that answers every question with "x"."""

    @contextmanager
    def opened():
        ids = checkpoint.tokenizer("x", add_special_tokens=False)["input_ids"]
        yield lambda prompts, max_tokens: [ids for _ in prompts]

    return opened()


def test_rows_say_the_score_of_every_kind_and_what_is_kept(tiny_llama, tiny_qwen2, asking):
    engines = {tiny_llama: oracle, tiny_qwen2: transformers_engine}
    by_path = replace(asking, open_engine=lambda opened: engines[opened.path](opened))
    rows = retention_rows(tiny_llama, [tiny_qwen2], by_path)
    found = {(row["role"], row["kind"]): row for row in rows}
    assert found["reference", "qa"]["score"] == 1 and found["reference", "multi-turn"]["score"] == 0.5
    assert found["reference", "all"]["score"] == 0.75 and found["reference", "all"]["retention"] is None
    assert found["candidate", "qa"]["retention"] == 0 and found["candidate", "all"]["items"] == 4
    assert json.loads((asking.out / "eval.json").read_text()) == rows
    lines = [json.loads(line) for line in (asking.out / "llama.scores.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list("abcd") and lines[0]["reason"] == "says x"
    assert not [path for path in asking.out.iterdir() if path.name.startswith(".")]
