"""The import uses every tensor or refuses the file, and what it wrote is compared with the file."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from compress.checkpoint.gguf.importer import import_gguf
from compress.checkpoint.gguf.tensors import Parameter
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from tests.checkpoint.gguf.conftest import interleave

HALF_FIELDS = {Type.Q4_K: (0, 2), Type.Q6_K: (208,)}  # where a block has its float16 scales
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def random_blocks(shape, kind):
    """Random stored bytes of a type that the gguf package reads but does not write, with small float16 scales."""
    block, size = GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(3)
    blocks = generator.integers(0, 256, (shape[0] * shape[1] // block, size), np.uint8)
    for start in HALF_FIELDS[kind]:
        scales = generator.uniform(1e-4, 1e-3, len(blocks)).astype(np.float16)
        blocks[:, start : start + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(shape[0], -1)


@pytest.mark.parametrize(
    "kind",
    [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q6_K],
    ids=lambda kind: kind.name,
)
def test_every_linear_is_what_the_gguf_package_reads(make_spec, tmp_path, kind):
    _, spec = make_spec("llama", hidden_size=256, intermediate_size=512, head_dim=64)
    for name, values in spec.tensors.items():
        if values.ndim == 2:
            spec.types[name] = kind
            spec.tensors[name] = random_blocks(values.shape, kind) if kind in HALF_FIELDS else values
    file = spec.write(tmp_path / "model.gguf")
    import_gguf(file, tmp_path / "out")
    checkpoint = Checkpoint(tmp_path / "out")
    read = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(file).tensors}
    for block in range(2):
        for stored, linear in NAMES.items():
            ours = checkpoint.tensor(f"model.layers.{block}.{linear}.weight").numpy()
            heads = {"attn_q": 4, "attn_k": 2}.get(stored)
            ours = ours if heads is None else interleave(ours, heads)
            assert np.array_equal(ours, read[f"blk.{block}.{stored}.weight"].astype(np.float16)), stored


def test_two_imports_and_an_import_of_parts_are_equal(llama, tmp_path):
    whole = llama.write(tmp_path / "model.gguf")
    (tmp_path / "parts").mkdir()
    part = llama.write(tmp_path / "parts" / "model.gguf", parts=3)
    rows = [import_gguf(file, tmp_path / out) for file, out in ((whole, "one"), (whole, "two"))]
    import_gguf(part, tmp_path / "three")
    import_gguf(part.with_name("model-00003-of-00003.gguf"), tmp_path / "four")
    one, two, three, four = (files_of(tmp_path / name) for name in ("one", "two", "three", "four"))
    assert one == two and three == four and one["model.safetensors"] == three["model.safetensors"]
    assert one["config.json"] == three["config.json"] and rows[0]["parameters"] == rows[1]["parameters"] > 0


def rename(spec):
    spec.tensors["blk.1.ffn_upp.weight"] = spec.tensors.pop("blk.1.ffn_up.weight")


def transpose(spec):
    spec.tensors["blk.1.ffn_up.weight"] = np.ascontiguousarray(spec.tensors["blk.1.ffn_up.weight"].T)


def poison(spec):
    spec.tensors["blk.1.ffn_up.weight"][3, 5] = np.nan


def drop_block(spec):
    for name in [name for name in spec.tensors if name.startswith("blk.1.")]:
        del spec.tensors[name]


DAMAGE = {
    "a missing tensor": (lambda spec: spec.tensors.pop("blk.1.ffn_up.weight"), "lacks the tensor blk.1.ffn_up.weight;"),
    "a missing norm": (lambda spec: spec.tensors.pop("output_norm.weight"), "lacks the tensor output_norm.weight;"),
    "a renamed tensor": (rename, "lacks the tensor blk.1.ffn_up.weight;"),
    "a tensor too many": (
        lambda spec: spec.tensors.update({"blk.0.extra.weight": np.ones(4, np.float32)}),
        "has the tensor blk.0.extra.weight, which the model does not have;",
    ),
    "a transposed tensor": (transpose, "blk.1.ffn_up.weight has shape (64, 96), but its metadata gives (96, 64)"),
    "a weight that is not a number": (poison, "blk.1.ffn_up.weight: NaN or infinite values"),
    "a missing block": (drop_block, "has tensors of 1 blocks, but its metadata gives 2"),
    "too many blocks": (lambda spec: spec.set(block_count=10**9), "llama.block_count is 1,000,000,000, more than 512"),
    "another width": (
        lambda spec: spec.set(embedding_length=128),
        "token_embd.weight has shape (128, 64), but its metadata gives (128, 128)",
    ),
    "a vast head": (
        lambda spec: spec.set(attention__head_count=1, attention__head_count_kv=1, rope__dimension_count=2**30),
        "times the size of a head is 1,073,741,824, but no tensor has a size above 128",
    ),
    "a vast MLP": (
        lambda spec: spec.set(feed_forward_length=2**31 - 1),
        "feed_forward_length is 2,147,483,647, but no",
    ),
    "no heads": (lambda spec: spec.set(attention__head_count=0), "attention.head_count is 0, not a whole number"),
    "an adapter": (
        lambda spec: spec.metadata.update({"general.type": "adapter"}),
        "general.type is 'adapter', not model",
    ),
    "an eps that is not a number": (
        lambda spec: spec.set(attention__layer_norm_rms_epsilon=math.nan),
        "layer_norm_rms_epsilon is nan, not a number above 0",
    ),
    "an eps of zero": (lambda spec: spec.set(attention__layer_norm_rms_epsilon=0.0), "is 0.0, not a number above 0"),
    "no eps": (
        lambda spec: spec.metadata.pop("llama.attention.layer_norm_rms_epsilon"),
        "lacks the metadata key llama.attention.layer_norm_rms_epsilon",
    ),
    "experts": (lambda spec: spec.set(expert_count=8), "llama.expert_count is 8: mixtures of experts"),
    "a window": (lambda spec: spec.set(attention__sliding_window=64), "llama.attention.sliding_window is 64"),
    "a softcap": (lambda spec: spec.set(attn_logit_softcapping=30.0), "llama.attn_logit_softcapping is 30.0"),
    "an unknown key": (lambda spec: spec.set(new_trick=2), "llama.new_trick is 2: this key is unknown"),
    "a key of another architecture": (
        lambda spec: spec.metadata.update({"qwen2.rope.scaling.type": "yarn"}),
        "has the metadata key qwen2.rope.scaling.type, but its architecture is llama",
    ),
    "some rotated channels": (
        lambda spec: spec.set(rope__dimension_count=8, attention__key_length=16),
        "is 8, but heads",
    ),
    "too many key-value heads": (lambda spec: spec.set(attention__head_count_kv=3), "are not a multiple of"),
    "a text for a number": (lambda spec: spec.set(context_length="long"), "context_length is 'long', not a whole"),
    "a vocabulary of another size": (lambda spec: spec.set(vocab_size=129), "128 rows, but vocab_size is 129"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_is_no_whole_model_is_refused_by_name(llama, tmp_path, name):
    damage, words = DAMAGE[name]
    damage(llama)
    file = llama.write(tmp_path / "model.gguf")
    with pytest.raises(QCompressError) as error:
        import_gguf(file, tmp_path / "out")
    message = error.value.message
    assert words in message and message.startswith(f"{file}: ") and "\n" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


def test_an_unknown_architecture_lists_the_known_ones(make_spec, tmp_path):
    spec = replace(make_spec("llama")[1], architecture="bert")
    with pytest.raises(QCompressError, match="architecture 'bert' cannot be imported; give a file of one of llama, q"):
        import_gguf(spec.write(tmp_path / "model.gguf"), tmp_path / "out")


def test_notes_of_other_programs_are_harmless(llama, tmp_path):
    llama.metadata |= {
        "quantize.imatrix.file": "x.dat",
        "general.base_model.0.name": "y",
        "someone.quantized_at": "now",
    }
    assert import_gguf(llama.write(tmp_path / "model.gguf"), tmp_path / "out")["parameters"] > 0


@pytest.mark.parametrize("slip", ["order", "offset"])
def test_a_slip_while_reading_is_found_before_publishing(llama, tmp_path, monkeypatch, slip):
    file = llama.write(tmp_path / "model.gguf")
    if slip == "order":
        monkeypatch.setattr(Parameter, "order", property(lambda self: None))
    else:
        parts = Parameter.parts
        monkeypatch.setattr(Parameter, "parts", lambda self: (part + np.float32(1e-3) for part in parts(self)))
    with pytest.raises(ValueError, match=r"the written values of .* differ from the file"):
        import_gguf(file, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


def store_head_twice(spec, noise):
    head = spec.tensors["output.weight"]
    generator = np.random.default_rng(0)
    spec.tensors["token_embd.weight"] = head + np.float32(noise * head.std()) * generator.standard_normal(
        head.shape, np.float32
    )
    return head


def test_two_roundings_of_one_matrix_are_tied_and_the_head_is_kept(llama, tmp_path):
    head = store_head_twice(llama, noise=0.05)
    row = import_gguf(llama.write(tmp_path / "model.gguf"), tmp_path / "out")
    checkpoint = Checkpoint(tmp_path / "out")
    assert row["tied"].startswith("head and embedding were one matrix, cosine 0.99")
    assert checkpoint.config["tie_word_embeddings"] and "lm_head.weight" not in checkpoint.tensors
    assert np.array_equal(checkpoint.tensor("model.embed_tokens.weight").numpy(), head.astype(np.float16))


def test_different_matrices_stay_untied(llama, tmp_path):
    store_head_twice(llama, noise=0.5)
    assert "tied" not in import_gguf(llama.write(tmp_path / "model.gguf"), tmp_path / "out")
    checkpoint = Checkpoint(tmp_path / "out")
    assert not checkpoint.config["tie_word_embeddings"] and "lm_head.weight" in checkpoint.tensors


def test_absent_special_tokens_do_not_become_defaults_of_a_class(llama, tmp_path):
    del llama.metadata["tokenizer.ggml.bos_token_id"], llama.metadata["tokenizer.ggml.padding_token_id"]
    llama.metadata["tokenizer.ggml.eot_token_id"] = 2
    import_gguf(llama.write(tmp_path / "model.gguf"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["pad_token_id"], config["eos_token_id"]) == (None, None, [3, 2])


def test_float16_overflow_names_the_tensor_and_the_option(llama, tmp_path):
    llama.tensors["blk.0.ffn_up.weight"][0, 0] = 1e6
    file = llama.write(tmp_path / "model.gguf")
    with pytest.raises(QCompressError, match=r"blk\.0\.ffn_up\.weight: 1e\+06 overflows .* use --dtype bfloat16"):
        import_gguf(file, tmp_path / "out")
    import_gguf(file, tmp_path / "out", dtype=torch.bfloat16)
