"""One process at a time writes an output; a lock that a killed process left is taken over."""

import fcntl
import subprocess
import sys

import pytest
from click.testing import CliRunner

from compress.checkpoint.workdir import lock_output
from compress.cli import cli
from compress.core.errors import QCompressError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_process_is_refused_and_the_lock_is_removed(tmp_path):
    out = tmp_path / "out"
    with lock_output(out), pytest.raises(QCompressError, match="out: another process is writing it"), lock_output(out):
        pass
    assert names(tmp_path) == []
    with lock_output(out):
        assert names(tmp_path) == [".out.lock"]


def test_an_error_removes_the_lock(tmp_path):
    with pytest.raises(KeyError), lock_output(tmp_path / "out"):
        raise KeyError
    assert names(tmp_path) == []


def test_a_killed_process_leaves_a_lock_that_the_next_one_takes_over(tmp_path):
    code = "import os, pathlib, sys; from compress.checkpoint.workdir import lock_output\n"
    code += "with lock_output(pathlib.Path(sys.argv[1])): os.mkdir(sys.argv[2]); os.kill(os.getpid(), 9)"
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    killed = subprocess.run([sys.executable, "-c", code, str(out), str(partial)], timeout=60)
    assert killed.returncode == -9 and names(tmp_path) == [".out.lock", ".out.partial"]
    with lock_output(out):
        pass
    assert names(tmp_path) == [".out.partial"]


def test_an_unfinished_checkpoint_of_another_job_is_not_replaced(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    with pytest.raises(QCompressError, match="belongs to another job"), lock_output(tmp_path / "out"):
        pass
    assert names(tmp_path) == [".out.partial"]


@pytest.mark.parametrize("command", ["import", "init-student"])
def test_two_runs_with_one_out_are_refused_in_one_line(tiny_llama, tmp_path, command):
    with (tmp_path / ".out.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        options = ["--blocks", "1", "--text", "builtin"] if command == "init-student" else []
        result = CliRunner().invoke(cli, [command, str(tiny_llama), "-o", str(tmp_path / "out"), *options])
    lines = [line for line in result.output.splitlines() if line.strip()]
    assert result.exit_code == 1 and len(lines) == 1 and "another process is writing it" in lines[0]
