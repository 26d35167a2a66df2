"""Stored tensors against config.json: quantized weights, ties, missing and unknown tensors, healthy checkpoints."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from compress.checkpoint.formats import weight_reader
from compress.checkpoint.load import load_model, open_causal_lm, open_for_text
from compress.checkpoint.vllm_models import NO_FLOAT16
from compress.core.errors import QCompressError
from compress.model.architectures import ARCHITECTURES
from tests.checkpoint.door.conftest import edit_config, edit_tensors

DOWN = "model__layers__0__mlp__down_proj"
CODES = torch.zeros(64, 128)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 128, "head_dim": 16}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
MODEL_TYPES = sorted({*ARCHITECTURES})


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{DOWN}__weight": CODES.to(torch.float8_e4m3fn)},
        {f"{DOWN}__weight": CODES.to(torch.float8_e5m2), f"{DOWN}__weight_scale_inv": torch.ones(1, 1)},
        {f"{DOWN}__weight": CODES.to(torch.int8), f"{DOWN}__weight_scale": torch.ones(64, 1)},
        {f"{DOWN}__weight": CODES.to(torch.uint8), f"{DOWN}__weight_scale_2": torch.ones(1)},
        {f"{DOWN}__weight": torch.zeros(64, 16, dtype=torch.uint32), f"{DOWN}__biases": torch.ones(64, 2)},
        {f"{DOWN}__weight": None, f"{DOWN}__qweight": torch.zeros(16, 64, dtype=torch.int32)},
        {f"{DOWN}__weight": None, f"{DOWN}__weight_packed": torch.zeros(64, 16, dtype=torch.int32)},
        {f"{DOWN}__weight_scale": torch.ones(64, 1)},
        {f"{DOWN}__SCB": torch.ones(64)},
        {f"{DOWN}__weight__absmax": torch.ones(64)},
        {"model__layers__0__mlp__experts__down_proj_blocks": torch.zeros(2, 4, dtype=torch.uint8)},
    ],
    ids=lambda tensors: str(list(tensors)),
)
def test_quantized_weights_without_a_description_are_refused(model, refused, tensors):
    edit_tensors(model, **tensors)
    refused(model, "model.safetensors", "already quantized", "16-bit checkpoint")


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json", "quanto_qmap.json"])
def test_a_config_file_of_another_quantizer_is_refused(model, refused, name):
    (model / name).write_text("{}")
    refused(model, name, "already quantized")


@pytest.mark.parametrize(
    "values",
    [
        {"quantization": {"group_size": 64, "bits": 4}},
        {"compression_config": {"format": "float-quantized"}},
        {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
        {"quantization_config": {}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"quantization_config": {"quant_method": ["awq"]}},
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}},
    ],
    ids=str,
)
def test_a_description_of_unreadable_weights_is_refused(model, refused, values):
    edit_config(model, **values)
    refused(model, "config.json", "16-bit checkpoint")


FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def test_a_described_fp8_model_opens_only_for_a_runtime_that_can_read_it(model, refused):
    edit_config(model, **FP8)
    scale = {f"{DOWN}__weight_scale_inv": torch.ones(1, 1), f"{DOWN}__input_scale": torch.ones(1)}
    edit_tensors(model, **{f"{DOWN}__weight": CODES.to(torch.float8_e4m3fn)}, **scale)
    refused(model, "quant_method", "'fp8' is not supported")
    assert open_for_text(model, readable=False)
    with pytest.raises(QCompressError, match="not supported"):
        weight_reader(open_causal_lm(model, readable=False))


def test_codes_are_not_read_as_weights_beside_a_supported_description(model, refused):
    edit_config(model, quantization_config={"quant_method": "compressed-tensors", "format": "pack-quantized"})
    edit_tensors(model, **{f"{DOWN}__weight": CODES.to(torch.float8_e4m3fn)})
    refused(model, "down_proj.weight", "cannot be read (float8_e4m3fn)")


def test_a_trained_head_in_a_tied_model_is_refused_with_both_cures(untied, refused):
    edit_config(untied, tie_word_embeddings=True)
    refused(untied, "tie_word_embeddings", "set it to false", "delete lm_head.weight")
    edit_config(untied, tie_word_embeddings=...)  # the default of qwen2 is untied
    assert open_causal_lm(untied)


def test_a_tied_head_of_another_shape_or_dtype_is_compared_too(model, refused):
    table = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(model, lm_head__weight=table.float())
    assert open_causal_lm(model)
    edit_tensors(model, lm_head__weight=table[:-1].clone())
    refused(model, "tie_word_embeddings")


def test_a_tied_head_that_equals_the_embedding_passes(model):
    expected = load_model(model).lm_head.weight
    edit_tensors(model, lm_head__weight=load_file(model / "model.safetensors")["model.embed_tokens.weight"])
    assert load_model(model).lm_head.weight.equal(expected)


def test_an_untied_model_without_a_head_is_refused(model, refused):
    edit_config(model, tie_word_embeddings=False)
    refused(model, "lm_head.weight", "tie_word_embeddings to true")


def test_blocks_beyond_the_config_are_refused(model, refused):
    edit_config(model, num_hidden_layers=1)
    refused(model, "belongs to block 1, but num_hidden_layers is 1")
    edit_config(model, num_hidden_layers=2)
    edit_tensors(model, model__layers__2__eh_proj__weight=torch.zeros(64, 128))
    refused(model, "belongs to block 2")


def test_unknown_missing_and_misshapen_tensors_are_refused(model, refused):
    edit_tensors(model, model__extra__weight=torch.zeros(2))
    refused(model, "model.extra.weight", "vLLM stops at it")
    edit_tensors(model, model__extra__weight=None, model__norm__weight=None)
    refused(model, "model.norm.weight", "missing")
    edit_tensors(model, model__norm__weight=torch.zeros(63))
    refused(model, "model.norm.weight", "shape [63]", "requires [64]")


def test_biases_of_zeros_beside_codes_pass(good, tmp_path):
    path = shutil.copytree(good("llama", "gptq"), tmp_path / "model")
    edit_tensors(path, model__layers__0__self_attn__k_proj__bias=torch.zeros(32))
    assert open_causal_lm(path)


@pytest.mark.parametrize("kind", ["awq", "gptq", "ct", "ct-asym", "gptq-ends", "ct-ends"])
def test_a_quantized_checkpoint_of_every_format_passes(good, kind):
    assert open_for_text(good("qwen2", kind))


def test_computed_buffers_of_old_checkpoints_pass(model):
    edit_tensors(model, model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8))
    assert open_causal_lm(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_healthy_checkpoint_of_every_family_passes(model_type, dtype, save_model, tmp_path):
    if dtype == torch.float16 and model_type in NO_FLOAT16:
        pytest.skip("activations overflow")
    built = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **HEADS))
    checkpoint = open_for_text(save_model(built, tmp_path / "model", 0, dtype))
    assert load_model(checkpoint) and checkpoint.settled


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_checkpoint_that_transformers_saved_passes(model_type, tmp_path):
    config = AutoConfig.for_model(model_type, **SIZES, **HEADS)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert open_causal_lm(tmp_path)


def test_mixed_dtypes_and_a_padded_vocabulary_pass(model):
    table = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    padded = torch.cat([table, torch.zeros(64, 64, dtype=table.dtype)])
    edit_tensors(model, model__embed_tokens__weight=padded, model__norm__weight=torch.ones(64))
    edit_config(model, vocab_size=192)
    assert open_for_text(model)


def test_several_shards_of_each_family_pass(model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    for number, name in enumerate(sorted(tensors), 1):
        save_file({name: tensors[name]}, model / f"model-{number:05d}-of-{len(tensors):05d}.safetensors")
    (model / "model.safetensors").unlink()
    assert open_causal_lm(model)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from compress.checkpoint.load import open_causal_lm
from compress.core.errors import QCompressError
import time
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    open_causal_lm(sys.argv[1])
except QCompressError as error:
    print(error.message)
print(time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blocks", "tensors", "many blocks", "a long header"])
def test_absurd_headers_cost_little_time_and_memory(tiny_llama, tmp_path, kind):
    path = shutil.copytree(tiny_llama, tmp_path / "model")
    header = {"__metadata__": {"format": "pt"}}
    count = {"tensors": 40_000, "many blocks": 4_500, "a long header": 400_000}.get(kind, 0)
    for number in range(count):
        name = f"model.layers.{number}.mlp.up_proj.weight" if kind == "many blocks" else f"t{number}"
        header[name] = {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}
    if count:
        text = json.dumps(header).encode()
        (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    edit_config(path, num_hidden_layers={"blocks": 10**9, "many blocks": 4_500}.get(kind, 2))
    run = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, run.stderr.split()[-2:])
    assert run.stdout.startswith(str(path)) and run.stdout.count("\n") == 1
    assert seconds < 10 and kilobytes < 600_000
