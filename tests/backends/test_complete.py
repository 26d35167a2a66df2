"""config.json of a backend is completed where `check` reports a fault, and nowhere else."""

import json
import shutil

import pytest

from compress.backends.complete import complete_config
from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.read import Checkpoint
from compress.core.config import QuantizeConfig
from compress.quantize.job import quantize_checkpoint


@pytest.fixture(scope="module")
def gptq(tiny_llama, tmp_path_factory):
    """A gptq checkpoint of tiny_llama in groups of 32."""
    out = tmp_path_factory.mktemp("gptq") / "gptq"
    quantize_checkpoint(tiny_llama, out, QuantizeConfig(method="rtn", format="gptq", group_size=32))
    return out


def without_record(checkpoint, folder, *, remove=(), **values):
    """A copy as a backend leaves it. Keys with a dot are keys of quantization_config."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("qcompress*", "README.md"))
    config = json.loads((folder / "config.json").read_text())
    for name, value in values.items():
        (config["quantization_config"] if name in ("version", "checkpoint_format") else config)[name] = value
    for name in remove:
        (config["quantization_config"] if name in config["quantization_config"] else config).pop(name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("kind", "changes", "key", "now"),
    [
        ("awq", {"remove": ["version"]}, "quantization_config.version", "gemm"),
        ("gptq", {"remove": ["checkpoint_format"]}, "quantization_config.checkpoint_format", "gptq"),
        ("awq", {"dtype": "float32", "torch_dtype": "float32"}, "dtype", "float16"),
        ("awq", {"remove": ["dtype", "torch_dtype"]}, "dtype", "float16"),
        ("awq", {"torch_dtype": None}, "torch_dtype", "float16"),
        ("awq", {"torch_dtype": "float32"}, "torch_dtype", "float16"),
        ("awq", {"remove": ["rope_theta"]}, "rope_theta", 5000.0),
        ("awq", {"rms_norm_eps": 0.5}, "rms_norm_eps", 1e-6),
        ("gptq", {"tie_word_embeddings": False}, "tie_word_embeddings", True),
    ],
)
def test_a_fault_is_corrected_and_listed(packed, gptq, tiny_llama, tmp_path, kind, changes, key, now):
    folder = without_record({"awq": packed, "gptq": gptq}[kind], tmp_path / "written", **changes)
    before = {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
    rows = complete_config(folder, Checkpoint(tiny_llama))
    assert {row["key"]: row["now"] for row in rows}[key] == now
    assert [row for row in check_checkpoint(folder, source=tiny_llama) if row["level"] == "error"] == []
    assert {file.name: file.read_bytes() for file in folder.glob("*.safetensors")} == before


@pytest.mark.parametrize("kind", ["awq", "gptq"])
def test_a_sound_config_is_not_touched(packed, gptq, tiny_llama, tmp_path, kind):
    folder = without_record({"awq": packed, "gptq": gptq}[kind], tmp_path / "written")
    text = (folder / "config.json").read_bytes()
    assert complete_config(folder, Checkpoint(tiny_llama)) == []
    assert (folder / "config.json").read_bytes() == text
