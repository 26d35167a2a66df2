import json
import os
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from calibration.errors import CalibrationError
from compress.cli import COMMAND_GROUPS, COMMANDS, SHORT_HELP, SPINS, LazyGroup, cli, machine_is_idle
from compress.cli.console import report
from compress.core.errors import BadValueError, GateFailure, QCompressError


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_command_in_groups_and_imports_no_torch(option):
    code = f"import sys; from compress.cli import cli; cli(['{option}'], standalone_mode=False); "
    code += "print(not {'torch', 'transformers', 'rich'} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [shown.index(f"\n{title}:") for title in COMMAND_GROUPS] == sorted(
        shown.index(f"\n{title}:") for title in COMMAND_GROUPS
    )
    assert all(f"  {command}  " in shown.replace("init-student", "init-student ") for command in COMMANDS)
    assert all(text in shown for text in SHORT_HELP.values())  # no line is cut off
    assert max(map(len, shown.splitlines())) <= 80 and shown.strip().endswith("True")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_no_torch(command):
    code = f"import sys; from compress.cli import cli; cli(['{command}', '-h'], standalone_mode=False); "
    code += "print(not {'torch', 'transformers'} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip().endswith("True")


def test_a_misspelled_command_or_option_gets_the_nearest_one():
    for line, near in (("quantise", "'quantize'"), ("chek x", "'check'"), ("check x --sorce y", "--source")):
        result = invoke(*line.split())
        assert result.exit_code == 2 and "Did you mean" in result.output and near in result.output
    assert "`qcompress --help` lists the commands" in invoke("xyzzy").output


def failing(error):
    """qcompress with one command, `fail`, that raises `error`."""

    class Failing(LazyGroup):
        def resolve_command(self, ctx, args):
            return "fail", self.get_command(ctx, "fail"), args[1:]

        def get_command(self, ctx, name):
            @click.command()
            def fail():
                raise error

            return fail

    return Failing("qcompress", params=cli.params, callback=cli.callback)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (BadValueError("bits=3: use 4"), "Error: bits=3: use 4"),
        (CalibrationError("a.txt: empty"), "Error: a.txt: empty"),
        (PermissionError(13, "Permission denied", "x"), "Error: x: permission denied; change its permissions"),
        (OSError(28, "No space left", "x"), "Error: x: the disk is full, "),
        (MemoryError(), "out of memory: MemoryError; use a smaller --batch-size"),
        (QCompressError("model: no config"), "Error: model: no config"),
        (KeyError("layers"), "this is a bug in qcompress: KeyError: 'layers'; `qcompress --debug ...` shows the"),
        (ValueError("bits=3:\nuse 4"), "this is a bug in qcompress: ValueError: bits=3: use 4; `qcompress --debug"),
        (FileNotFoundError(2, "No such file", "x"), "this is a bug in qcompress: FileNotFoundError"),
    ],
)
def test_an_error_is_one_line_and_debug_adds_its_traceback(error, words):
    plain = CliRunner().invoke(failing(error), ["fail"])
    assert words in one_line(plain) and plain.output.count("\n") == 1
    debug = CliRunner().invoke(failing(error), ["--debug", "fail"])
    assert debug.exit_code == 1 and "Traceback" in debug.output and "raise error" in debug.output


def test_a_failed_gate_keeps_its_exit_code_with_debug():
    assert CliRunner().invoke(failing(GateFailure("over")), ["--debug", "fail"]).exit_code == 3


def test_quiet_and_verbose_exclude_each_other():
    result = invoke("-q", "-v", "check", "x")
    assert result.exit_code == 2 and "--quiet and --verbose exclude each other" in result.output
    for line in (("-q", "check", "x", "-v"), ("check", "x", "-q", "-v"), ("cache", "inspect", "x", "-vq")):
        assert "--quiet and --verbose exclude each other" in invoke(*line).output


@pytest.mark.parametrize("line", [("-q", "check", "x"), ("check", "x", "-q"), ("cache", "inspect", "-q", "x")])
def test_quiet_works_before_and_after_the_command(line):
    invoke(*line)
    assert (report.quiet, report.verbose) == (True, False)
    invoke("check", "x", "--verbose")
    assert (report.quiet, report.verbose) == (False, True)
    invoke("check", "x")
    assert (report.quiet, report.verbose) == (False, False)


def test_debug_works_after_the_command():
    assert "Traceback" in invoke("check", "no-folder", "--debug").output
    assert "Traceback" not in invoke("check", "no-folder").output


@pytest.mark.parametrize("variables", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}, {}])
def test_the_environment_decides_how_threads_wait(variables):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | variables
    code = f"import json, os, compress.cli; print(json.dumps({{n: os.environ[n] for n in {names} if n in os.environ}}))"
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    policy = json.loads(shown.stdout)
    assert policy == variables if variables else policy in ({"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": SPINS})


@pytest.mark.parametrize(
    ("text", "expected"), [("0.5 0.4 0.3 1/80 9", True), ("0.5 0.4 0.3 12/80 9", False), ("", False), (None, False)]
)
def test_a_machine_is_idle_with_one_runnable_thread_only(monkeypatch, tmp_path, text, expected):
    if text is not None:
        (tmp_path / "loadavg").write_text(text)
    monkeypatch.setattr("compress.cli.Path", lambda _: tmp_path / "loadavg")
    assert machine_is_idle() is expected


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command):
    shown = invoke(command, "--help")
    assert shown.exit_code == 0 and f"qcompress {command} " in shown.output.replace("Usage: cli", "")


def one_line(result, code=1):
    """The only error line of a failed command."""
    assert result.exit_code == code, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1 and "Traceback" not in result.output
    return lines[0]


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda path: path.joinpath("config.json").unlink(), "config.json: missing"),
        (lambda path: contradict(path), "config.json: the config contradicts itself: The hidden size"),
        (lambda path: path.joinpath("config.json").write_text("{"), "not valid JSON"),
        (lambda path: path.joinpath("model.safetensors").unlink(), "no *.safetensors"),
        (lambda path: path.joinpath("model.safetensors").rename(path / "model.bin"), "pickled weights"),
        (lambda path: cut(path / "model.safetensors", 100), "fetch the file again"),
        (lambda path: point_outside(path), "leads outside"),
        (lambda path: path.joinpath("tokenizer.json").unlink(), "no tokenizer.json"),
    ],
    ids=[
        "no config",
        "contradicting config",
        "bad config",
        "no weights",
        "pickle",
        "truncated",
        "outside",
        "no tokenizer",
    ],
)
def test_a_broken_model_is_one_error_line_and_leaves_no_files(tiny_llama, tmp_path, break_it, words):
    import shutil

    source = tmp_path / "source"
    shutil.copytree(tiny_llama, source)
    break_it(source)
    result = invoke("quantize", source, "--method", "gptq", "--out", tmp_path / "out")
    assert words in one_line(result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def contradict(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"hidden_size": config["hidden_size"] + 1}))


def cut(file, count):
    file.write_bytes(file.read_bytes()[:-count])


def point_outside(path):
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../other/model.safetensors"}}))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", "empty"),
        ("short.txt", b"too short", "token"),
        ("latin.txt", "déjà vu".encode("latin-1") * 100, "UTF-8"),
        ("rows.jsonl", b'{"text": "fine"}\n{"text": \n', "2"),
        ("keys.jsonl", b'{"body": "fine"}\n', "1"),
    ],
)
def test_bad_calibration_text_is_one_error_line_with_the_file(tiny_llama, tmp_path, name, content, words):
    file = tmp_path / name
    file.write_bytes(content)
    result = invoke("quantize", tiny_llama, "--method", "gptq", "--text", file, "--out", tmp_path / "out")
    line = one_line(result)
    assert name in line and words in line
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_named(tmp_path):
    assert "no such directory" in one_line(
        invoke("quantize", tmp_path / "nowhere", "--method", "rtn", "--out", tmp_path / "o")
    )


def test_a_dry_run_predicts_the_written_bytes(tiny_llama, tmp_path):
    arguments = ["quantize", tiny_llama, "--method", "rtn", "--format", "awq", "--out", tmp_path / "out", "--json"]
    planned = json.loads(invoke(*arguments, "--dry-run").stdout)
    assert not (tmp_path / "out").exists()
    written = json.loads(invoke(*arguments).stdout)
    assert planned["bytes"] == written["bytes"] == (tmp_path / "out/model.safetensors").stat().st_size


def test_a_job_ends_with_its_output_and_the_next_command(tiny_llama, tmp_path):
    lines = invoke("quantize", tiny_llama, "--method", "rtn", "-o", tmp_path / "out").stdout.splitlines()
    size, share = re.fullmatch(r"Wrote .*/out \(([\d.]+) kB, (\d+) % of FP16, checks passed\)\. .*", lines[-1]).groups()
    written, source = ((path / "model.safetensors").stat().st_size for path in (tmp_path / "out", tiny_llama))
    assert (float(size), int(share)) == (round(written / 1e3, 1), round(100 * written / source))
    assert lines[-1].endswith(f"Next: qcompress verify {tiny_llama} {tmp_path / 'out'}")


def test_a_file_of_another_format_is_not_imported(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"nonsense")
    assert "no GGUF" in one_line(invoke("import", tmp_path / "model.gguf", "--out", tmp_path / "out"))
