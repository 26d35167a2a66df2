import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from compress.checkpoint.read import Checkpoint
from compress.cli import cli
from compress.evaluate.tasks.prompting import answer_items
from compress.evaluate.tasks.runner import open_transformers
from compress.evaluate.tasks.suite import parse_item

pytestmark = pytest.mark.slow  # runs whole jobs

WINDOWS = ("--samples", 4, "--seq-len", 32)


def invoke(*arguments):
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.fixture
def suite(rounded, tmp_path):
    """Eight questions whose right answers are what `rounded` says."""
    rows = [{"id": str(n), "kind": "qa", "language": "en", "turns": [f"who is {n}?"]} for n in range(8)]
    items = [parse_item(row | {"expected": {"answers": ["x"]}}) for row in rows]
    runtime, tokenizer = open_transformers(Checkpoint(rounded)), Checkpoint(rounded).tokenizer
    said = {item.id: texts[0] for item, texts in answer_items(runtime, tokenizer, items, 3)}
    file = tmp_path / "own.jsonl"
    lines = [json.dumps(row | {"expected": {"answers": [said[row["id"]]]}}) for row in rows]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def history(tiny_llama, rounded, suite, text, tmp_path):
    """A history whose tag v1 holds an eval and a comparison of `rounded`."""
    kept = ("--history", tmp_path / "kept", "--tag", "v1")
    (tmp_path / "kept").mkdir()
    done = invoke("eval", rounded, "--reference", tiny_llama, "--suite", suite, "--out", tmp_path / "eval", *kept)
    assert done.exit_code == 0, done.output
    done = invoke("compare", tiny_llama, rounded, "--eval-text", text, *WINDOWS, *kept)
    assert done.exit_code == 0, done.output
    return tmp_path / "kept"


def watch(checkpoint, history, reference, text, *options):
    where = ("--history", history, "--out", history.parent / "watch", "--eval-text", text)
    return invoke("watch", checkpoint, "--baseline", "v1", "--reference", reference, *where, *options)


def test_an_unchanged_checkpoint_measured_again_exits_with_0(rounded, history, tiny_llama, text):
    for _ in range(2):
        result = watch(rounded, history, tiny_llama, text, "--json", "--max-drop", 0, "--force")
        assert result.exit_code == 0, result.output
        rows = json.loads(result.stdout)
        assert [row["kind"] for row in rows] == ["qa", "all", "kl", "perplexity"]
        assert all(row["change"] == 0 and not row["fell"] for row in rows) and rows[0]["before"] == 100
        assert all(row["measured"] for row in rows)
    assert not list((history.parent / "watch").iterdir())  # the next run asks anew
    rows = json.loads(invoke("history", history, "--json").stdout)
    assert [row["kind"] for row in rows if row["command"] == "watch" and "kind" in row] == ["qa", "all"] * 2


def test_device_cuda_without_a_gpu_is_one_error_line(rounded, history, tiny_llama, text, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = watch(rounded, history, tiny_llama, text, "--force", "--device", "cuda")
    assert result.exit_code == 1 and "--device cuda: torch finds no GPU" in result.stderr


@pytest.mark.slow
def test_the_files_of_the_baseline_are_not_measured_and_import_no_torch(rounded, history, tiny_llama, text):
    arguments = ["watch", rounded, "--baseline", "v1", "--history", history, "--reference", tiny_llama]
    arguments = [*map(str, arguments), "--eval-text", str(text), "--tag", "night"]
    code = f"import sys; from compress.cli import cli; cli({arguments!r}, standalone_mode=False); "
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Nothing was measured: files, text, tasks, limits and software are those of the bas" in result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()[2:]] == ["qa", "all", "KL", "perplexity"]
    (row,) = json.loads(invoke("history", history, "--tag", "night", "--json").stdout)
    assert row["measured"] is False and row["passed"] is True and "kl" not in row


def test_a_fall_that_was_measured_is_repeated_with_exit_code_3(tiny_qwen2, rounded, history, tiny_llama, text):
    name = ("--name", rounded.name)
    first, second = (watch(tiny_qwen2, history, tiny_llama, text, *name) for _ in range(2))
    assert first.exit_code == second.exit_code == 3
    assert first.stdout == second.stdout
    assert "Nothing was measured" in second.stderr and "Nothing was measured" not in first.stderr
    forced = watch(tiny_qwen2, history, tiny_llama, text, *name, "--force")
    assert forced.exit_code == 3 and "Nothing was measured" not in forced.stderr


def test_a_fallen_checkpoint_exits_with_3_and_names_every_change(tiny_qwen2, rounded, history, tiny_llama, text):
    result = watch(tiny_qwen2, history, tiny_llama, text, "--name", rounded.name)
    assert result.exit_code == 3, result.output
    assert f"Error: {rounded.name} got worse since v1: qa -100.0 points, all -100.0 points, kl +" in result.stderr
    assert "fell" in result.stdout and "yes" in result.stdout


def test_other_items_and_another_reference_are_rejected_by_name(rounded, history, suite, tiny_llama, tiny_qwen2, text):
    result = watch(rounded, history, tiny_qwen2, text)
    assert result.exit_code == 1 and "v1: the baseline has reference sha256:" in result.stderr
    suite.write_text(suite.read_text().replace("who is 1", "who was 1"))
    result = watch(rounded, history, tiny_llama, text)
    assert result.exit_code == 1 and "v1: the baseline used suite own.jsonl (sha256:" in result.stderr


def test_another_reference_than_in_verify_is_rejected(tiny_llama, tiny_qwen2, rounded, text, tmp_path):
    kept = ("--history", tmp_path / "kept.sqlite", "--tag", "v1")
    assert invoke("verify", tiny_llama, rounded, "--eval-text", text, *WINDOWS, *kept).exit_code == 0
    assert watch(rounded, tmp_path / "kept.sqlite", tiny_llama, text).exit_code == 0
    result = watch(rounded, tmp_path / "kept.sqlite", tiny_qwen2, text)
    assert result.exit_code == 1 and "v1: the baseline has reference sha256:" in result.stderr


def test_verify_and_check_store_their_verdicts_under_a_tag(tiny_llama, rounded, text, tmp_path):
    kept = ("--history", tmp_path / "kept.sqlite", "--tag", "v7")
    assert invoke("verify", tiny_llama, rounded, "--eval-text", text, *WINDOWS, "--max-kl", 1e-9, *kept).exit_code == 3
    assert invoke("check", rounded, *kept).exit_code == 0
    shutil.copytree(rounded, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").unlink()
    invoke("check", tmp_path / "broken", *kept)
    rows = json.loads(invoke("history", tmp_path / "kept.sqlite", "--tag", "v7", "--json").stdout)
    assert [(row["command"], row["passed"]) for row in rows][:2] == [("verify", False), ("check", True)]
    assert "is above the limit" in rows[0]["reason"] and "record" not in rows[0]


def test_a_tag_needs_a_history(rounded, tiny_llama):
    for command in (["check", rounded], ["verify", tiny_llama, rounded], ["eval", rounded, "--reference", rounded]):
        result = invoke(*command, "--tag", "v1")
        assert result.exit_code == 2 and "--tag needs --history" in result.stderr
