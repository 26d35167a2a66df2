"""qcompress eval: exit codes, one-line errors, and rows for machines."""

import json

import pytest
from click.testing import CliRunner

from compress.cli import cli
from compress.core.errors import GateFailure
from compress.evaluate.tasks.job import check_retention
from compress.evaluate.tasks.settings import KIND_NAMES
from compress.evaluate.tasks.suite import KINDS
from compress.sandbox.run import SandboxError

ROW = {"id": "a", "kind": "qa", "language": "en", "turns": ["who?"], "expected": {"answers": ["zebra"]}}


@pytest.fixture
def suite(tmp_path):
    file = tmp_path / "suite.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    return file


def evaluate(*arguments):
    return CliRunner().invoke(cli, ["eval", *map(str, arguments)])


def test_a_reference_that_scores_0_gives_no_retention(tiny_llama, tiny_qwen2, suite, tmp_path):
    options = ("--reference", tiny_llama, "--suite", suite, "--out", tmp_path / "out")
    shown = evaluate(tiny_qwen2, *options)
    assert shown.exit_code == 0 and "n/a" in shown.stdout, shown.output
    rows = json.loads(evaluate(tiny_qwen2, *options, "--json").stdout)
    assert [row["kind"] for row in rows] == ["qa", "all"] * 2 and rows[2]["retention"] is None
    gated = evaluate(tiny_qwen2, *options, "--min-retention", 85)
    assert gated.exit_code == 3 and "no kind has a retention" in gated.stderr


def test_a_malformed_suite_exits_1_and_names_the_line(tiny_llama, suite, tmp_path):
    suite.write_text(suite.read_text() + "{}\n")
    result = evaluate(tiny_llama, "--reference", tiny_llama, "--suite", suite, "--out", tmp_path / "out")
    assert result.exit_code == 1 and f"Error: {suite}: line 2: id is missing" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_option_lists_every_kind():
    assert tuple(KINDS) == KIND_NAMES


def test_without_a_sandbox_python_is_rejected_before_any_work(tiny_llama, tmp_path, monkeypatch):
    def none():
        raise SandboxError("Linux only")

    monkeypatch.setattr("compress.evaluate.tasks.job.containment", none)
    result = evaluate(tiny_llama, "--reference", tiny_llama, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "Linux only; choose other tasks than python with --kind" in result.stderr
    assert not (tmp_path / "out").exists()


def row(kind: str, retention: float | None, **others: int) -> dict:
    about = {"name": "awq", "role": "candidate", "kind": kind, "items": 60, "errors": 0}
    return about | {"retention": retention} | others


def test_the_gate_names_every_kind_below_the_limit_and_no_other():
    with pytest.raises(GateFailure) as caught:
        check_retention(
            [row("qa", 84.9), row("math", 85.0), row("json", None), row("python", 20.0, items=5), row("all", 50.0)], 85
        )
    assert caught.value.message.startswith(
        "awq: qa retains 84.9 % on 60 tasks; "
        "awq: python retains 20.0 % on 5 tasks, too few to tell, less than 85 %; quantize"
    )
    check_retention([row("qa", 85.0), row("json", None), row("all", 85.0)], 85)


def test_a_candidate_without_retention_never_passes_the_gate():
    with pytest.raises(GateFailure, match="awq: no kind has a retention: the reference scores 0 on every kind"):
        check_retention([row("qa", None), row("all", None)], 85)


def test_the_gate_reports_failed_scorers_as_such():
    failed = {"items": 0, "errors": 4}
    with pytest.raises(GateFailure, match=r"awq: no kind has a retention: scorers failed on all 4 answers"):
        check_retention([row("qa", None, **failed), row("all", None, **failed)], 85)


def test_an_interrupted_run_prints_the_command_to_resume(tiny_llama, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("compress.evaluate.tasks.job.retention_rows", stop)
    arguments = ["eval", tiny_llama, "--reference", tiny_llama, "--kind", "qa", "--limit", 1, "--out", tmp_path]
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    line = f"interrupted: stored answers are kept in {tmp_path}; run the same command again to continue"
    assert result.exit_code == 130 and line in result.stderr.splitlines()
