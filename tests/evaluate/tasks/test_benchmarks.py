"""The adapter to lm-eval: task settings, HumanEval in the sandbox, scores of samples."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from compress.cli import cli
from compress.core.errors import QCompressError
from compress.evaluate.tasks.benchmarks import run_completion, sample_scores, task_settings, whole_program, write_task

DOC = {"prompt": 'def f(x):\n    """One more."""\n', "entry_point": "f"}
DOC |= {"test": "def check(candidate):\n    assert candidate(1) == 2\n"}


@pytest.mark.parametrize(
    ("completion", "passed"),
    [
        ("    return x + 1\n", 1),
        ("    return x + 1\n\nprint(f(1))\nopen('/etc/passwd')", 1),
        ("```python\ndef f(x):\n    return x + 1\n```\nDone.", 1),
        ("    return x\n", 0),
        ("    return open('/etc/passwd')\n", 0),
        ("", 0),
    ],
)
def test_humaneval_runs_completions_and_whole_functions_in_the_sandbox(completion, passed):
    assert run_completion(DOC, [completion]) == {"pass@1": passed}


def test_a_completion_ends_where_another_statement_begins():
    assert whole_program(DOC, "    return x\ndef g(): pass") == DOC["prompt"] + "    return x"


@pytest.fixture
def data(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    row = {"question": "1 + 1?", "answer": "It is 2.\n#### 2"}
    for name in ("train", "test"):
        (tmp_path / "gsm8k" / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 6)
    (tmp_path / "HumanEval.jsonl").write_text(json.dumps(DOC | {"task_id": "0", "canonical_solution": ""}) + "\n")
    return tmp_path


def test_local_data_changes_nothing_else_of_a_task(data, tmp_path):
    settings = task_settings("gsm8k", data)
    file = Path(write_task(settings, Path("/lm_eval"), tmp_path))
    written = yaml.safe_load(file.read_text())
    assert written["include"] == "/lm_eval/tasks/gsm8k/gsm8k.yaml" and written["dataset_path"] == "json"
    assert written["dataset_kwargs"]["data_files"]["test"] == str(data / "gsm8k" / "test.jsonl")
    assert task_settings("mmlu", None) == "mmlu" == write_task("mmlu", Path("/lm_eval"), tmp_path)
    assert task_settings("humaneval", None)["process_results"] is run_completion


def test_missing_data_is_named_in_the_error(data):
    (data / "HumanEval.jsonl").unlink()
    with pytest.raises(QCompressError, match=r"HumanEval\.jsonl: this file and HumanEval\.jsonl\.gz are missing"):
        task_settings("humaneval", data)
    with pytest.raises(QCompressError, match="mmlu: --task-data supports gsm8k, humaneval only"):
        task_settings("mmlu", data)


def test_the_score_is_the_first_metric_after_the_last_filter():
    samples = [
        {"doc_id": doc, "filter": filtered, "metrics": ["exact_match"], "exact_match": value}
        for filtered, values in (("strict", (0, 0)), ("flexible", (1, 0)))
        for doc, value in enumerate(values)
    ]
    assert {item: score.value for item, score in sample_scores(samples[:2] + samples[:1:-1]).items()} == {
        "0": 1,
        "1": 0,
    }


def test_tasks_exclude_the_options_of_a_suite(tiny_llama):
    for options in (["--tasks", "gsm8k", "--kind", "qa"], ["--task-data", "x"]):
        result = CliRunner().invoke(cli, ["eval", str(tiny_llama), "--reference", str(tiny_llama), *options])
        assert result.exit_code == 2 and "--tasks" in result.stderr


def test_lm_eval_scores_both_checkpoints_from_local_data(tiny_llama, data):
    pytest.importorskip("lm_eval")
    from compress.evaluate.tasks.benchmarks import benchmark_rows

    rows = benchmark_rows(tiny_llama, [tiny_llama], ["gsm8k", "humaneval"], task_data=data, limit=1, batch_size=1)
    assert [row["kind"] for row in rows] == ["gsm8k", "humaneval", "all"] * 2
    assert all(row["items"] == 1 for row in rows if row["kind"] != "all")
