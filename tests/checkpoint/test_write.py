"""Writing: exact sizes before the first byte, nothing visible before the last, digests of what was written."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.door.files import COPIED
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import DIGESTS, read_digests, tensor_digest
from compress.checkpoint.write import (
    CheckpointWriter,
    TensorSpec,
    both_spellings,
    copy_files,
    partial_path,
    plan_shards,
    planned_bytes,
    save_checkpoint,
)
from compress.core.errors import QCompressError

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float16"}
TENSORS = {
    "a.weight": torch.randn(3, 5).half(),
    "b.qweight": torch.randint(-(2**31), 2**31, (4, 7), dtype=torch.int32),
    "c.weight_shape": torch.tensor([4, 56]),
    "d.scales": torch.randn(2, 9).bfloat16(),
    "e.scalar": torch.tensor(1.5),
    "f.empty": torch.zeros(0, 3),
    "g.mask": torch.tensor([True, False, True]),
}
SPECS = [TensorSpec.of(name, tensor) for name, tensor in TENSORS.items()]


def fill(writer: CheckpointWriter, names=TENSORS) -> CheckpointWriter:
    for name in names:
        writer.write(name, TENSORS[name])
    return writer


def read_all(path):
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("shard_bytes", [1, 64, 100, 10**9])
def test_planned_bytes_are_the_bytes_on_disk(tmp_path, shard_bytes):
    fill(CheckpointWriter(tmp_path / "out", SPECS, shard_bytes=shard_bytes)).publish(CONFIG)
    on_disk = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert on_disk == planned_bytes(SPECS, shard_bytes) == Checkpoint(tmp_path / "out").bytes


@pytest.mark.parametrize("shard_bytes", [1, 64, 10**9])
def test_safetensors_reads_what_was_written(tmp_path, shard_bytes):
    fill(CheckpointWriter(tmp_path / "out", SPECS, shard_bytes=shard_bytes)).publish(CONFIG)
    tensors = read_all(tmp_path / "out")
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )


def test_the_order_of_writing_never_changes_a_byte(tmp_path):
    fill(CheckpointWriter(tmp_path / "one", SPECS)).publish(CONFIG)
    fill(CheckpointWriter(tmp_path / "two", SPECS), reversed(list(TENSORS))).publish(CONFIG)
    for file in ("model.safetensors", DIGESTS, "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_every_tensor_starts_at_a_multiple_of_its_item_size(tmp_path):
    for shard in plan_shards(SPECS):
        for name, offset in shard.offsets.items():
            assert offset % TENSORS[name].element_size() == 0


def test_a_shard_holds_at_most_its_limit_and_the_index_names_each_tensor(tmp_path):
    fill(CheckpointWriter(tmp_path / "out", SPECS, shard_bytes=100)).publish(CONFIG)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(spec.bytes for spec in SPECS)
    assert index["weight_map"].keys() == TENSORS.keys()
    for file in set(index["weight_map"].values()):
        stored = load_file(tmp_path / "out" / file)
        assert sum(t.numel() * t.element_size() for t in stored.values()) <= 100 or len(stored) == 1
        assert {name for name, place in index["weight_map"].items() if place == file} == stored.keys()


def test_one_file_needs_no_index(tmp_path):
    fill(CheckpointWriter(tmp_path / "out", SPECS)).publish(CONFIG)
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"model.safetensors", "config.json", DIGESTS}


def test_nothing_is_visible_before_publish(tmp_path):
    writer = fill(CheckpointWriter(tmp_path / "out", SPECS))
    assert not (tmp_path / "out").exists()
    writer.publish(CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_inspection_leaves_no_output(tmp_path):
    writer = fill(CheckpointWriter(tmp_path / "out", SPECS))

    def inspect(folder):
        assert Checkpoint(folder).tensors.keys() == TENSORS.keys()
        raise QCompressError("no")

    with pytest.raises(QCompressError):
        writer.publish(CONFIG, inspect=inspect)
    assert not (tmp_path / "out").exists()
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_an_unwritten_tensor_is_an_error_with_its_name(tmp_path):
    writer = fill(CheckpointWriter(tmp_path / "out", SPECS), ["a.weight"])
    with pytest.raises(ValueError, match=r"6 planned tensors were not written; the first is b\.qweight"):
        writer.publish(CONFIG)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("z", torch.ones(1)), ("a.weight", torch.ones(3, 5)), ("a.weight", torch.ones(5, 3).half())],
    ids=["unknown name", "other dtype", "other shape"],
)
def test_an_unplanned_tensor_is_rejected(tmp_path, name, tensor):
    with pytest.raises(ValueError, match=name):
        CheckpointWriter(tmp_path / "out", SPECS).write(name, tensor)


def test_a_name_planned_twice_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="8 planned tensors have only 7 different names"):
        CheckpointWriter(tmp_path / "out", [*SPECS, SPECS[0]])


@pytest.mark.parametrize("kind", ["full directory", "file"])
def test_a_non_empty_output_is_rejected_and_left_unchanged(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    with pytest.raises(QCompressError, match="not empty"):
        CheckpointWriter(out, SPECS)
    assert (out if kind == "file" else out / "mine").read_text() == "mine"
    assert not partial_path(out).exists()


def test_an_empty_output_directory_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    fill(CheckpointWriter(tmp_path / "out", SPECS)).publish(CONFIG)
    assert read_all(tmp_path / "out").keys() == TENSORS.keys()


def test_a_full_disk_is_an_error_before_the_first_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(QCompressError, match="10 free"):
        CheckpointWriter(tmp_path / "out", SPECS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shard_bytes", [64, 10**9])
def test_a_resumed_checkpoint_equals_an_uninterrupted_one(tmp_path, shard_bytes):
    fill(CheckpointWriter(tmp_path / "complete", SPECS, shard_bytes=shard_bytes)).publish(CONFIG)
    early = ["a.weight", "d.scales", "f.empty"]
    fill(CheckpointWriter(tmp_path / "out", SPECS, shard_bytes=shard_bytes), early)  # then the process is killed
    writer = CheckpointWriter(tmp_path / "out", SPECS, keep=True, shard_bytes=shard_bytes)
    writer.written |= set(early)
    fill(writer, TENSORS.keys() - set(early)).publish(CONFIG)
    for file in (tmp_path / "complete").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name


def test_without_keep_the_files_of_an_interrupted_run_are_removed(tmp_path):
    fill(CheckpointWriter(tmp_path / "out", SPECS), ["a.weight"])
    writer = CheckpointWriter(tmp_path / "out", SPECS)
    assert not writer.written
    assert load_file(writer.folder / "model.safetensors")["a.weight"].eq(0).all()


def test_files_of_another_plan_are_not_published(tmp_path):
    CheckpointWriter(tmp_path / "out", SPECS, shard_bytes=1)
    fill(CheckpointWriter(tmp_path / "out", SPECS, keep=True)).publish(CONFIG)
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]


def test_digests_are_sha256_of_the_bytes_on_disk(tmp_path):
    fill(CheckpointWriter(tmp_path / "out", SPECS)).publish(CONFIG)
    digests = read_digests(tmp_path / "out")
    checkpoint = Checkpoint(tmp_path / "out")
    assert digests["tensors"].keys() == TENSORS.keys() and digests["config"].keys() == CONFIG.keys()
    for name, info in checkpoint.tensors.items():
        raw = info.file.read_bytes()[info.offset : info.offset + info.bytes]
        assert digests["tensors"][name] == hashlib.sha256(raw).hexdigest() == tensor_digest(TENSORS[name])


def test_bytes_changed_on_disk_break_the_digest(tmp_path, tiny_llama):
    source = Checkpoint(tiny_llama)
    pairs = [(TensorSpec(n, i.dtype, i.shape), source.tensor(n)) for n, i in source.tensors.items()]
    save_checkpoint(tmp_path / "out", source.config, pairs, source=tiny_llama)
    assert not check_checkpoint(tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 4
    file.write_bytes(raw)
    assert [row["rule"] for row in check_checkpoint(tmp_path / "out")] == ["D1"]


def test_digests_are_computed_before_the_bytes_reach_the_disk(tmp_path):
    writer = fill(CheckpointWriter(tmp_path / "out", SPECS))
    file = writer.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")  # a byte changes on disk between write and publish
    writer.publish(CONFIG)
    digests, checkpoint = read_digests(tmp_path / "out"), Checkpoint(tmp_path / "out")
    wrong = [name for name in TENSORS if tensor_digest(checkpoint.tensor(name)) != digests["tensors"][name]]
    assert wrong == ["g.mask"]


def test_a_checkpoint_without_digests_has_none(tmp_path):
    assert read_digests(tmp_path) is None


def test_a_failed_save_leaves_no_files(tmp_path):
    with pytest.raises(ValueError):
        save_checkpoint(tmp_path / "out", CONFIG, [(SPECS[0], torch.ones(2, 2).half())])
    assert not list(tmp_path.iterdir())


def test_the_copied_tokenizer_has_a_class_of_transformers_4(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(), target.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend", "bos_token": "<s>"}')
    (source / "weights.bin").write_text("no")
    copy_files(source, target, COPIED)
    assert {file.name for file in target.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    settings = json.loads((target / "tokenizer_config.json").read_text())
    assert settings == {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}


def test_both_config_spellings_have_the_same_values():
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
    config = both_spellings({"dtype": "bfloat16", "rope_parameters": rope})
    assert config["torch_dtype"] == config["dtype"] == "bfloat16" and config["rope_theta"] == 1e6
    assert config["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}
    assert both_spellings({"torch_dtype": "float16"}) == {"torch_dtype": "float16", "dtype": "float16"}
    assert "rope_scaling" not in both_spellings({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
