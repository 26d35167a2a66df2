import json
import shutil

import pytest
from click.testing import CliRunner

from calibration.corpus import source_digest
from compress.cli import cli

SIZE = ("--windows", "4", "--seq-len", "32")


def verify(*arguments):
    return CliRunner().invoke(cli, ["verify", *map(str, arguments), *SIZE])


def error_line(result):
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1 and "Traceback" not in result.output
    return lines[0]


def test_limits_that_hold_end_with_0_and_the_row(tiny_llama, rounded, text):
    result = verify(tiny_llama, rounded, "--text", text, "--max-kl", 10, "--max-perplexity-ratio", 10, "--json")
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert 0 < row["kl"] < 10 and row["limits"] == {"kl": 10, "perplexity_ratio": 10}
    assert row["tokens"] == 4 * 31 and row["text"] == "text.txt"


@pytest.mark.parametrize(
    ("option", "limit", "words"), [("--max-kl", 1e-6, "kl"), ("--max-perplexity-ratio", 0.5, "perplexity_ratio")]
)
def test_a_limit_that_is_passed_ends_with_3_and_says_limit_value_and_cure(
    tiny_llama, rounded, text, option, limit, words
):
    result = verify(tiny_llama, rounded, "--text", text, option, limit)
    assert result.exit_code == 3
    line = error_line(result)
    assert f"{rounded}: {words} " in line and f"is above the limit {limit:g}; quantize with" in line and option in line
    assert "perplexity" in result.stdout  # the row is printed all the same


def test_a_checkpoint_passes_the_strictest_limits_against_itself(tiny_llama, text):
    result = verify(tiny_llama, tiny_llama, "--text", text, "--max-kl", 0, "--max-perplexity-ratio", 1)
    assert result.exit_code == 0, result.output


def test_without_a_limit_it_says_that_nothing_was_verified(tiny_llama, rounded, text):
    result = verify(tiny_llama, rounded, "--text", text)
    assert result.exit_code == 0 and "nothing was verified" in result.stderr


def test_the_embedded_text_is_the_default(tiny_llama, rounded):
    result = verify(tiny_llama, rounded, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["text"] == "heldout"


def test_text_it_was_calibrated_on_ends_with_1(tiny_llama, rounded, text, tmp_path):
    seen = tmp_path / "seen"
    shutil.copytree(rounded, seen)
    record = json.loads((seen / "qcompress.json").read_text())
    record["calibration"] = {"sources": [{"name": "renamed.txt", "digest": source_digest(str(text))}]}
    (seen / "qcompress.json").write_text(json.dumps(record))
    result = verify(tiny_llama, seen, "--text", text, "--max-kl", 10)
    assert result.exit_code == 1 and "was calibrated on text.txt" in error_line(result)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no such file"), ("", "empty"), ("too short", "tokens"), (b"\xff\xfe\xfa", "UTF-8")]
)
def test_text_that_cannot_be_used_ends_with_1(tiny_llama, rounded, tmp_path, content, words):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = verify(tiny_llama, rounded, "--text", path, "--max-kl", 10)
    assert result.exit_code == 1 and "bad.txt" in error_line(result) and words in error_line(result)


def test_a_candidate_that_is_not_there_ends_with_1(tiny_llama, text, tmp_path):
    result = verify(tiny_llama, tmp_path / "nowhere", "--text", text, "--max-kl", 1)
    assert result.exit_code == 1 and "nowhere: no such directory" in error_line(result)
