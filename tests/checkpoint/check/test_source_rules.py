"""With --source: config.json, plain tensors, prompt files, and the factors of packed linears."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.read import RECORD
from compress.checkpoint.record import DIGESTS, record_text

DOWN, NORM = "model.layers.0.mlp.down_proj", "model.layers.0.input_layernorm.weight"


@pytest.fixture
def copied(good, tmp_path):
    """copied(model, kind): a copy without digests."""

    def make(model: str, kind: str) -> Path:
        path = Path(shutil.copytree(good(model, kind), tmp_path / kind))
        (path / DIGESTS).unlink()
        return path

    return make


def edit_tensor(path: Path, name: str, change) -> None:
    tensors = load_file(path / "model.safetensors")
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def edit(path: Path, name: str, **values: Any) -> None:
    value = json.loads((path / name).read_text()) | values
    (path / name).write_text(json.dumps(value))


def errors(path: Path, source: Path) -> set[str]:
    return {row["rule"] for row in check_checkpoint(path, source=source) if row["level"] == "error"}


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_act": "gelu"},
        {"rms_norm_eps": 1e-3},
        {"max_position_embeddings": 64},
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ],
    ids=["activation", "eps", "length", "rope"],
)
def test_another_function_in_config_json_breaks_c10(copied, good, values):
    path = copied("llama", "awq")
    edit(path, "config.json", **values)
    assert errors(path, good("llama", "plain")) == {"C10"}


@pytest.mark.parametrize("values", [{"use_cache": False}, {"transformers_version": "4.51.0"}, {"_name_or_path": "x"}])
def test_keys_that_change_nothing_are_not_compared(copied, good, values):
    path = copied("llama", "awq")
    edit(path, "config.json", **values)
    assert errors(path, good("llama", "plain")) == set()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.embed_tokens.weight", lambda weight: weight.roll(1, 0)),
        ("model.norm.weight", lambda weight: weight * 3),
        ("model.embed_tokens.weight", lambda weight: weight * 1.01),
    ],
    ids=["shifted", "tripled", "a percent"],
)
def test_a_changed_plain_tensor_breaks_t13(copied, good, name, change):
    path = copied("llama", "gptq")
    edit_tensor(path, name, change)
    assert errors(path, good("llama", "plain")) == {"T13"}


@pytest.mark.parametrize("factor", [-1.0, 3.0], ids=["negated", "tripled"])
def test_a_norm_that_nothing_makes_up_for_is_an_error(copied, good, factor):
    path = copied("llama", "awq")
    edit_tensor(path, NORM, lambda weight: weight * factor)
    assert errors(path, good("llama", "plain")) == {"T14"}


def test_a_norm_and_its_linears_may_be_scaled_against_each_other(copied, good):
    path = copied("llama", "awq")
    edit_tensor(path, NORM, lambda weight: weight * 2)
    for letter in "qkv":
        edit_tensor(path, f"model.layers.0.self_attn.{letter}_proj.scales", lambda scales: scales / 2)
    assert errors(path, good("llama", "plain")) == set()
    (path / RECORD).write_text(record_text("quantize", {}, rows=[]))  # a record without scaled linears
    assert errors(path, good("llama", "plain")) >= {"T13", "T14"}


@pytest.mark.parametrize("factor", [-1.0, 2.0, 0.5], ids=["negated", "doubled", "halved"])
@pytest.mark.parametrize("kind", ["awq", "gptq", "ct"])
def test_a_whole_linear_with_a_factor_is_an_error(copied, good, kind, factor):
    path = copied("llama", kind)
    suffix = "weight_scale" if kind == "ct" else "scales"
    edit_tensor(path, f"{DOWN}.{suffix}", lambda scales: scales * factor)
    assert "T14" in errors(path, good("llama", "plain"))


def test_one_row_of_scales_twenty_times_larger_is_an_error(copied, good):
    path = copied("llama", "gptq")
    edit_tensor(path, f"{DOWN}.scales", lambda scales: scales * torch.tensor([[1.0], [20.0], [1.0], [1.0]]).half())
    assert "T14" in errors(path, good("llama", "plain"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
        ("tokenizer_config.json", {"add_bos_token": True}),
        ("tokenizer_config.json", {"unk_token": "<s>"}),
    ],
    ids=["normalizer", "bos", "unk"],
)
def test_another_tokenizer_than_the_sources_breaks_p6(copied, good, name, values):
    path = copied("llama", "awq")
    edit(path, name, **values)
    assert errors(path, good("llama", "plain")) == {"P6"}


def test_merges_in_their_other_form_are_the_same(copied, good):
    path = copied("llama", "awq")
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    merges = tokenizer["model"]["merges"]
    other = [" ".join(merge) if isinstance(merge, list) else merge.split(" ") for merge in merges]
    edit(path, "tokenizer.json", model=tokenizer["model"] | {"merges": other})
    assert errors(path, good("llama", "plain")) == set()


def test_another_template_than_the_sources_breaks_p6(copied, good):
    path = copied("llama", "awq")
    (path / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert errors(path, good("llama", "plain")) == {"P6"}


def test_a_trained_student_is_not_compared_with_its_teacher(copied, good):
    path = copied("llama", "plain")
    edit_tensor(path, NORM, lambda weight: weight * 3)
    assert errors(path, good("llama", "plain")) == {"T13"}
    (path / RECORD).write_text(record_text("distill", {}))
    assert errors(path, good("llama", "plain")) == {"D4"}
