import click
import pytest
from click.testing import CliRunner

from compress.cli import COMMANDS, cli
from compress.cli.model_path import ModelPath, as_typed
from compress.cli.options import Parsed

MODELS = {"model", "teacher", "reference", "candidate", "candidates", "checkpoint", "checkpoints", "source"}
PARAMETERS = {
    f"{command} {param.name}": param
    for command in COMMANDS
    if command != "import"  # its MODEL is a .gguf file
    for param in cli.get_command(click.Context(cli), command).params
    if param.name in MODELS
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_model_on_the_command_line_may_be_a_hub_id(name):
    assert isinstance(PARAMETERS[name].type, ModelPath | Parsed)


def test_a_hub_id_is_downloaded_and_used(tiny_llama, monkeypatch):
    ids = []

    def snapshot_download(repo, **options):
        ids.append((repo, options["revision"]))
        return str(tiny_llama)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    result = CliRunner().invoke(cli, ["check", "org/tiny@v1"])
    assert result.exit_code == 0 and ids == [("org/tiny", "v1")], result.output


def test_a_student_may_be_a_hub_id(tiny_llama, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: str(tiny_llama))
    arguments = ["distill", str(tiny_llama), "--student", "org/small", "-o", "out", "--dry-run"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output


def test_a_downloaded_model_is_printed_by_its_hub_id(tmp_path):
    assert as_typed(tmp_path / "models--org--small/snapshots/0123") == "org/small"
    assert as_typed(tmp_path) == str(tmp_path)


def test_an_unknown_hub_id_is_one_error_line_with_the_download_command(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = CliRunner().invoke(cli, ["check", "org/tiny"])
    assert result.exit_code == 1 and result.output.count("\n") == 1
    assert "run: hf download org/tiny --local-dir tiny" in result.output


@pytest.mark.parametrize("args", [["quantize", "", "-o", "new"], ["quantize", "model", "-o", ""]])
def test_empty_path_is_a_usage_error(args):
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 2
    assert "the path is empty; give a file or a folder." in result.output
