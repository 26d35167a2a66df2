"""A command opens each checkpoint once and reads its weights for a digest at most once."""

from collections import Counter

import pytest
from click.testing import CliRunner

from compress.checkpoint import read
from compress.cli import cli


@pytest.fixture
def counts(monkeypatch):
    """How often each directory is opened and digested while the test runs."""
    opened, digested = Counter(), Counter()
    open_checkpoint, digest_files = read.Checkpoint.__init__, read.files_digest

    def count_open(self, path):
        opened[str(path)] += 1
        open_checkpoint(self, path)

    def count_digest(files):
        digested[str(files[0].parent)] += 1
        return digest_files(files)

    monkeypatch.setattr(read.Checkpoint, "__init__", count_open)
    monkeypatch.setattr(read, "files_digest", count_digest)
    return opened, digested


@pytest.mark.parametrize("command", ["compare", "verify"])
def test_a_command_opens_and_digests_each_checkpoint_once(command, counts, good, tmp_path):
    reference, candidate = good("llama", "plain"), good("llama", "awq")
    opened, digested = counts
    opened.clear()
    arguments = [reference, candidate, "--eval-text", "heldout", "--samples", 2, "--seq-len", 32, "--locate"]
    arguments += ["--reference-cache", tmp_path / "states", "--history", tmp_path / "history.sqlite", "--json"]
    result = CliRunner().invoke(cli, [command, *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code in (0, 3), result.output
    once = {str(reference): 1, str(candidate): 1}
    assert opened == once and digested == once


def test_check_with_history_opens_and_digests_the_checkpoint_once(counts, good, tmp_path):
    path = good("llama", "awq")
    opened, digested = counts
    opened.clear()
    arguments = ["check", str(path), "--history", str(tmp_path / "history.sqlite")]
    assert CliRunner().invoke(cli, arguments, catch_exceptions=False).exit_code == 0
    assert opened == digested == {str(path): 1}
