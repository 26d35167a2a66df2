"""One run at a time writes an output; a lock that a killed process left is taken over."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from compress.cli import cli
from compress.core.errors import QCompressError
from compress.core.lock import held, lock_file, output_lock

HOLD = "import os, pathlib, sys; from compress.core.lock import output_lock\n"
HOLD += "with output_lock(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_is_refused_with_the_process_and_the_lock_is_removed(tmp_path):
    out = tmp_path / "new" / "out"
    words = rf"out: another process \({os.getpid()}\) writes there now; wait for it, stop it, or use another --out"
    with output_lock(out), pytest.raises(QCompressError, match=words), output_lock(out):
        pass
    assert names(tmp_path / "new") == []
    with output_lock(out):
        assert names(tmp_path / "new") == [".out.lock"]


def test_an_error_removes_the_lock(tmp_path):
    with pytest.raises(KeyError), output_lock(tmp_path / "out"):
        raise KeyError
    assert names(tmp_path) == []


def test_a_killed_process_leaves_a_lock_that_the_next_one_takes_over(tmp_path):
    out = tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", HOLD, str(out)], timeout=60).returncode == -9
    assert names(tmp_path) == [".out.lock"]
    with output_lock(out):
        pass
    assert names(tmp_path) == []


def test_ranks_of_one_run_share_the_lock_and_another_run_is_refused(tmp_path):
    out = tmp_path / "out"
    with output_lock(out, rank=0, ranks=2), output_lock(out, rank=1, ranks=2):
        for rank, ranks in ((0, 1), (0, 2), (1, 2)):
            with pytest.raises(QCompressError, match="another process"), output_lock(out, rank=rank, ranks=ranks):
                pass
    assert names(tmp_path) == []
    with output_lock(out), pytest.raises(QCompressError, match="another process"), output_lock(out, rank=1, ranks=2):
        pass


def test_a_lock_that_was_removed_and_made_again_is_held_by_one_process_only(tmp_path):
    out = tmp_path / "out"
    with held(lock_file(out), out):
        lock_file(out).unlink()
        with output_lock(out):
            pass
        assert names(tmp_path) == []


def test_a_file_of_another_program_with_the_name_of_the_lock_stays(tmp_path):
    file = lock_file(tmp_path / "out")
    file.write_text("my notes")
    with output_lock(tmp_path / "out"):
        pass
    assert file.read_text() == "my notes"


COMMANDS = {
    "import": [],
    "init-student": ["--blocks", "1"],
    "quantize": ["--method", "rtn"],
    "distill": ["--blocks", "1", "--seq-len", "32", "--steps", "1"],
    "convert": ["--to", "awq"],
    "capture": ["--samples", "8", "--seq-len", "32"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_two_runs_with_one_out_are_refused_in_one_line(tiny_llama, tmp_path, command):
    out = tmp_path / "out"
    with output_lock(out):
        result = CliRunner().invoke(cli, [command, str(tiny_llama), "-o", str(out), *COMMANDS[command]])
    lines = [line for line in result.output.splitlines() if line.startswith("Error:")]
    assert result.exit_code == 1 and len(lines) == 1 and "another process" in lines[0], result.output
    assert names(tmp_path) == []


def test_two_runs_of_generate_eval_compare_and_run_are_refused_in_one_line(tiny_llama, tmp_path):
    out, model, prompts = tmp_path / "out.html", str(tiny_llama), tmp_path / "prompts.txt"
    prompts.write_text("who?\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"teacher: {model}\nout: {out}\nquantize: [{{name: a, method: rtn, group_size: 32}}]\n")
    lines = [
        ["generate", model, "--prompts", str(prompts), "-o", str(out), "--runtime", "transformers"],
        ["eval", model, "--reference", model, "--kind", "qa", "--limit", "1", "-o", str(out)],
        ["compare", model, model, "--html", str(out)],
        ["run", str(recipe)],
    ]
    with output_lock(out):
        for line in lines:
            result = CliRunner().invoke(cli, line)
            errors = [text for text in result.output.splitlines() if text.startswith("Error:")]
            assert result.exit_code == 1 and len(errors) == 1 and "another process" in errors[0], result.output
