import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from compress.cli import COMMANDS, SPINS, alone, cli
from compress.cli.quantize import pick_device
from compress.core.errors import QCompressError


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_help_lists_every_command_and_imports_no_torch():
    code = "import sys; from compress.cli import cli; cli(['--help'], standalone_mode=False); "
    code += "print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(command in shown for command in COMMANDS) and shown.strip().endswith("False")


@pytest.mark.parametrize("given", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}, {}])
def test_how_threads_wait_is_chosen_once_and_never_against_the_environment(given):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    code = f"import json, os, compress.cli; print(json.dumps({{n: os.environ[n] for n in {names} if n in os.environ}}))"
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(shown.stdout)
    assert found == given if given else found in ({"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": SPINS})


@pytest.mark.parametrize(
    ("text", "expected"), [("0.5 0.4 0.3 1/80 9", True), ("0.5 0.4 0.3 12/80 9", False), ("", False), (None, False)]
)
def test_alone_is_one_runnable_thread_and_nothing_else(monkeypatch, tmp_path, text, expected):
    if text is not None:
        (tmp_path / "loadavg").write_text(text)
    monkeypatch.setattr("compress.cli.Path", lambda _: tmp_path / "loadavg")
    assert alone() is expected


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command):
    shown = invoke(command, "--help")
    assert shown.exit_code == 0 and f"qcompress {command} " in shown.output.replace("Usage: cli", "")


def one_line(result, code=1):
    """The error of a failed command: one line, no traceback."""
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
def test_a_broken_model_is_one_line_and_leaves_nothing(tiny_llama, tmp_path, break_it, words):
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
def test_bad_calibration_text_is_one_line_that_names_the_file(tiny_llama, tmp_path, name, content, words):
    file = tmp_path / name
    file.write_bytes(content)
    result = invoke("quantize", tiny_llama, "--method", "gptq", "--calibration", file, "--out", tmp_path / "out")
    line = one_line(result)
    assert name in line and words in line
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there_is_said_in_one_line():
    assert (pick_device("auto", gpu=False), pick_device("auto", gpu=True)) == ("cpu", "cuda")
    assert (pick_device("cpu", gpu=True), pick_device("cuda", gpu=True)) == ("cpu", "cuda")
    with pytest.raises(QCompressError, match="--device cuda: torch sees no GPU here"):
        pick_device("cuda", gpu=False)


def test_a_missing_model_is_named(tmp_path):
    assert "no such directory" in one_line(
        invoke("quantize", tmp_path / "nowhere", "--method", "rtn", "--out", tmp_path / "o")
    )


def test_the_dry_run_prints_the_bytes_that_are_written(tiny_llama, tmp_path):
    arguments = ["quantize", tiny_llama, "--method", "rtn", "--format", "awq", "--out", tmp_path / "out", "--json"]
    planned = json.loads(invoke(*arguments, "--dry-run").stdout)
    assert not (tmp_path / "out").exists()
    written = json.loads(invoke(*arguments).stdout)
    assert planned["bytes"] == written["bytes"] == (tmp_path / "out/model.safetensors").stat().st_size


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"nonsense")
    assert "no GGUF" in one_line(invoke("import", tmp_path / "model.gguf", "--out", tmp_path / "out"))
