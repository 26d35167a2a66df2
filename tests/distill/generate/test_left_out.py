"""Prompts without an answer: people read where they are, why, and what to change; a rerun says that nothing is left."""

from click.testing import CliRunner

from compress.cli import cli
from compress.distill.generate.left_out import left_out_lines


def test_each_reason_is_one_line_with_places_and_a_cure():
    rows = [{"prompt": f"line {number}", "reason": "truncated"} for number in range(1, 14)]
    rows += [{"prompt": "line 20", "reason": "too_long"}]
    cut, long = left_out_lines(rows, 64)
    assert cut.startswith("left out line 1, line 2,") and "line 10 and 3 more: the answer did not end" in cut
    assert "--max-tokens 64" in cut and "--keep-truncated" in cut
    assert long.startswith("left out line 20: the prompt leaves no room for --max-tokens 64")
    assert left_out_lines([], 64) == []


def test_people_see_left_out_prompts_and_that_a_rerun_has_nothing_to_do(tiny_llama, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("who?\nwhat?\n" + "quick " * 1200 + "\n")
    arguments = ["generate", str(tiny_llama), "--prompts", str(prompts), "-o", str(out), "--max-tokens", "2"]
    arguments += ["--runtime", "transformers", "--keep-truncated"]
    first, second = (CliRunner().invoke(cli, arguments) for _ in range(2))
    assert "left out line 3: the prompt leaves no room" in first.stdout and f"Wrote {out} (" in first.stdout
    assert "empty answers" not in first.stdout and "None" not in first.stdout
    assert second.stdout.endswith(f"Nothing to do: {out} is complete, and settings and prompts are unchanged.\n")
    assert "left out line 3" in second.stdout and "Wrote" not in second.stdout
