import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

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


def copied(folder, target):
    """A copy without record and digests, as another tool would have written it."""
    target.mkdir()
    for file in folder.iterdir():
        if not file.name.startswith("qcompress"):
            (target / file.name).write_bytes(file.read_bytes())
    return target


def change_tensor(folder, name, change):
    """Replace one tensor of model.safetensors by `change` of it; a new name adds a tensor."""
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {name: change(weights.get(name))}, folder / "model.safetensors", {"format": "pt"})


DAMAGES = {
    "g_idx out of order": ("gptq", "g_idx", lambda value: value.flip(0), r"T5 .*g_idx"),
    "half of g_idx": ("gptq", "g_idx", lambda value: value[:16].clone(), "T3"),
    "a NaN scale": ("awq", "scales", lambda value: torch.full_like(value, torch.nan), "T7"),
    "an unknown tensor": ("awq", "input_scale", lambda value: torch.ones(1), "is not a tensor of the awq format"),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("target", ["compressed-tensors", "gguf"])
def test_a_checkpoint_that_check_refuses_is_not_converted(packed, tmp_path, name, target):
    source, suffix, change, words = DAMAGES[name]
    folder = copied(packed[source], tmp_path / "source")
    change_tensor(folder, f"{MODULE}.{suffix}", change)
    with pytest.raises(QCompressError, match=words):
        convert(folder, tmp_path / "out.gguf", target)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("change", [{"rows": [1]}, {"size": {"bytes": 1}}, {"settings": [1]}, {"command": 3}])
def test_a_damaged_record_is_not_continued(packed, tmp_path, change):
    folder = copied(packed["awq"], tmp_path / "source")
    record = json.loads((packed["awq"] / RECORD).read_text())
    record["digests"] = []  # the copy has none
    (folder / RECORD).write_text(json.dumps(record | change))
    convert(folder, tmp_path / "ct", "compressed-tensors")
    assert json.loads((tmp_path / "ct" / RECORD).read_text())["command"] == "convert"


def test_text_of_a_record_is_no_markup_in_the_card(packed, tmp_path):
    folder = copied(packed["awq"], tmp_path / "source")
    record = json.loads((packed["awq"] / RECORD).read_text())
    record["digests"] = []  # the copy has none
    source = record["source"] | {"name": "![x](http://a/x.png)\n# big <script>"}
    (folder / RECORD).write_text(json.dumps(record | {"source": source}))
    convert(folder, tmp_path / "ct", "compressed-tensors")
    card = (tmp_path / "ct" / "README.md").read_text().split("---", 2)[2]
    assert "![x]" not in card and "<script>" not in card and "\n# big" not in card


@pytest.mark.parametrize("key", ["transform_config", "kv_cache_scheme", "sparsity_config"])
def test_an_unknown_setting_of_the_quantization_is_refused_by_name(packed, tmp_path, key):
    folder = copied(packed["ct-sym"], tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"][key] = {"a": 1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(QCompressError, match=f"quantization_config.{key} is unknown"):
        convert(folder, tmp_path / "out", "awq")


@pytest.mark.parametrize("name", [".out.partial", ".out.gguf.partial"])
def test_a_link_in_the_place_of_the_temporary_output_is_never_followed(packed, tmp_path, name):
    victim = copied(packed["gptq"], tmp_path / "victim")
    before = {file.name: file.read_bytes() for file in victim.iterdir()}
    (tmp_path / name).symlink_to(victim if "gguf" not in name else victim / "model.safetensors")
    out, target = ("out.gguf", "gguf") if "gguf" in name else ("out", "awq")
    with pytest.raises(QCompressError, match="is a link in the place of a temporary file"):
        convert(packed["gptq"], tmp_path / out, target)
    assert {file.name: file.read_bytes() for file in victim.iterdir()} == before


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


@pytest.mark.parametrize("out", ["source/new", "source", "source/model.gguf", ".", "link/new"])
@pytest.mark.parametrize("target", ["awq", "gguf"])
def test_source_and_output_must_not_lie_in_each_other(packed, tmp_path, out, target):
    source = shutil.copytree(packed["gptq"], tmp_path / "source")
    (tmp_path / "link").symlink_to(source)
    before = sorted(path.name for path in source.iterdir())
    with pytest.raises(QCompressError, match=r"the source folder .*; give an --out"):
        convert(source, tmp_path / out, target)
    assert sorted(path.name for path in source.iterdir()) == before


def test_zero_points_are_rounded_for_gptq_only_if_allowed(packed, tmp_path):
    row = convert(packed["awq"], tmp_path / "gptq", "gptq", allow_error=True)
    first, second = (quantized_weight(Checkpoint(one), MODULE) for one in (packed["awq"], tmp_path / "gptq"))
    difference = (first.dequantize() - second.dequantize()).abs().max().item()
    (error,) = row["errors"]
    assert second.has_middle_zeros and error["type"] == "gptq" and error["tensors"] == 14
    assert 0 < difference <= error["largest_error"] and 0 < error["relative_error"] < 0.15
    assert json.loads((tmp_path / "gptq" / RECORD).read_text())["converted"]["errors"] == row["errors"]


def test_an_allowed_error_changes_nothing_that_can_be_exact(packed, tmp_path):
    row = convert(packed["awq"], tmp_path / "ct", "compressed-tensors", allow_error=True)
    first, second = (quantized_weight(Checkpoint(one), MODULE) for one in (packed["awq"], tmp_path / "ct"))
    assert row["errors"] == [] and torch.equal(first.dequantize(), second.dequantize())


@pytest.mark.parametrize("settings", [{"embedding_type": "q8_0"}, {"max_size": 1000}])
def test_settings_of_gguf_files_are_refused_for_folders(packed, tmp_path, settings):
    with pytest.raises(QCompressError, match=r"is a setting of \.gguf files"):
        convert(packed["awq"], tmp_path / "ct", "compressed-tensors", **settings)
