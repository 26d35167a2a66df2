"""Files of a checkpoint: regular, inside the folder, and read alike by all loaders."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoint.door.files import read_json
from compress.checkpoint.load import open_causal_lm
from compress.core.errors import QCompressError
from tests.checkpoint.door.conftest import edit_config, edit_tensors

INDEX = "model.safetensors.index.json"


def shard(path: Path, keep_single: bool = False) -> list[Path]:
    """Split the weights into two shards with an index."""
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    places = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, path / file)
    if not keep_single:
        (path / "model.safetensors").unlink()
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return sorted(path / file for file in set(places.values()))


def test_a_stale_index_beside_newer_weights_is_refused(model, refused):
    shard(model, keep_single=True)
    refused(model, INDEX, "model.safetensors, which transformers loads instead", "whichever is older")


def test_shards_with_an_index_are_opened_and_other_weights_are_ignored(model, tiny_llama):
    shard(model)
    shutil.copy(tiny_llama / "model.safetensors", model / "consolidated.safetensors")
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    assert open_causal_lm(model).tensors.keys() == open_causal_lm(tiny_llama).tensors.keys()


def test_a_missing_shard_is_refused_without_an_index_too(model, refused):
    first, second = shard(model)
    (model / INDEX).unlink()
    second.unlink()
    refused(model, first.name, "shard 2 of 2 is missing")


def test_weights_under_mistral_names_beside_the_model_are_refused(model, refused):
    tensors = {"layers.0.attention.wq.weight": torch.zeros(2, 2)}
    save_file(tensors, model / "consolidated.safetensors")
    refused(model, "consolidated.safetensors", "move this file out")


def test_further_weights_without_an_index_are_refused(model, refused):
    save_file({"extra.weight": torch.zeros(2, 2)}, model / "extra.safetensors")
    refused(model, "extra.safetensors", "vLLM loads them")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights_is_refused(model, refused, name):
    if name.endswith(".json"):
        (model / name).write_text("{}")
    else:
        save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 2)}, model / name)
    refused(model, name, "merge it into the model")


def test_merged_adapter_tensors_inside_the_weights_are_refused(model, refused):
    edit_tensors(model, model__layers__0__self_attn__q_proj__lora_A__weight=torch.zeros(2, 64))
    refused(model, "lora_A", "merge the adapter")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "a circle", "a dead link"])
def test_anything_but_a_regular_file_is_refused(model, refused, name, kind):
    (model / name).unlink()
    if kind == "a pipe":
        os.mkfifo(model / name)
    elif kind == "a folder":
        (model / name).mkdir()
    else:
        target = {"a device": "/dev/zero", "a circle": name, "a dead link": "nowhere"}[kind]
        (model / name).symlink_to(target)
    words = {"a circle": "circle", "a dead link": "missing", "a device": "outside"}.get(kind, kind)
    message = refused(model)
    assert name in message and (words in message or kind in message)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "chat_template.jinja", "LICENSE"])
def test_a_small_file_outside_the_folder_is_refused(model, refused, name):
    (model / name).unlink(missing_ok=True)
    (model.parent / "secret").write_text("{}")
    (model / name).symlink_to(model.parent / "secret")
    refused(model, name, "leads outside")


def test_a_hub_cache_opens_through_its_links(model):
    blobs, snapshot = model.parent / "hub" / "blobs", model.parent / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True), snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert open_causal_lm(snapshot).tokenizer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b'{"a": ' * 200 + b"1" + b"}" * 200, "levels"),
        (b"[1]", "expected a JSON object, found a list"),
        (b"null", "found null"),
        (b'{"__float__": "Infinity"}', "not a causal language model"),
        (b"\xff\xfe{", "not valid JSON"),
    ],
    ids=["mark", "pointer", "digits", "deep", "list", "null", "number", "UTF-16"],
)
def test_a_config_that_is_not_plain_json_is_refused(model, refused, text, words):
    (model / "config.json").write_bytes(text)
    refused(model, "config.json", words)


def test_weights_that_are_a_git_lfs_pointer_are_refused(model, refused):
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n")
    refused(model, "model.safetensors", "git lfs pull")


def test_a_huge_json_file_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(QCompressError, match="10,000,000,000 bytes"):
        read_json(tmp_path / "config.json")


def test_infinity_in_the_words_of_transformers_5_is_a_number(model):
    edit_config(model, time_step_limit=[0.0, {"__float__": "Infinity"}])
    assert open_causal_lm(model).config["time_step_limit"] == [0.0, float("inf")]
