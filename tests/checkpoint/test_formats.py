"""The formats: pinned bytes, exact round trips, and a comparison with the compressed-tensors library."""

import json
import re
import shutil

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file

from compress.checkpoint.formats import (
    FORMATS,
    format_of,
    model_dtype,
    quantized_weight,
    weight_reader,
)
from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.schemes import skip_rule
from compress.core import pack
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.core.grid import QuantizedWeight, Scheme
from compress.model.families import FUSED
from compress.quantize.methods.rtn import rtn

KINDS = [("awq", False), ("gptq", True), ("compressed-tensors", True), ("compressed-tensors", False)]
IDS = ["awq", "gptq", "ct-sym", "ct-asym"]
every_kind = pytest.mark.parametrize(("name", "sym"), KINDS, ids=IDS)
Q = "model.layers.1.self_attn.q_proj"


def fixed_weight(*, sym: bool) -> QuantizedWeight:
    """(out 8, in 8) in groups of 4: code n + k for output n and input k; scales 2^-n and 2^-n-1; zeros 8, or n + 1."""
    codes = (torch.arange(8)[:, None] + torch.arange(8)).byte()
    scales = torch.tensor([[2.0**-n, 2.0 ** (-n - 1)] for n in range(8)])
    zeros = torch.full((8, 2), 8.0) if sym else torch.tensor([[n + 1.0, 8.0] for n in range(8)])
    return QuantizedWeight(codes, scales, zeros, sym=sym)


def hexadecimal(words: torch.Tensor) -> list[list[str]]:
    return [[f"{word & 0xFFFFFFFF:08x}" for word in row] for row in words.tolist()]


DIAGONAL = ["76543210", "87654321", "98765432", "a9876543", "ba987654", "cba98765", "dcba9876", "edcba987"]


def test_a_fixed_matrix_has_the_pinned_bytes_in_awq():
    tensors = FORMATS["awq"].save(fixed_weight(sym=False), torch.float16)
    assert [row[0] for row in hexadecimal(tensors["qweight"])] == [  # one word per input: outputs 0 2 4 6 1 3 5 7
        *("75316420", "86427531", "97538642", "a8649753", "b975a864", "ca86b975", "db97ca86", "eca8db97")
    ]
    assert hexadecimal(tensors["qzeros"]) == [["86427531"], ["88888888"]]
    assert tensors["scales"].dtype == torch.float16 and tensors["scales"].shape == (2, 8)
    assert tensors["scales"].tolist() == [[2.0**-n for n in range(8)], [2.0 ** (-n - 1) for n in range(8)]]


def test_a_fixed_matrix_has_the_pinned_bytes_in_gptq():
    tensors = FORMATS["gptq"].save(fixed_weight(sym=True), torch.float16)
    assert hexadecimal(tensors["qweight"]) == [DIAGONAL]
    assert hexadecimal(tensors["qzeros"]) == [["77777777"], ["77777777"]]
    assert tensors["g_idx"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1] and tensors["g_idx"].dtype == torch.int32
    assert tensors["scales"].tolist() == [[2.0**-n for n in range(8)], [2.0 ** (-n - 1) for n in range(8)]]


def test_a_fixed_matrix_has_the_pinned_bytes_in_compressed_tensors():
    tensors = FORMATS["compressed-tensors"].save(fixed_weight(sym=False), torch.bfloat16)
    assert hexadecimal(tensors["weight_packed"]) == [[word] for word in DIAGONAL]
    assert hexadecimal(tensors["weight_zero_point"]) == [["87654321", "88888888"]]
    assert tensors["weight_scale"].tolist() == [[2.0**-n, 2.0 ** (-n - 1)] for n in range(8)]
    assert tensors["weight_scale"].dtype == torch.bfloat16
    assert tensors["weight_shape"].tolist() == [8, 8] and tensors["weight_shape"].dtype == torch.int64
    assert "weight_zero_point" not in FORMATS["compressed-tensors"].save(fixed_weight(sym=True), torch.float16)


@every_kind
def test_save_then_load_is_the_identity(name, sym):
    row, scheme = FORMATS[name], Scheme(4, 32, sym, Dtype.float16)
    weight = rtn(torch.randn(24, 96), Scheme(group_size=32, sym=sym))
    back = row.load(row.save(weight, torch.float16).__getitem__, scheme)
    for part in ("codes", "scales", "zeros"):
        assert torch.equal(getattr(back, part), getattr(weight, part)), part
    assert back.sym == sym and torch.equal(back.dequantize(), weight.dequantize())


@every_kind
@pytest.mark.parametrize("dtype", [Dtype.float16, Dtype.bfloat16])
def test_saved_tensors_match_the_planned_names_and_shapes(name, sym, dtype):
    row, scheme = FORMATS[name], Scheme(4, 32, sym, dtype)
    saved = row.save(rtn(torch.randn(24, 96), Scheme(group_size=32, sym=sym, dtype=dtype)), dtype.torch)
    assert {spec.name: (spec.dtype, spec.shape) for spec in row.specs(24, 96, scheme)} == {
        key: (Dtype.of(tensor.dtype), tuple(tensor.shape)) for key, tensor in saved.items()
    }
    assert all(tensor.is_contiguous() for tensor in saved.values())


@every_kind
def test_the_scheme_read_from_a_config_is_the_one_written(name, sym):
    row, scheme = FORMATS[name], Scheme(4, 64, sym, Dtype.bfloat16)
    config = row.config({Q: scheme}, ["lm_head"])
    assert row.scheme(config, Q, Dtype.bfloat16) == scheme and config["quant_method"] == name


def ct_scheme(sym: bool, group_size: int) -> QuantizationScheme:
    args = QuantizationArgs(num_bits=4, type="int", symmetric=sym, strategy="group", group_size=group_size)
    return QuantizationScheme(targets=["Linear"], weights=args)


@pytest.mark.parametrize("sym", [True, False], ids=["sym", "asym"])
def test_compressed_tensors_reads_our_bytes_as_the_same_weights(sym):
    weight = rtn(torch.randn(24, 96), Scheme(group_size=32, sym=sym, dtype=Dtype.float32))
    saved = FORMATS["compressed-tensors"].save(weight, torch.float32)
    read = PackedQuantizationCompressor.decompress(saved, ct_scheme(sym, 32))
    assert torch.equal(read["weight"], weight.dequantize())


@pytest.mark.parametrize("sym", [True, False], ids=["sym", "asym"])
def test_compressed_tensors_writes_the_same_bytes(sym):
    weight = rtn(torch.randn(24, 96), Scheme(group_size=32, sym=sym, dtype=Dtype.float32))
    ours = FORMATS["compressed-tensors"].save(weight, torch.float32)
    state = {
        "weight": weight.dequantize(),
        "weight_scale": weight.scales,
        "weight_zero_point": (weight.zeros - 8).to(torch.int8),
    }
    theirs = PackedQuantizationCompressor.compress(state, ct_scheme(sym, 32))
    assert theirs.keys() == ours.keys()
    for key, tensor in ours.items():
        assert torch.equal(theirs[key], tensor) and theirs[key].dtype == tensor.dtype, key


@pytest.mark.parametrize("kind", ["ct", "ct-asym"])
@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_transformers_loads_our_compressed_tensors_with_the_same_logits(good, model, kind):
    from transformers import AutoModelForCausalLM

    ids = torch.arange(4, 24)[None]
    theirs = AutoModelForCausalLM.from_pretrained(good(model, kind), dtype=torch.float32)
    with torch.no_grad():
        expected = load_model(good(model, kind))(ids).logits
        torch.testing.assert_close(theirs(ids).logits, expected, atol=2e-3, rtol=2e-3)


def slow_awq(tensors: dict[str, torch.Tensor], n: int, k: int, group_size: int) -> float:
    """w[n, k] by the loaders' formula, in Python integers: (q - z) · s."""
    place = (0, 4, 1, 5, 2, 6, 3, 7)[n % 8]
    code = (int(tensors["qweight"][k, n // 8]) >> (4 * place)) & 15
    zero = (int(tensors["qzeros"][k // group_size, n // 8]) >> (4 * place)) & 15
    return (code - zero) * float(tensors["scales"][k // group_size, n])


def slow_gptq(tensors: dict[str, torch.Tensor], n: int, k: int, group_size: int) -> float:
    """w[n, k] as transformers' GPTQ loaders compute it: (q - (stored zero + 1)) · s of the column's group."""
    group = int(tensors["g_idx"][k])
    code = (int(tensors["qweight"][k // 8, n]) >> (4 * (k % 8))) & 15
    zero = ((int(tensors["qzeros"][group, n // 8]) >> (4 * (n % 8))) & 15) + 1
    return (code - zero) * float(tensors["scales"][group, n])


@pytest.mark.parametrize(("name", "slow", "sym"), [("awq", slow_awq, False), ("gptq", slow_gptq, True)])
def test_dequantize_equals_a_slow_loop_of_the_loaders_formula(name, slow, sym):
    weight = rtn(torch.randn(16, 64), Scheme(group_size=32, sym=sym))
    tensors = FORMATS[name].save(weight, torch.float16)
    expected = [[slow(tensors, n, k, 32) for k in range(64)] for n in range(16)]
    assert torch.equal(weight.dequantize(), torch.tensor(expected))


@pytest.mark.parametrize("kind", ["awq", "gptq", "ct", "ct-asym"])
def test_the_weight_reader_dequantizes_packed_tensors_only(good, kind):
    checkpoint = Checkpoint(good("llama", kind))
    read = weight_reader(checkpoint)
    weight, source = read(f"{Q}.weight"), Checkpoint(good("llama", "plain")).tensor(f"{Q}.weight").float()
    assert torch.equal(weight, quantized_weight(checkpoint, Q).dequantize())
    assert 0 < (weight - source).norm() < 0.15 * source.norm()
    assert torch.equal(read("model.norm.weight"), checkpoint.tensor("model.norm.weight"))
    with pytest.raises(QCompressError, match="no tensor"):
        read("model.layers.1.self_attn.z_proj.weight")


def test_a_plain_checkpoint_has_no_format_and_no_codes(good):
    checkpoint = Checkpoint(good("llama", "plain"))
    assert format_of(checkpoint) is None
    with pytest.raises(QCompressError, match="not quantized"):
        quantized_weight(checkpoint, Q)


def test_an_unknown_method_is_rejected_by_name(good):
    checkpoint = Checkpoint(good("llama", "awq"))
    checkpoint.config["quantization_config"]["quant_method"] = "bitsandbytes"
    with pytest.raises(QCompressError, match="bitsandbytes"):
        weight_reader(checkpoint)


def changed(good, tmp_path, settings, change):
    """A copy of the gptq checkpoint with other settings. `change` gets the tensors of Q by suffix, and edits them."""
    folder = tmp_path / "changed"
    shutil.copytree(good("llama", "gptq"), folder)
    tensors = load_file(folder / "model.safetensors")
    parts = {suffix: tensors[f"{Q}.{suffix}"] for suffix in ("qweight", "qzeros", "scales", "g_idx")}
    change(parts)
    save_file(
        tensors | {f"{Q}.{suffix}": part.contiguous() for suffix, part in parts.items()}, folder / "model.safetensors"
    )
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint(folder)


def test_columns_in_act_order_are_read_by_their_groups(good, tmp_path):
    plain = quantized_weight(Checkpoint(good("llama", "gptq")), Q)
    order = torch.randperm(plain.codes.shape[1], generator=torch.Generator().manual_seed(0))

    def permute(parts):
        parts["qweight"] = pack.pack_gptq_codes(plain.codes[:, order])
        parts["g_idx"] = parts["g_idx"][order]

    read = weight_reader(changed(good, tmp_path, {"desc_act": True}, permute))
    assert torch.equal(read(f"{Q}.weight"), plain.dequantize()[:, order])


def test_act_order_with_columns_in_order_is_a_plain_weight(good, tmp_path):
    weight = quantized_weight(changed(good, tmp_path, {"desc_act": True}, lambda parts: None), Q)
    assert weight.order is None


def test_a_g_idx_that_names_no_group_is_rejected_with_the_linear(good, tmp_path):
    def break_it(parts):
        parts["g_idx"][3] = 99

    with pytest.raises(ValueError, match=rf"{re.escape(Q)}: g_idx"):
        quantized_weight(changed(good, tmp_path, {"desc_act": True}, break_it), Q)


def test_zeros_of_gptq_v2_are_read_as_they_are(good, tmp_path):
    plain = quantized_weight(Checkpoint(good("llama", "gptq")), Q)

    def store_v2(parts):
        parts["qzeros"] = parts["qzeros"] + 0x11111111  # 7 becomes 8

    weight = quantized_weight(changed(good, tmp_path, {"checkpoint_format": "gptq_v2"}, store_v2), Q)
    assert torch.equal(weight.zeros, plain.zeros) and torch.equal(weight.dequantize(), plain.dequantize())


def test_zeros_other_than_the_middle_code_are_read(good, tmp_path):
    def store(parts):
        parts["qzeros"] = torch.zeros_like(parts["qzeros"])

    assert (quantized_weight(changed(good, tmp_path, {"sym": False}, store), Q).zeros == 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 5}, "quantization_config.bits: 5 is not supported; supported: 2, 3, 4, 8"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format: 'marlin' is not supported; supported: gptq, gptq_v2"),
        ({"pack_dtype": "int8"}, "pack_dtype: 'int8' is not supported"),
        ({"quant_method": "awq", "version": "gemv"}, "version: 'gemv' is not supported; supported: gemm"),
        ({"quant_method": "awq", "zero_point": False}, "zero_point: False is not supported"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 3}}}},
            "config_groups.group_0.weights.num_bits: 3 is not supported; supported: 4, 8",
        ),
    ],
)
def test_a_layout_that_cannot_be_read_is_refused_by_its_name(good, settings, message):
    checkpoint = Checkpoint(good("llama", "gptq"))
    checkpoint.config["quantization_config"].update(settings)
    with pytest.raises(QCompressError, match=re.escape(message)):
        weight_reader(checkpoint)


def test_a_wrong_group_size_is_rejected_with_both_numbers(good):
    checkpoint = Checkpoint(good("llama", "gptq"))
    checkpoint.config["quantization_config"]["group_size"] = 64
    with pytest.raises(ValueError, match="64"):
        quantized_weight(checkpoint, Q)


def test_awq_is_read_under_its_older_key_names():
    scheme = FORMATS["awq"].scheme({"w_bit": 4, "q_group_size": 64}, Q, Dtype.float16)
    assert scheme == Scheme(4, 64, False, Dtype.float16)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "torch.float16"])
def test_the_dtype_is_read_from_dtype_or_torch_dtype(name):
    expected = Dtype(name.removeprefix("torch."))
    assert model_dtype({"dtype": name}) == expected == model_dtype({"torch_dtype": name})
    assert model_dtype({}) == Dtype.float16


def test_an_unknown_dtype_is_rejected():
    with pytest.raises(QCompressError, match="float8"):
        model_dtype({"dtype": "float8"})


def test_a_skip_rule_matches_only_its_module_and_the_fused_layer():
    pattern = skip_rule("model.layers.1.self_attn.q_proj").removeprefix("-:")
    hit = ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.qkv_proj"]
    missed = ["model.layers.11.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "model.layers.1.mlp.q_proj"]
    assert all(re.match(pattern, name) for name in hit) and not any(re.match(pattern, name) for name in missed)
    assert "self_attn.qkv_proj" in FUSED
    skipped = ["lm_head", "model.layers.1.mlp.down_proj"]
    config = FORMATS["gptq"].config({Q: Scheme(4, 32, True, Dtype.float16)}, skipped)
    assert [re.match(p[2:], "model.layers.2.mlp.down_proj") for p in config["dynamic"]] == [None]
