"""Checkpoints in the layouts of other tools, written here by code from their documentation."""

import json

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file, save_file

from compress import quantize
from compress.checkpoint.formats import quantized_weight
from compress.checkpoint.load import load_model
from compress.checkpoint.packing import PACKINGS
from compress.checkpoint.read import Checkpoint
from compress.core import pack
from compress.core.errors import QCompressError
from compress.ship.convert import convert

AUTO_GPTQ = {  # AutoGPTQ 0.7, without checkpoint_format
    **{"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": False, "static_groups": False, "sym": True},
    **{"true_sequential": True, "model_name_or_path": None, "model_file_base_name": None, "quant_method": "gptq"},
}
GPTQ_MODEL = AUTO_GPTQ | {
    **{"checkpoint_format": "gptq", "lm_head": False, "pack_dtype": "int32", "dynamic": None},
    "meta": {"quantizer": ["gptqmodel:7.7.0"], "uri": "https://github.com/modelcloud/gptqmodel", "mse": 0.0},
}
AUTO_AWQ = {
    **{"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    "modules_to_not_convert": None,
}
BLOCK = "model.layers.1"
DOWN = f"{BLOCK}.mlp.down_proj"


@pytest.fixture(scope="module")
def packed(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("foreign")
    for name in ("awq", "gptq"):
        quantize(tiny_llama, folder / name, method="rtn", group_size=32, format=name)
    quantize(tiny_llama, folder / "ct", method="rtn", group_size=32, format="compressed-tensors")
    return folder


@pytest.fixture
def make_foreign(packed, tmp_path):
    """make_foreign(name, quantization, change): a copy with another quantization_config and changed tensors."""

    def make(name, quantization, change=lambda weights: None):
        folder = tmp_path / "foreign"
        folder.mkdir()
        for file in (packed / name).iterdir():
            if not file.name.startswith("qcompress") and file.name != "README.md":
                (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def same_weights(one, other):
    """Whether two checkpoints have equal weights in all linears."""
    modules = [f"{BLOCK}.{leaf}" for leaf in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj")]
    pairs = [[quantized_weight(Checkpoint(path), module).dequantize() for path in (one, other)] for module in modules]
    return all(torch.equal(*pair) for pair in pairs)


def zeros_as_they_are(weights):
    """gptq_v2: zeros without the 1 that gptq subtracts."""
    for name in [name for name in weights if name.endswith(".qzeros")]:
        weights[name] = pack.pack_words(pack.unpack_words(weights[name], 4, 1) + 1, 4, 1)


@pytest.mark.parametrize(
    ("quantization", "change"),
    [
        (AUTO_GPTQ, lambda weights: None),
        (GPTQ_MODEL, lambda weights: None),
        (GPTQ_MODEL | {"desc_act": True, "static_groups": True}, lambda weights: None),
        (GPTQ_MODEL | {"checkpoint_format": "gptq_v2"}, zeros_as_they_are),
        (GPTQ_MODEL | {"checkpoint_format": "gptq_v2", "desc_act": True}, zeros_as_they_are),
    ],
    ids=["AutoGPTQ", "GPTQModel", "desc_act with groups in order", "gptq_v2", "gptq_v2 with desc_act"],
)
def test_a_foreign_gptq_checkpoint_keeps_its_weights(packed, make_foreign, tmp_path, quantization, change):
    source = make_foreign("gptq", quantization, change)
    for target in ("awq", "gptq", "compressed-tensors"):
        convert(source, tmp_path / target, target)
        assert same_weights(packed / "gptq", tmp_path / target)
    quant = Checkpoint(tmp_path / "gptq").quantization
    assert quant["desc_act"] is False and quant["checkpoint_format"] == "gptq"


def test_zeros_of_gptq_v2_are_read_as_they_are(make_foreign, tmp_path):
    source = make_foreign("gptq", GPTQ_MODEL | {"checkpoint_format": "gptq_v2"})  # zeros 7, in the wrong layout
    with pytest.raises(QCompressError, match=r"T5 model\.layers\.0\.\S+\.qzeros: 0x77777777"):
        convert(source, tmp_path / "out", "awq")


def shuffled(weights, module, *, writers=True):
    """Give the inputs of a module another order, as act-order leaves them; its writers' outputs follow."""
    inputs = len(weights[f"{module}.g_idx"])
    places = torch.randperm(inputs, generator=torch.Generator().manual_seed(6)).argsort()  # old input of each new one
    codes = pack.unpack_words(weights[f"{module}.qweight"], 4, 0)
    weights[f"{module}.qweight"] = pack.pack_words(codes[places], 4, 0)
    weights[f"{module}.g_idx"] = weights[f"{module}.g_idx"][places]
    for leaf in ("gate_proj", "up_proj") if writers else ():
        writer = f"{BLOCK}.mlp.{leaf}"
        for name in ("qweight", "scales"):
            weights[f"{writer}.{name}"] = weights[f"{writer}.{name}"][:, places].contiguous()
        zeros = pack.unpack_words(weights[f"{writer}.qzeros"], 4, 1)
        weights[f"{writer}.qzeros"] = pack.pack_words(zeros[:, places], 4, 1)


@pytest.mark.parametrize("target", ["awq", "gptq", "compressed-tensors"])
def test_an_order_that_folds_into_the_linears_before_is_undone(packed, make_foreign, tmp_path, target):
    source = make_foreign("gptq", GPTQ_MODEL | {"desc_act": True}, lambda weights: shuffled(weights, DOWN))
    convert(source, tmp_path / "out", target)
    ids = torch.arange(24)[None]
    first, second = (load_model(Checkpoint(path))(ids).logits for path in (packed / "gptq", tmp_path / "out"))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def test_an_order_that_does_not_fold_is_refused_by_name(make_foreign, tmp_path):
    module = f"{BLOCK}.self_attn.o_proj"
    source = make_foreign(
        "gptq", GPTQ_MODEL | {"desc_act": True}, lambda weights: shuffled(weights, module, writers=False)
    )
    for out, target in (("out", "awq"), ("out.gguf", "gguf")):
        with pytest.raises(QCompressError, match=r"o_proj: its groups are in activation order \(desc_act\), and its"):
            convert(source, tmp_path / out, target)


def test_groups_of_different_sizes_are_refused_by_name(make_foreign, tmp_path):
    def uneven(weights):
        weights[f"{DOWN}.g_idx"][0] = 1

    source = make_foreign("gptq", GPTQ_MODEL | {"desc_act": True}, uneven)
    with pytest.raises(QCompressError, match=r"down_proj\.g_idx: the groups have different sizes"):
        convert(source, tmp_path / "out", "awq")


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_zero_points_of_gptq_are_exact_in_other_formats(packed, make_foreign, tmp_path, layout):
    source = Checkpoint(packed / "awq")

    def asymmetric(weights):
        for module in [name.removesuffix(".g_idx") for name in weights if name.endswith(".g_idx")]:
            parts = PACKINGS["gptq"].save(quantized_weight(source, module), torch.float16)
            weights.update({f"{module}.{suffix}": part for suffix, part in parts.items()})
        if layout == "gptq_v2":
            zeros_as_they_are(weights)

    foreign = make_foreign("gptq", GPTQ_MODEL | {"sym": False, "checkpoint_format": layout}, asymmetric)
    for target in ("awq", "compressed-tensors"):
        convert(foreign, tmp_path / target, target)
        assert same_weights(packed / "awq", tmp_path / target)
    with pytest.raises(QCompressError, match="gptq stores symmetric grids with zero 8"):
        convert(foreign, tmp_path / "gptq", "gptq")


def test_a_checkpoint_of_autoawq_keeps_its_weights(packed, make_foreign, tmp_path):
    source = make_foreign("awq", AUTO_AWQ)
    convert(source, tmp_path / "ct", "compressed-tensors")
    assert same_weights(packed / "awq", tmp_path / "ct")


def test_a_checkpoint_of_llm_compressor_keeps_its_weights(packed, make_foreign, tmp_path):
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    group = {"targets": ["Linear"], "weights": weights | {"actorder": "static", "observer": "minmax"}}
    settings = {"config_groups": {"group_0": group}, "ignore": ["lm_head"], "quantization_status": "compressed"}
    written = QuantizationConfig(**settings, format="pack-quantized").model_dump(mode="json")
    source = make_foreign("ct", {"quant_method": "compressed-tensors"} | written | {"version": "0.17.0"})
    convert(source, tmp_path / "awq", "awq")
    assert same_weights(packed / "ct", tmp_path / "awq")


def test_groups_in_activation_order_of_llm_compressor_are_refused_by_name(packed, make_foreign, tmp_path):
    def with_order(weights):
        weights[f"{DOWN}.weight_g_idx"] = torch.zeros(weights[f"{DOWN}.weight_packed"].shape[1] * 8, dtype=torch.int32)

    source = make_foreign("ct", Checkpoint(packed / "ct").quantization, with_order)
    with pytest.raises(QCompressError, match=r"down_proj\.weight_g_idx"):
        convert(source, tmp_path / "out", "awq")
