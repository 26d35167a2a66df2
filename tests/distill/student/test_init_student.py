"""init-student: an ordinary checkpoint, the KL that a distillation would begin with, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint
from compress.cli import cli
from compress.distill.student.init_student import width_note
from compress.model.shapes import Shape, block_lists
from scripts.tiny_models import save_tiny


def run(*arguments: object) -> tuple[int, str, str]:
    shown = CliRunner().invoke(cli, ["init-student", *map(str, arguments), "--seq-len", "32"])
    return shown.exit_code, shown.stdout, shown.output


def test_a_shorter_student_is_a_checkpoint_of_some_of_the_teachers_blocks(tiny_qwen2: Path, tmp_path: Path):
    code, text, _ = run(tiny_qwen2, "--out", tmp_path / "cut", "--blocks", 1, "--json")
    row, record = json.loads(text), Checkpoint(tmp_path / "cut").record
    assert code == 0 and not [r for r in check_checkpoint(tmp_path / "cut") if r["level"] == "error"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert model.config.num_hidden_layers == 1 and model.dtype == torch.float16
    assert (
        row["parameters"] == sum(p.numel() for p in model.parameters())
        and row["float16_bytes"] == 2 * row["parameters"]
    )
    assert row["int4_bytes"] < row["float16_bytes"] and row["kl_before"] > 0
    (kept,) = record["blocks"]
    assert record.get("width") is None
    assert record["sweep"][str(1 - kept)] == min(record["sweep"].values())
    teacher, student = (Checkpoint(path).tensor for path in (tiny_qwen2, tmp_path / "cut"))
    name = "self_attn.q_proj.bias"
    assert torch.equal(student(f"model.layers.0.{name}"), teacher(f"model.layers.{kept}.{name}"))


@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen3_5_text", "gemma3"])
def test_a_student_of_mixed_blocks_keeps_the_kind_of_each(model_type: str, tmp_path: Path):
    save_tiny(model_type, tmp_path / "teacher")
    teacher = Checkpoint(tmp_path / "teacher")
    kinds, blocks = block_lists(teacher.config)["layer_types"], teacher.config["num_hidden_layers"]
    options = ("--blocks", blocks - 1, "--dtype", "bfloat16", "--packing", "full")
    code, _, shown = run(tmp_path / "teacher", "--out", tmp_path / "cut", *options)
    assert code == 0 and "student blocks" in shown
    student = Checkpoint(tmp_path / "cut")
    assert student.config["layer_types"] == [kinds[block] for block in student.record["blocks"]]
    assert not [r for r in check_checkpoint(tmp_path / "cut") if r["level"] == "error"]
    assert not student.carried and load_model(tmp_path / "cut").config.num_hidden_layers == blocks - 1


def test_the_kl_of_the_cut_and_the_kl_before_training_have_different_names(tiny_qwen2: Path, tmp_path: Path):
    _, result, shown = run(tiny_qwen2, "--out", tmp_path / "cut", "--blocks", 1)
    assert "KL before training" in result and "KL of this cut, on the beginning of --text" in shown


def test_a_students_shape_may_be_that_of_a_config(tiny_qwen2: Path, tmp_path: Path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    small = Checkpoint(tiny_qwen2).config | sizes
    (tmp_path / "small.json").write_text(json.dumps(small))
    code, _, shown = run(tiny_qwen2, "--out", tmp_path / "cut", "--config", tmp_path / "small.json")
    assert code == 1 and "the config contradicts itself: `num_hidden_layers` (1) must be equal" in shown
    (tmp_path / "small.json").write_text(json.dumps(small | {"layer_types": ["full_attention"]}))
    code, _, shown = run(tiny_qwen2, "--out", tmp_path / "cut", "--config", tmp_path / "small.json")
    assert code == 0, shown
    config = load_model(tmp_path / "cut").config
    assert {name: getattr(config, name) for name in sizes} == sizes
    code, _, shown = run(tiny_qwen2, "--out", tmp_path / "two", "--config", tmp_path / "small.json", "--blocks", 1)
    assert code == 1 and "small.json: --config already sets all sizes; leave out --config or --blocks" in shown


def test_a_teacher_cut_to_the_same_shape_is_unchanged(tiny_llama: Path, tmp_path: Path):
    _, text, _ = run(tiny_llama, "--out", tmp_path / "cut", "--blocks", 2, "--json")
    assert json.loads(text)["kl_before"] == pytest.approx(0, abs=1e-6)
    teacher, student = Checkpoint(tiny_llama), Checkpoint(tmp_path / "cut")
    assert all(torch.equal(student.tensor(name), teacher.tensor(name)) for name in teacher.tensors)


def test_a_narrower_student_records_that_activations_chose_it(tiny_qwen2: Path, tmp_path: Path):
    narrow = (tiny_qwen2, "--intermediate-size", 32, "--num-layers", 1)
    for out in ("cut", "again"):
        code, _, shown = run(*narrow, "--out", tmp_path / out)
        assert code == 0, shown
    assert run(*narrow, "--out", tmp_path / "weights", "--importance", "weights")[0] == 0
    cut, again, weights = (tmp_path / out for out in ("cut", "again", "weights"))
    assert Checkpoint(cut).record["width"] == {
        "importance": "activations",
        "windows": 16,
        "seq_len": 32,
        "tokens": 512,
    }
    assert Checkpoint(weights).record["width"] == {"importance": "weights", "windows": 0, "seq_len": 0, "tokens": 0}
    bytes_of = [(path / "model.safetensors").read_bytes() for path in (cut, again, weights)]
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]


def test_an_impossible_shape_leaves_no_files(tiny_llama: Path, tmp_path: Path):
    code, _, shown = run(tiny_llama, "--out", tmp_path / "cut", "--blocks", 3)
    assert code == 1 and "num_layers=3: the student is cut out of the teacher, which has 2" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("hidden", "channels", "note"),
    [
        (1536, 8960, None),
        (3584, 18944, None),
        (1500, 8960, "hidden_size=1500: not divisible by 128"),
        (1500, 64, "hidden_size=1500, intermediate_size=64: no"),
    ],
)
def test_a_width_cut_to_no_multiple_of_128_is_reported(hidden, channels, note):
    teacher = Shape(3584, 18944, 28, 28, 4, 128)
    text = width_note(replace(teacher, hidden_size=hidden, intermediate_size=channels), teacher)
    assert text is None if note is None else text.startswith(note)


def test_a_width_of_the_teacher_is_not_reported():
    teacher = Shape(576, 1536, 30, 9, 3, 64)
    assert width_note(replace(teacher, num_layers=20), teacher) is None
