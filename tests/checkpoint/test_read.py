"""Reading: the tensors that safetensors reads, and an error of one line for damaged files and paths outside."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoint.read import DTYPES, Checkpoint
from compress.core.errors import QCompressError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def model(tiny_llama, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def check_rejected(path: Path, words: str) -> str:
    """The error of opening `path`: one line with `words` and the path, exit code 1."""
    with pytest.raises(QCompressError) as caught:
        Checkpoint(path)
    message = caught.value.message
    assert words in message and str(path) in message and "\n" not in message and caught.value.exit_code == 1
    return message


def write_file(path: Path, header: object, data: bytes = b"") -> None:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def split(path: Path) -> dict[str, str]:
    """Two shards and an index; returns its weight_map."""
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    places = {name: f"model-0000{1 + (i > 5)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, path / file)
    (path / "model.safetensors").unlink()
    write_index(path, places)
    return places


def write_index(path: Path, places: object) -> None:
    (path / INDEX).write_text(json.dumps({"weight_map": places}))


def test_tensors_are_those_that_safetensors_reads(model):
    checkpoint, expected = Checkpoint(model), load_file(model / "model.safetensors")
    assert checkpoint.tensors.keys() == expected.keys()
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in expected.items())
    assert checkpoint.bytes == (model / "model.safetensors").stat().st_size
    assert checkpoint.quantization is None and checkpoint.config["model_type"] == "llama"


def test_shards_contain_the_tensors_of_the_single_file(model, tiny_llama):
    split(model)
    single, sharded = Checkpoint(tiny_llama), Checkpoint(model)
    assert single.tensors.keys() == sharded.tensors.keys() and len(sharded.files) == 2
    assert all(torch.equal(single.tensor(name), sharded.tensor(name)) for name in single.tensors)


@pytest.mark.parametrize("name", sorted(DTYPES.keys() - {"F8_E4M3", "F8_E5M2"}))
def test_every_dtype_is_read(model, name):
    tensor = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(DTYPES[name].torch)
    save_file({"x": tensor, "nothing": torch.zeros(0, 4), "number": torch.tensor(3.0)}, model / "model.safetensors")
    checkpoint = Checkpoint(model)
    assert torch.equal(checkpoint.tensor("x"), tensor) and checkpoint.tensor("nothing").shape == (0, 4)
    assert checkpoint.tensor("number").item() == 3


def test_a_missing_directory_is_rejected(tmp_path):
    check_rejected(tmp_path / "nowhere", "no such directory")


def test_a_file_in_place_of_a_directory_is_rejected(model):
    check_rejected(model / "config.json", "no such directory")


def test_an_empty_directory_is_rejected(tmp_path):
    (tmp_path / "empty").mkdir()
    check_rejected(tmp_path / "empty", "missing")


def test_a_config_without_weights_is_rejected(model):
    (model / "model.safetensors").unlink()
    check_rejected(model, "no *.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "weights.ckpt"])
def test_pickled_weights_are_never_read(model, name):
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(b"\x80\x04N.")
    check_rejected(model, "pickled weights can run code")


@pytest.mark.parametrize(
    "text", ["{", "", "[1]", "3", "\udcff", "[" * 100_000], ids=["cut", "empty", "list", "number", "bytes", "deep"]
)
def test_a_malformed_config_is_rejected(model, text):
    (model / "config.json").write_text(text, errors="surrogateescape")
    check_rejected(model, "config.json")


@pytest.mark.parametrize(
    "kept", [0, 4, 8, 100, -1], ids=["nothing", "no length", "no header", "half a header", "a byte less"]
)
def test_a_truncated_file_is_rejected(model, kept):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    check_rejected(model, "fetch the file again")


def test_trailing_bytes_are_rejected(model):
    with (model / "model.safetensors").open("ab") as file:
        file.write(b"more")
    check_rejected(model, "but the header lists")


@pytest.mark.parametrize(
    "header",
    [
        b"not JSON",
        [1],
        {"x": {"dtype": "F16"}},
        {"x": {"dtype": "F17", "shape": [2], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F16", "shape": [3], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F16", "shape": [-1, -2], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F16", "shape": ["2"], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F16", "shape": [2], "data_offsets": [-4, 0]}},
        {"x": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4, 8]}},
        {"x": {"dtype": "F16", "shape": [2], "data_offsets": [4, 8]}},
        {"x": 5},
    ],
    ids=lambda header: str(header)[:60],
)
def test_an_inconsistent_header_is_rejected(model, header):
    write_file(model / "model.safetensors", header, b"\0" * 4)
    check_rejected(model, "model.safetensors")


def test_a_header_longer_than_the_file_is_rejected(model):
    (model / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    check_rejected(model, "too few for the header")


def test_a_tensor_in_two_files_is_rejected(model):
    places = split(model)
    name = next(iter(places))
    other = next(file for file in places.values() if file != places[name])
    tensors = load_file(model / other)
    save_file(tensors | {name: torch.zeros(1)}, model / other)
    check_rejected(model, "is also in")


def test_a_missing_shard_is_rejected(model):
    places = split(model)
    (model / places["model.norm.weight"]).unlink()
    check_rejected(model, "missing")


def test_an_index_with_an_unstored_tensor_is_rejected(model):
    write_index(model, split(model) | {"model.ghost": "model-00001-of-00002.safetensors"})
    check_rejected(model, "model.ghost")


def test_an_index_that_names_the_wrong_file_is_rejected(model):
    places = split(model)
    other = next(file for file in places.values() if file != places["model.norm.weight"])
    write_index(model, places | {"model.norm.weight": other})
    check_rejected(model, "correct the index")


@pytest.mark.parametrize("places", [None, {}, [], {"x": 1}, {"x": ["a"]}, {"x": None}], ids=str)
def test_an_index_without_files_is_rejected(model, places):
    write_index(model, places)
    check_rejected(model, "weight_map")


@pytest.mark.parametrize(
    "place", ["../outside.safetensors", "/absolute/outside.safetensors", "sub/x.safetensors", "..", ""]
)
def test_an_index_entry_outside_the_directory_is_rejected(model, place):
    shutil.copy(model / "model.safetensors", model.parent / "outside.safetensors")
    write_index(model, dict.fromkeys(load_file(model / "model.safetensors"), place))
    check_rejected(model, "leads outside")


@pytest.mark.parametrize("indexed", [True, False], ids=["through the index", "beside config.json"])
def test_a_link_out_of_the_directory_is_rejected(model, indexed):
    outside = model.parent / "outside.safetensors"
    shutil.move(model / "model.safetensors", outside)
    (model / "model.safetensors").symlink_to(outside)
    if indexed:
        write_index(model, dict.fromkeys(load_file(outside), "model.safetensors"))
    check_rejected(model, "leads outside")


def test_a_link_within_the_directory_is_followed(model, tiny_llama):
    (model / "model.safetensors").rename(model / "data")
    (model / "model.safetensors").symlink_to("data")
    assert Checkpoint(model).tensors.keys() == Checkpoint(tiny_llama).tensors.keys()


def test_links_of_a_hub_cache_are_followed(model, tmp_path, tiny_llama):
    hub = tmp_path / "models--tiny"
    (hub / "blobs").mkdir(parents=True)
    shutil.move(model, hub / "snapshots" / "abc")
    shutil.move(hub / "snapshots" / "abc" / "model.safetensors", hub / "blobs" / "0123")
    (hub / "snapshots" / "abc" / "model.safetensors").symlink_to("../../blobs/0123")
    assert Checkpoint(hub / "snapshots" / "abc").tensors.keys() == Checkpoint(tiny_llama).tensors.keys()


def test_a_file_that_shrinks_while_it_is_read_is_rejected(model):
    checkpoint = Checkpoint(model)
    last = max(checkpoint.tensors, key=lambda name: checkpoint.tensors[name].offset)
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(QCompressError, match="fetch the file again"):
        checkpoint.tensor(last)
