import json
import shutil
from dataclasses import replace

import pytest
import torch

from compress import convert as api_convert
from compress import quantize
from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.formats import FORMATS, quantized_weight
from compress.checkpoint.load import load_model
from compress.checkpoint.read import RECORD, Checkpoint
from compress.checkpoint.record import refresh_file_digests
from compress.core.errors import GateFailure, QCompressError
from compress.core.grid import QuantizedWeight
from compress.ship.convert import GGUF, check_equal, convert

MODULE = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("convert")


@pytest.fixture(scope="module")
def packed(folder, tiny_llama):
    """The tiny llama in each layout: name -> folder."""
    settings = {
        "awq": {"format": "awq"},
        "gptq": {"format": "gptq"},
        "ct": {"format": "compressed-tensors", "embedding_bits": 8, "head_bits": 4, "sym": True},
        "ct-sym": {"format": "compressed-tensors", "sym": True},
    }
    for name, options in settings.items():
        quantize(tiny_llama, folder / name, method="rtn", group_size=32, **options)
    return {name: folder / name for name in settings}


@pytest.mark.parametrize(
    ("source", "there", "back"),
    [
        ("awq", "compressed-tensors", "awq"),
        ("gptq", "compressed-tensors", "gptq"),
        ("gptq", "awq", "gptq"),
        ("ct-sym", "awq", "gptq"),
        ("ct-sym", "gptq", "compressed-tensors"),
    ],
)
def test_there_and_back_gives_the_same_codes(packed, tmp_path, source, there, back):
    convert(packed[source], tmp_path / "there", there)
    convert(tmp_path / "there", tmp_path / "back", back)
    if source == back:
        for file in ("model.safetensors", "config.json"):
            assert (packed[source] / file).read_bytes() == (tmp_path / "back" / file).read_bytes(), file
    for path in (tmp_path / "there", tmp_path / "back"):
        first, second = (quantized_weight(Checkpoint(one), MODULE) for one in (packed[source], path))
        assert torch.equal(first.codes, second.codes) and torch.equal(first.dequantize(), second.dequantize())


def test_a_converted_model_computes_the_same_logits(packed, tmp_path):
    convert(packed["awq"], tmp_path / "ct", "compressed-tensors")
    ids = torch.arange(24)[None]
    first, second = (load_model(Checkpoint(path))(ids).logits for path in (packed["awq"], tmp_path / "ct"))
    assert torch.equal(first, second)


def test_an_asymmetric_grid_is_refused_in_gptq(packed, tmp_path):
    with pytest.raises(
        QCompressError, match=r"down_proj: gptq stores symmetric grids with zero 8, but group \d of row"
    ):
        convert(packed["awq"], tmp_path / "gptq", "gptq")
    assert not list(tmp_path.iterdir())


def test_a_packed_embedding_is_refused_outside_compressed_tensors(packed, tmp_path):
    with pytest.raises(
        QCompressError, match="embed_tokens: gptq has no packed embeddings; use --to compressed-tensors"
    ):
        convert(packed["ct"], tmp_path / "gptq", "gptq")


def test_eight_bits_are_refused_in_awq(tiny_llama, tmp_path):
    quantize(tiny_llama, tmp_path / "eight", method="rtn", format="gptq", group_size=32, eight_bit=("down_proj",))
    with pytest.raises(QCompressError, match="awq stores 4 bits, and this weight has 8"):
        convert(tmp_path / "eight", tmp_path / "awq", "awq")


def test_a_plain_checkpoint_is_refused(tiny_llama, tmp_path):
    with pytest.raises(QCompressError, match="is not quantized; quantize it first"):
        convert(tiny_llama, tmp_path / "awq", "awq")


def test_the_record_keeps_the_source_and_states_the_conversion(packed, tmp_path):
    convert(packed["awq"], tmp_path / "ct", "compressed-tensors")
    before, after = (json.loads((path / RECORD).read_text()) for path in (packed["awq"], tmp_path / "ct"))
    assert after["source"] == before["source"] and after["rows"] == before["rows"]
    assert after["settings"] == before["settings"] | {"format": "compressed-tensors"}
    assert after["converted"]["format"] == "awq" and after["size"]["bytes"] == Checkpoint(tmp_path / "ct").bytes


def test_a_checkpoint_without_a_record_is_converted(packed, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for file in packed["awq"].iterdir():
        if not file.name.startswith("qcompress") and file.name != "README.md":
            (foreign / file.name).write_bytes(file.read_bytes())
    row = convert(foreign, tmp_path / "ct", "compressed-tensors")
    assert row["linears"] == 14 and json.loads((tmp_path / "ct" / RECORD).read_text())["command"] == "convert"
    assert "in 4 bits" in (tmp_path / "ct" / "README.md").read_text()


def test_a_fault_in_the_tokenizer_of_the_source_stops_no_conversion(packed, tmp_path):
    source = shutil.copytree(packed["awq"], tmp_path / "source")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [7]}))
    refresh_file_digests(source)
    assert "P3" in {row["rule"] for row in check_checkpoint(source) if row["level"] == "error"}
    convert(source, tmp_path / "ct", "compressed-tensors")
    assert (tmp_path / "ct" / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()


def test_two_conversions_write_the_same_bytes(packed, tmp_path):
    for name in ("one", "two"):
        convert(packed["awq"], tmp_path / name, "compressed-tensors")
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["codes", "scales", "zeros"])
def test_a_weight_that_changes_on_its_way_is_an_error(name):
    weight = QuantizedWeight(torch.zeros(8, 32, dtype=torch.uint8), torch.ones(8, 1), torch.full((8, 1), 8.0))
    with pytest.raises(GateFailure, match=f"linear: the new format changes its {name}"):
        check_equal("linear", weight, replace(weight, **{name: getattr(weight, name) + 1}))


def test_the_python_function_names_a_format_that_does_not_exist(packed, tmp_path):
    with pytest.raises(QCompressError, match="format 'ggml' is unknown; choose awq, gptq"):
        api_convert(packed["awq"], tmp_path / "out", "ggml")


def test_every_format_is_a_choice_of_the_command():
    from compress.cli.convert import command

    (option,) = [one for one in command.params if one.name == "target"]
    assert list(option.type.choices) == [*FORMATS, GGUF]
