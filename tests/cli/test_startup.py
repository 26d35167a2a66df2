"""Commands that read headers only import neither torch nor transformers, and a wrong path is refused before imports."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compress.cli import COMMANDS as COMMAND_NAMES
from compress.core.config import QuantizeConfig
from compress.distill.config import CaptureConfig
from compress.distill.targets.capture import capture_teacher
from compress.quantize.job import quantize_checkpoint

CODE = """
import sys
from compress.cli import cli
try:
    cli(sys.argv[1:])
finally:
    print("imported", *({"torch", "transformers"} & sys.modules.keys()), file=sys.stderr)
"""
MISSING = "no-such-folder"
WRONG_PATHS = {
    "check": [MISSING],
    "plan": [MISSING],
    "run": ["missing.yaml"],
    "bench": [MISSING],
    "quantize": [MISSING, "-o", "out"],
    "cache": ["inspect", MISSING],
    "distill": [MISSING, "-o", "out"],
    "init-student": [MISSING, "--blocks", "2", "-o", "out"],
    "generate": [MISSING, "--prompts", "missing.jsonl", "-o", "out.jsonl"],
    "capture": [MISSING, "-o", "out"],
    "verify": [MISSING, MISSING],
    "compare": [MISSING, MISSING],
    "eval": [MISSING, "--reference", MISSING],
    "watch": [MISSING, "--baseline", "v1", "--history", "verdicts.sqlite"],
    "history": ["missing.sqlite"],
    "import": ["missing.gguf", "-o", "out"],
    "convert": [MISSING, "--to", "awq", "-o", "out"],
    "serve": [MISSING],
    "ship": [MISSING, "--hardware", "orin-nano", "-o", "out"],
    "backends": ["path", "missing.backend"],
}


def run(folder: Path, *arguments: object) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and the lines of stderr of a command in a process of its own."""
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr.splitlines()


@pytest.fixture(scope="module")
def work(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two 4-bit variants without their source, a cache and a recipe."""
    folder = tmp_path_factory.mktemp("work")
    source = Path(shutil.copytree(tiny_llama, folder / "source"))
    for name, settings in {"awq": {"format": "awq"}, "ct": {}}.items():
        quantize_checkpoint(source, folder / name, QuantizeConfig(method="rtn", group_size=32, **settings))
    source.rename(folder / "model")
    capture_teacher(folder / "model", folder / "cache", CaptureConfig(codec="hybrid", samples=4, seq_len=16))
    recipe = {
        "teacher": "model",
        "out": "made",
        "distill": {"blocks": 1, "steps": 2, "seq_len": 16},
        "quantize": [{"name": "four", "method": "rtn", "group_size": 32}],
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder


COMMANDS = {
    "check": ["check", "awq"],
    "check of compressed-tensors": ["check", "ct"],
    "check of 16 bits": ["check", "model"],
    "plan": ["plan", "model"],
    "plan of a config": ["plan", "model/config.json", "--max-size", "1GB"],
    "run --dry-run": ["run", "recipe.yaml", "--dry-run"],
    "bench --predict-only": ["bench", "model", "awq", "--predict-only", "--gpu-memory", "8GB", "--prompt-tokens", "8"],
    "quantize --dry-run": ["quantize", "model", "-o", "out", "--dry-run", "--group-size", "32"],
    "cache inspect": ["cache", "inspect", "cache"],
    "--help": ["--help"],
    **{f"{name} -h": [name, "-h"] for name in WRONG_PATHS},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_reads_headers_imports_no_torch(work, name):
    arguments = COMMANDS[name] + (["--new-tokens", "4"] if name.startswith("bench --") else [])
    code, output, errors = run(work, *arguments)
    assert code == 0 and output, errors
    assert errors[-1] == "imported"


def test_every_command_has_a_wrong_path():
    assert set(WRONG_PATHS) == set(COMMAND_NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("command", WRONG_PATHS)
def test_a_wrong_path_is_refused_before_torch_is_imported(tmp_path, command):
    code, output, errors = run(tmp_path, command, *WRONG_PATHS[command])
    assert code in (1, 2) and not output
    assert errors[-1] == "imported" and any(name in errors[-2] for name in (MISSING, "missing."))


WRONG_TEXTS = {
    "distill": ["model", "--text", "missing.txt", "-o", "out"],
    "quantize": ["model", "--text", "missing.txt", "-o", "out"],
    "capture": ["model", "--text", "default", "--text", "missing.jsonl", "-o", "out"],
    "generate": ["model", "--prompts", "missing.jsonl", "-o", "out.jsonl"],
    "verify": ["model", "awq", "--eval-text", "missing.txt"],
    "compare": ["model", "awq", "--eval-text", "missing.txt"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", WRONG_TEXTS)
def test_a_missing_text_is_refused_before_torch_is_imported(work, command):
    code, output, errors = run(work, command, *WRONG_TEXTS[command])
    assert code == 1 and not output
    assert errors[-1] == "imported" and "missing." in errors[-2] and "no such file" in errors[-2]
