import json
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from compress import quantize
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.gguf.importer import import_gguf
from compress.checkpoint.gguf.shards import GgufModel
from compress.checkpoint.gguf.tensors import dequantize_rows
from compress.checkpoint.read import Checkpoint
from compress.core.errors import GateFailure, QCompressError
from compress.ship.convert import convert
from compress.ship.gguf.export import check_tokens

pytestmark = pytest.mark.slow  # runs whole jobs

SIZES = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
THETA = {"rope_theta": 5000.0, "rope_type": "default"}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 5000.0,
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "original_max_position_embeddings": 256,
    "partial_rotary_factor": 1.0,
}
MODELS = {
    "llama": {"rope_parameters": THETA},
    "llama with biases": {"rope_parameters": THETA, "attention_bias": True, "mlp_bias": True},
    "llama of version 3": {"rope_parameters": LLAMA3},
    "mistral": {"rope_parameters": THETA, "sliding_window": None, "head_dim": 32},
    "qwen2": {"rope_parameters": THETA, "tie_word_embeddings": True},
    "qwen2 with yarn": {"rope_parameters": THETA | {"rope_type": "yarn", "factor": 4.0}},
    "qwen2 with linear scaling": {"rope_parameters": THETA | {"rope_type": "linear", "factor": 2.0}},
    "qwen3": {"rope_parameters": THETA, "head_dim": 32},
    "phi3": {"rope_parameters": THETA | {"partial_rotary_factor": 0.5}, "sliding_window": 8},
    "phi3 with long contexts": {"rope_parameters": LONG, "original_max_position_embeddings": 256},
    "granite": {"rope_parameters": THETA, "attention_multiplier": 0.1, "logits_scaling": 2.0},
    "smollm3": {"rope_parameters": THETA},
    "llama with pieces": {"rope_parameters": THETA},
    "mistral with pieces": {"rope_parameters": THETA, "sliding_window": None},
    "phi3 with pieces": {"rope_parameters": THETA, "sliding_window": None},
    "gemma3_text with pieces": {
        "rope_parameters": {"sliding_attention": THETA, "full_attention": THETA | {"rope_theta": 9000.0}},
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "tie_word_embeddings": True,
    },
}
PIECES = {"llama": "llama 2", "mistral": "mistral", "phi3": "llama 2", "gemma3_text": "gemma"}


def write_tokenizer(folder):
    """Replace tokenizer.json by a byte-level BPE that knows all 256 bytes, as llama.cpp expects it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=[token["content"] for token in special],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog, and the other foxes too"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def make(tmp_path_factory, save_model, write_pieces):
    """make(name, **settings): a tiny model of MODELS, quantized by rounding, in a folder of its own."""
    folder, sources = tmp_path_factory.mktemp("gguf"), {}

    def build(name, **settings):
        key = (name, *sorted(settings.items()))
        if key not in sources:
            own = deepcopy(MODELS[name])  # transformers adds keys to rope_parameters
            config = AutoConfig.for_model(name.split()[0], **SIZES | {"tie_word_embeddings": False} | own)
            dtype = torch.bfloat16 if name.startswith("gemma3") else torch.float16
            model = AutoModelForCausalLM.from_config(config)
            plain = save_model(model, folder / f"{len(sources)}-plain", seed=3, dtype=dtype)
            if name.endswith("with pieces"):
                write_pieces(plain, PIECES[name.split()[0]])
            else:
                write_tokenizer(plain)
            quantize(plain, folder / f"{len(sources)}", method="rtn", group_size=32, **settings)
            sources[key] = folder / str(len(sources))
        return sources[key]

    return build


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", [{"format": "awq"}, {"format": "gptq"}], ids=["awq", "gptq"])
def test_every_supported_model_reads_back_bit_by_bit(make, tmp_path, name, settings):
    source = make(name, **settings)
    row = convert(source, tmp_path / "model.gguf", "gguf")
    assert ("Q4_0" if settings["format"] == "gptq" else "Q5_0") in row["types"]
    import_gguf(tmp_path / "model.gguf", tmp_path / "back", dtype=torch.float32)
    read, back = weight_reader(Checkpoint(source)), Checkpoint(tmp_path / "back")
    for parameter in back.tensors:
        written = back.tensor(parameter)
        expected = read(parameter).float()
        if name.startswith("gemma3") and "norm" in parameter:
            expected = expected + 1 - 1  # the file stores the weight plus 1
        assert torch.equal(written, expected), parameter


def test_two_exports_write_the_same_bytes(make, tmp_path):
    for name in ("one.gguf", "two.gguf"):
        convert(make("llama", format="gptq"), tmp_path / name, "gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_rows_of_queries_are_interleaved_as_llama_cpp_reads_them(make, tmp_path):
    source = make("llama", format="gptq")
    convert(source, tmp_path / "model.gguf", "gguf")
    written = dequantize_rows(GgufModel(tmp_path / "model.gguf").tensors["blk.0.attn_q.weight"], slice(None))
    plain = weight_reader(Checkpoint(source))("model.layers.0.self_attn.q_proj.weight").numpy()
    np.testing.assert_array_equal(written[0], plain[0])
    np.testing.assert_array_equal(written[1], plain[8])  # the partner of row 0 in a head of 16 channels


def edit(folder, name, change):
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))


@pytest.fixture
def copy(make, tmp_path):
    """A copy of the quantized llama whose files a test may change."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in make("llama", format="gptq").iterdir():
        if not file.name.startswith("qcompress"):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_an_unknown_way_to_split_text_is_refused(copy, tmp_path):
    def split(value):
        value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, value["pre_tokenizer"]]}

    edit(copy, "tokenizer.json", split)
    with pytest.raises(QCompressError, match=r"llama\.cpp has no name for this pre_tokenizer"):
        convert(copy, tmp_path / "model.gguf", "gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_a_tokenizer_that_splits_digits_is_exported_as_smollm(copy, tmp_path):
    def split(value):
        digits = {"type": "Digits", "individual_digits": True}
        value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, value["pre_tokenizer"]]}
        value["model"]["vocab"]["Ġ1"] = len(value["model"]["vocab"])
        value["model"]["merges"].append(["Ġ", "1"])

    edit(copy, "tokenizer.json", split)
    convert(copy, tmp_path / "model.gguf", "gguf")
    model = GgufModel(tmp_path / "model.gguf")
    assert model.metadata["tokenizer.ggml.pre"] == "smollm"
    model.metadata["tokenizer.ggml.pre"] = "starcoder"  # the same rule, which the importer reads alike
    check_tokens(Checkpoint(copy), model)
    model.metadata["tokenizer.ggml.pre"] = "gpt-2"
    with pytest.raises(GateFailure, match="gives other token ids"):
        check_tokens(Checkpoint(copy), model)


def test_a_setting_that_a_gguf_file_cannot_store_is_refused(copy, tmp_path):
    edit(copy, "config.json", lambda value: value.update(hidden_act="relu"))
    with pytest.raises(GateFailure, match=r"config\.json: hidden_act is 'relu', which a .gguf file cannot store"):
        convert(copy, tmp_path / "model.gguf", "gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_model_type_without_an_architecture_is_refused(make, tmp_path, save_model):
    config = AutoConfig.for_model("olmo2", **SIZES)
    plain = save_model(AutoModelForCausalLM.from_config(config), tmp_path / "plain", seed=3)
    write_tokenizer(plain)
    quantize(plain, tmp_path / "olmo2", method="rtn", group_size=32)
    with pytest.raises(QCompressError, match=r"model_type olmo2: cannot be written as \.gguf; supported: mistral"):
        convert(tmp_path / "olmo2", tmp_path / "model.gguf", "gguf")


@pytest.mark.parametrize("name", ["model.bin", "model"])
def test_the_file_must_be_named_gguf(make, tmp_path, name):
    with pytest.raises(QCompressError, match=r"the name of the file must end in \.gguf"):
        convert(make("llama", format="gptq"), tmp_path / name, "gguf")


def test_a_file_that_exists_is_never_replaced(make, tmp_path):
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(QCompressError, match="exists already"):
        convert(make("llama", format="gptq"), tmp_path / "model.gguf", "gguf")
    assert (tmp_path / "model.gguf").read_text() == "mine"


def test_only_an_unfinished_gguf_file_is_overwritten(make, tmp_path):
    partial = tmp_path / ".model.gguf.partial"
    partial.write_text("mine")
    with pytest.raises(QCompressError, match=r"\.model\.gguf\.partial: exists, and qcompress did not write it"):
        convert(make("llama", format="gptq"), tmp_path / "model.gguf", "gguf")
    assert partial.read_text() == "mine"
    partial.write_bytes(b"GGUF of a killed run")
    convert(make("llama", format="gptq"), tmp_path / "model.gguf", "gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_missing_gguf_package_is_an_error_about_the_file(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(QCompressError, match=r"model\.gguf: \.gguf files need the gguf package .*: pip install"):
        convert(tmp_path / "source", tmp_path / "model.gguf", "gguf")


def test_a_plain_checkpoint_is_refused(tiny_llama, tmp_path):
    with pytest.raises(QCompressError, match="is not quantized"):
        convert(tiny_llama, tmp_path / "model.gguf", "gguf")


def measured(make, tmp_path, name="llama", **settings):
    """The row of an export, and the largest difference between the embedding in the file and in the checkpoint."""
    source = make(name, format="gptq")
    row = convert(source, tmp_path / "model.gguf", "gguf", **settings)
    written = dequantize_rows(GgufModel(tmp_path / "model.gguf").tensors["token_embd.weight"], slice(None))
    original = Checkpoint(source).tensor("model.embed_tokens.weight").float().numpy()
    return row, float(np.abs(written - original).max())


def test_a_rounded_embedding_states_the_error_in_the_file(make, tmp_path):
    row, largest = measured(make, tmp_path, embedding_type="q8_0")
    (error,) = row["errors"]
    assert error["type"] == "Q8_0" and error["tensors"] == 2 and 0 < error["relative_error"] < 0.01
    assert error["largest_error"] >= largest > 0 and "2 Q8_0" in row["types"]


def test_without_a_request_nothing_is_rounded(make, tmp_path):
    row, largest = measured(make, tmp_path)
    assert row["errors"] == [] and largest == 0


def test_an_embedding_that_does_not_divide_into_blocks_is_refused(make, tmp_path):
    with pytest.raises(QCompressError, match=r"embed_tokens\.weight: rows of 64 values .* use --embedding-type q8_0"):
        measured(make, tmp_path, embedding_type="q6_k")
    assert not list(tmp_path.iterdir())


def test_a_budget_rounds_the_embedding_only_if_it_must(make, tmp_path):
    for name in ("large", "small", "none"):
        (tmp_path / name).mkdir()
    exact = measured(make, tmp_path / "large")[0]["bytes"]
    row, _ = measured(make, tmp_path / "none", max_size=exact)
    assert row["bytes"] == exact and row["errors"] == []
    row, _ = measured(make, tmp_path / "small", max_size=exact - 1)
    assert row["bytes"] < exact and row["errors"][0]["type"] == "Q8_0"


def test_a_budget_that_no_type_meets_is_refused_with_both_sizes(make, tmp_path):
    smallest = measured(make, tmp_path, embedding_type="q8_0")[0]["bytes"]
    (tmp_path / "model.gguf").unlink()
    with pytest.raises(QCompressError, match=f"would have {smallest:,} bytes, more than --max-size 9,000"):
        measured(make, tmp_path, max_size=9000)
    assert not list(tmp_path.iterdir())


def test_an_allowed_error_stores_zero_points_in_5_bits(make, tmp_path):
    source = make("llama", format="awq")
    row = convert(source, tmp_path / "model.gguf", "gguf", allow_error=True)
    (error,) = row["errors"]
    assert error["type"] == "Q4_1" and error["tensors"] == 28 and 0 < error["relative_error"] < 0.001


def test_scales_beyond_float16_are_rounded_only_if_allowed(copy, tmp_path):
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.scales"
    weights[name] = weights[name].to(torch.bfloat16) * 2**-13
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(QCompressError, match=r"up_proj\.weight: a scale is not a float16 number.*--allow-error"):
        convert(copy, tmp_path / "model.gguf", "gguf")
    row = convert(copy, tmp_path / "model.gguf", "gguf", allow_error=True)
    assert [error["tensors"] for error in row["errors"]] == [1]
