"""Answers to learn from: the same bytes however they came about, and none that belong to another question."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calibration.errors import CalibrationError
from calibration.windows import build_windows
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.core.sampling import Answer, Sampling
from compress.distill.generate.answers import part_paths
from compress.distill.generate.choose import transformers_choice
from compress.distill.generate.job import generate_answers
from compress.model.sample import add_noise, nucleus
from compress.runtimes.protocol import RuntimeChoice

pytestmark = pytest.mark.slow  # runs whole jobs

GREEDY = Sampling(6)
DRAWN = Sampling(6, temperature=1.0, top_p=0.9, seed=3)
ROWS: list[dict[str, Any]] = [{"prompt": f"who asks question {number * 7}{'?' * number}"} for number in range(9)]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def runtime(tiny_llama: Path) -> RuntimeChoice:
    """A loaded model that answers three prompts per batch."""
    generate = transformers_choice().open(Checkpoint(tiny_llama), 0).generate
    return RuntimeChoice("transformers", 3, lambda checkpoint, length: StandIn(generate))


class StandIn:
    """A runtime with this function as its `generate`."""

    def __init__(self, generate: Any) -> None:
        self.generate = generate

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def ask(tiny_llama: Path, prompts: Path, runtime: RuntimeChoice):
    def ask(out: Path, sampling: Sampling = DRAWN, runtime: RuntimeChoice = runtime, **options: Any) -> dict[str, Any]:
        options = {"keep_truncated": True, "prompts": prompts, **options}
        return generate_answers(tiny_llama, out=out, sampling=sampling, choose=lambda length: runtime, **options)

    return ask


@pytest.fixture(scope="module")
def whole(ask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of an uninterrupted run, drawn."""
    out = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    ask(out)
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(out: Path, whole: Path) -> bool:
    """Answers and manifest are those of `whole`, and nothing else was left."""
    names = {path.name for path in out.parent.iterdir()} - {"prompts.jsonl"}
    return names == {"answers.jsonl", "answers.jsonl.manifest.json"} and all(
        (out.parent / name).read_bytes() == (whole.parent / name).read_bytes() for name in names
    )


def failing(runtime: RuntimeChoice, batches: int) -> RuntimeChoice:
    """The runtime, interrupted after this many batches."""

    def opened(checkpoint: Checkpoint, length: int) -> StandIn:
        model, left = runtime.open(checkpoint, length), iter(range(batches))

        def generate(*arguments: Any) -> list[Answer]:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return model.generate(*arguments)

        return StandIn(generate)

    return replace(runtime, open=opened)


def test_answers_are_conversations_in_prompt_order_and_only_answers_count(whole, tiny_llama):
    rows = lines(whole)
    assert [row["messages"][0]["content"] for row in rows] == [row["prompt"] for row in ROWS]
    assert [row["prompt"] for row in rows] == list(range(9))
    assert all(row["messages"][1]["role"] == "assistant" and row["messages"][1]["content"] for row in rows)
    tokenizer = Checkpoint(tiny_llama).tokenizer
    windows = build_windows([str(whole)], tokenizer, n_samples=1, seq_len=64, seed=0)
    kept = tokenizer.decode(windows.ids[0][windows.mask[0]])
    assert "question" not in kept and sum(row["messages"][1]["content"] in kept for row in rows) >= 1


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_batching_never_changes_an_answer(ask, runtime, tmp_path, sampling):
    ask(tmp_path / "three.jsonl", sampling)
    ask(tmp_path / "one.jsonl", sampling, replace(runtime, batch_size=1))
    assert lines(tmp_path / "three.jsonl") == lines(tmp_path / "one.jsonl")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_processes_write_the_answers_of_one(ask, whole, tmp_path, order):
    out = tmp_path / "answers.jsonl"
    first, second = (ask(out, rank=rank, ranks=2) for rank in order)
    assert first["batches"] in ("1 of 3", "2 of 3") and second["answers"] == 9 and same(out, whole)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_an_interrupted_run_generates_only_the_missing_answers(ask, runtime, whole, tmp_path, done):
    out = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(out, runtime=failing(runtime, done))
    assert not out.exists()
    ask(out, runtime=failing(runtime, 3 - done), ranks=1)
    assert same(out, whole)


def test_a_part_cut_off_at_any_byte_ends_in_the_same_bytes(ask, runtime, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path / "cut" / "answers.jsonl", runtime=failing(runtime, 2))
    part = part_paths(tmp_path / "cut" / "answers.jsonl")[0]
    size = part.stat().st_size
    for place in {0, 1, 100, size - 1, *random.sample(range(size), 4)}:
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / part.name).write_bytes(part.read_bytes()[:place])
        ask(folder / "answers.jsonl")
        assert same(folder / "answers.jsonl", whole), place


def test_another_number_of_processes_resumes_the_answers(ask, runtime, whole, tmp_path):
    out = tmp_path / "answers.jsonl"
    ask(out, rank=1, ranks=2)
    ask(out, runtime=failing(runtime, 2))
    assert same(out, whole)


def test_a_killed_command_ends_in_the_same_bytes(tiny_llama, tmp_path):
    rows = "".join(json.dumps({"prompt": f"the question {number}"}) + "\n" for number in range(24))
    (tmp_path / "many.jsonl").write_text(rows)
    out = tmp_path / "killed" / "answers.jsonl"
    arguments = ["generate", str(tiny_llama), "--prompts", str(tmp_path / "many.jsonl"), "--out", str(out)]
    arguments += ["--max-tokens", "48", "--batch-size", "2", "--runtime", "transformers", "--keep-truncated"]
    program = [sys.executable, "-c", "from compress.cli import cli; cli()", *arguments]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    count = random.randrange(1, 6)
    while process.poll() is None and sum(path.read_bytes().count(b"\n") for path in part_paths(out)) <= count:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert part_paths(out) and not out.exists()
    two = transformers_choice(batch_size=2)
    for path in (out, tmp_path / "whole" / "answers.jsonl"):
        generate_answers(
            tiny_llama,
            tmp_path / "many.jsonl",
            path,
            Sampling(48),
            choose=lambda length: two,
            keep_truncated=True,
        )
    assert same(out, tmp_path / "whole" / "answers.jsonl")


def test_a_finished_file_of_answers_is_not_generated_again(ask, runtime, whole, tmp_path):
    shutil.copytree(whole.parent, tmp_path / "copy")
    row = ask(tmp_path / "copy" / "answers.jsonl", runtime=failing(runtime, 0))
    assert row["answers"] == 9 and same(tmp_path / "copy" / "answers.jsonl", whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": replace(DRAWN, seed=4)}, "other settings, seed: 3 stored, 4 now"),
        ({"sampling": replace(DRAWN, temperature=0.5)}, "other settings, temperature: 1.0 stored, 0.5 now"),
        ({"sampling": replace(DRAWN, max_tokens=7)}, "other settings, max_tokens: 6 stored, 7 now"),
        ({"limit": 4}, "other settings, prompts: sha256:"),
        ({"keep_truncated": False}, "other settings, keep_truncated: True stored, False now"),
    ],
)
@pytest.mark.parametrize("state", ["whole", "part"])
def test_other_settings_are_refused_by_name_and_harm_nothing(ask, runtime, whole, tmp_path, change, message, state):
    out = tmp_path / "answers.jsonl"
    if state == "whole":
        for path in whole.parent.iterdir():
            shutil.copy(path, tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            ask(out, runtime=failing(runtime, 1))
    with pytest.raises(QCompressError, match=message):
        ask(out, **change)
    ask(out)
    assert same(out, whole)


def test_a_file_of_another_program_is_not_overwritten(ask, tmp_path):
    (tmp_path / "answers.jsonl").write_text("my own\n")
    with pytest.raises(
        QCompressError, match="exists, and qcompress did not write it; move it away, or use another --out"
    ):
        ask(tmp_path / "answers.jsonl")
    assert (tmp_path / "answers.jsonl").read_text() == "my own\n"


def test_truncated_empty_and_too_long_answers_are_dropped_and_counted(tiny_llama, tmp_path):
    rows = [{"prompt": text} for text in ("fox", "dog", "quick " * 1200, "brown")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = {"fox": Answer([40, 41], True), "dog": Answer([], True), "brown": Answer([42, 43, 44], False)}
    tokenizer = Checkpoint(tiny_llama).tokenizer

    def generate(prompts: Any, sampling: Any, seeds: Any) -> list[Answer]:
        return [next(answers[word] for word in answers if word in tokenizer.decode(ids)) for ids in prompts]

    def run() -> dict[str, Any]:
        return generate_answers(
            tiny_llama,
            tmp_path / "prompts.jsonl",
            tmp_path / "out.jsonl",
            Sampling(3),
            choose=lambda length: RuntimeChoice("-", 8, lambda checkpoint, length: StandIn(generate)),
        )

    row = run()
    counts = {name: row[name] for name in ("prompts", "answers", "tokens", "truncated", "empty", "too_long")}
    assert counts == {"prompts": 4, "answers": 1, "tokens": 2, "truncated": 1, "empty": 1, "too_long": 1}
    assert [line["prompt"] for line in lines(tmp_path / "out.jsonl")] == [0]
    reasons = {one["prompt"]: one["reason"] for one in row["left_out"]}
    assert reasons == {"line 2": "empty", "line 3": "too_long", "line 4": "truncated"}
    again = run()
    assert again == row | {"skipped": "unchanged", "seconds": again["seconds"]}


@pytest.mark.parametrize(
    ("name", "text", "conversations"),
    [
        ("a.txt", "who?\n\nwhy?\n", [["who?"], ["why?"]]),
        ("a.json", '[{"instruction": "Add.", "input": "1 2", "output": "3"}]', [["Add.\n\n1 2"]]),
        (
            "a.jsonl",
            '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}',
            [["s", "u"]],
        ),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "old"}]}',
            [["u"]],
        ),
    ],
)
def test_every_kind_of_prompt_is_read_without_its_answer(ask, tmp_path, name, text, conversations):
    (tmp_path / name).write_text(text)
    ask(tmp_path / "answers.jsonl", prompts=tmp_path / name)
    rows = lines(tmp_path / "answers.jsonl")
    assert [[message["content"] for message in row["messages"][:-1]] for row in rows] == conversations


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": 3}\n', "line 2: `prompt` is int, not a string"),
        ('{"prompt": "a"}\n\n{"question": "b"}\n', r"line 3: no usable key in \['question'\]"),
        ('{"prompt": "a"}\n{"prompt"\n', "line 2: invalid JSON"),
        ('{"instruction": " ", "input": ""}\n', "line 1: `instruction` is empty"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}\n', "line 1: all messages have the role assistant"),
        ("", r"the file is empty \(0 bytes\)"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_nothing_is_written(ask, tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(CalibrationError, match=message):
        ask(tmp_path / "answers.jsonl", prompts=tmp_path / "bad.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_full_disk_is_one_line_and_the_answers_so_far_stay(ask, runtime, whole, tmp_path, monkeypatch):
    def full(path: Any, *pieces: Any, **kind: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("compress.distill.generate.job.write_atomic", full)
    with pytest.raises(QCompressError, match=r"answers.jsonl: the disk is full, [\d.,]+ .?B free; make room"):
        ask(tmp_path / "answers.jsonl")
    monkeypatch.undo()
    ask(tmp_path / "answers.jsonl", runtime=failing(runtime, 0))
    assert same(tmp_path / "answers.jsonl", whole)


def test_draws_follow_the_probabilities():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    processor = add_noise(range(20_000), Sampling(1, temperature=0.5), torch.device("cpu"))
    drawn = processor(torch.empty(0), (p.log() / 2).expand(20_000, 4)).argmax(-1)  # temperature takes the half away
    assert torch.allclose(drawn.bincount(minlength=4) / 20_000, p, atol=0.012)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.7, 2), (0.96, 4)])
def test_a_nucleus_is_the_fewest_tokens_that_hold_top_p(top_p, kept):
    p = torch.tensor([[0.05, 0.5, 0.15, 0.3]], dtype=torch.float64)
    assert torch.isfinite(nucleus(p.log(), top_p)).sum() == kept
    assert nucleus(p.log(), top_p).argmax() == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 1, "temperature": -1.0}, "temperature=-1.0"),
        ({"max_tokens": 1, "top_p": 0.0}, "top_p=0.0"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


def test_restart_replaces_an_interrupted_run_of_other_settings(ask, runtime, whole, tmp_path):
    out = tmp_path / "other" / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(out, Sampling(3), runtime=failing(runtime, 1))
    with pytest.raises(QCompressError, match="other settings, max_tokens"):
        ask(out)
    ask(out, restart=True)
    assert same(out, whole)


def test_restart_keeps_finished_answers(ask, runtime, whole, tmp_path):
    out = tmp_path / "copy" / "answers.jsonl"
    shutil.copytree(whole.parent, out.parent)
    ask(out, runtime=failing(runtime, 0), restart=True)
    assert same(out, whole)
