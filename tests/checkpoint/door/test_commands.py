"""Every command passes the door before any work, a dry run too, and --out must be a place for a rename."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from transformers import AutoConfig, AutoModelForCausalLM

from compress.checkpoint.write import check_out
from compress.cli import cli
from compress.core.errors import QCompressError
from tests.checkpoint.door.conftest import edit_config

TIE = "tie_word_embeddings"
SHORT = ["--samples", "2", "--seq-len", "32"]
COMMANDS = {
    "quantize": ["quantize", "MODEL", "--out", "OUT"],
    "quantize, dry run": ["quantize", "MODEL", "--out", "OUT", "--dry-run"],
    "quantize without text": ["quantize", "MODEL", "--method", "rtn", "--out", "OUT"],
    "plan": ["plan", "MODEL"],
    "distill": ["distill", "MODEL", "--blocks", "1", "--out", "OUT"],
    "distill, dry run": ["distill", "MODEL", "--blocks", "1", "--out", "OUT", "--dry-run"],
    "init-student": ["init-student", "MODEL", "--blocks", "1", "--out", "OUT"],
    "capture": ["capture", "MODEL", "--out", "OUT", *SHORT],
    "verify": ["verify", "GOOD", "MODEL", *SHORT],
    "verify, reference": ["verify", "MODEL", "GOOD", *SHORT],
    "compare": ["compare", "GOOD", "MODEL", *SHORT],
    "eval": ["eval", "MODEL", "--reference", "GOOD", "--out", "OUT", "--limit", "1"],
    "bench": ["bench", "MODEL", "--rounds", "1"],
}


def run(arguments: list[str], **places: Path) -> str:
    """The one line of a refused command."""
    words = [str(places.get(word, word)) for word in arguments]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert [line.startswith("Error: ") for line in lines if not line.startswith("sandbox")] == [True], result.stderr
    return lines[-1]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses_a_tied_model_with_a_head_before_any_work(untied, tiny_qwen2, tmp_path, name):
    edit_config(untied, **{TIE: True})
    line = run(COMMANDS[name], MODEL=untied, GOOD=tiny_qwen2, OUT=tmp_path / "out")
    assert f"{untied}/config.json: {TIE}" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("plan", "bench")])
def test_a_command_refuses_a_broken_tokenizer_before_any_work(untied, tiny_qwen2, tmp_path, name):
    file = untied / "tokenizer.json"
    file.write_text(file.read_text()[:500])
    line = run(COMMANDS[name], MODEL=untied, GOOD=tiny_qwen2, OUT=tmp_path / "out")
    assert f"{file}: not valid JSON" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["quantize", "quantize, dry run", "distill", "distill, dry run", "init-student"])
def test_an_output_that_is_a_link_is_refused_before_any_work(tiny_qwen2, tmp_path, name):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    line = run(COMMANDS[name], MODEL=tiny_qwen2, OUT=tmp_path / "out")
    assert f"{tmp_path / 'out'}: is a link" in line and "out/model" in line
    assert sorted(file.name for file in tmp_path.iterdir()) == ["disk", "out"]


@pytest.mark.parametrize("out", ["/proc", "/dev", "."])
def test_a_mount_point_and_the_current_folder_are_no_output(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QCompressError, match=r"mount point|current directory"):
        check_out(Path(out))


def test_an_empty_folder_and_a_missing_one_are_outputs(tmp_path):
    check_out(tmp_path)
    check_out(tmp_path / "new" / "folder")


@pytest.mark.parametrize("command", ["quantize", "quantize, dry run", "plan"])
def test_an_architecture_that_vllm_lacks_is_refused_before_any_work(save_model, tmp_path, command):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 128, "head_dim": 16}
    config = AutoConfig.for_model("ministral", **sizes, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)
    path = save_model(AutoModelForCausalLM.from_config(config), tmp_path / "model", 0)
    line = run(COMMANDS[command], MODEL=path, OUT=tmp_path / "out")
    assert "does not implement MinistralForCausalLM" in line


def test_a_teacher_may_be_described_by_its_config_alone_in_plan(tiny_qwen2, tmp_path):
    config = json.loads((tiny_qwen2 / "config.json").read_text()) | {"num_hidden_layers": 10**6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "1,000,000 blocks" in run(["plan", "MODEL"], MODEL=tmp_path / "config.json")
