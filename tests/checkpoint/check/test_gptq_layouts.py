"""Rules C5 and T5 on GPTQ checkpoints of other tools: gptq_v2, act-order, other bits."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoint.check.run import check_checkpoint
from compress.ship.convert import convert


def variant(good, folder, settings, change):
    """A copy of the gptq checkpoint with other settings. `change(suffix, tensor)` returns the new tensor."""
    shutil.copytree(good("llama", "gptq"), folder, ignore=shutil.ignore_patterns("qcompress*"))
    tensors = load_file(folder / "model.safetensors")
    changed = {name: change(name.rpartition(".")[2], tensor).contiguous() for name, tensor in tensors.items()}
    save_file(changed, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def findings(path):
    return {(row["rule"], row["level"]) for row in check_checkpoint(path)}


def test_gptq_v2_with_its_own_zeros_is_a_warning_and_converts(good, tmp_path):
    def add_one(suffix, tensor):
        return tensor + 0x11111111 if suffix == "qzeros" else tensor

    path = variant(good, tmp_path / "v2", {"checkpoint_format": "gptq_v2"}, add_one)
    assert findings(path) == {("C5", "warning")} | findings(good("llama", "gptq"))
    convert(path, tmp_path / "v1", "gptq")
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "v1", good("llama", "gptq")))
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_gptq_v2_with_zeros_of_v1_is_an_error(good, tmp_path):
    path = variant(good, tmp_path / "v2", {"checkpoint_format": "gptq_v2"}, lambda suffix, tensor: tensor)
    assert ("T5", "error") in findings(path)


@pytest.mark.parametrize("settings", [{"desc_act": True}, {"desc_act": True, "static_groups": True}])
def test_act_order_is_an_error_of_its_setting(good, tmp_path, settings):
    path = variant(good, tmp_path / "order", settings, lambda suffix, tensor: tensor)
    assert ("C5", "error") in findings(path) and ("T5", "error") not in findings(path)


@pytest.mark.parametrize("bits", [2, 3])
def test_bits_that_vllm_refuses_are_an_error_of_their_setting(good, tmp_path, bits):
    path = variant(good, tmp_path / "bits", {"bits": bits}, lambda suffix, tensor: tensor)
    assert ("C5", "error") in findings(path)
