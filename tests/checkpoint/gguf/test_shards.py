"""All parts of a split model are read, whichever is given; a missing or foreign part is named."""

import pytest

from compress.checkpoint.gguf.shards import GgufModel
from compress.core.errors import QCompressError


@pytest.fixture
def part(llama, tmp_path):
    return llama.write(tmp_path / "model.gguf", parts=3)


def number(part, index):
    return part.with_name(f"model-{index:05d}-of-00003.gguf")


@pytest.mark.parametrize("index", [1, 2, 3])
def test_any_part_stands_for_the_whole_model(llama, part, tmp_path, index):
    whole = GgufModel(llama.write(tmp_path / "whole.gguf"))
    model = GgufModel(number(part, index))
    assert model.files == [number(part, one) for one in (1, 2, 3)]
    assert list(model.tensors) == list(whole.tensors) and model.metadata.keys() == whole.metadata.keys()
    assert all(model.tensors[name].data.tobytes() == whole.tensors[name].data.tobytes() for name in whole.tensors)


@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_missing_part_is_named(part, index):
    number(part, index).unlink()
    with pytest.raises(QCompressError, match=rf"model-0000{index}-of-00003\.gguf: missing; put all 3 parts of the"):
        GgufModel(number(part, 1 if index > 1 else 2))


def test_a_renamed_part_is_refused(part):
    renamed = number(part, 2).rename(part.with_name("second.gguf"))
    with pytest.raises(
        QCompressError, match=r"second\.gguf: is one of 3 parts, so its name must end in -0000N-of-00003"
    ):
        GgufModel(renamed)


def test_parts_in_the_wrong_order_are_refused(part):
    number(part, 2).write_bytes(number(part, 3).read_bytes())
    with pytest.raises(
        QCompressError, match=r"00002-of-00003\.gguf: its header has split\.no 2 of 3, but its name is part 2"
    ):
        GgufModel(part)


def test_a_part_of_another_model_is_refused(llama, part, tmp_path):
    (tmp_path / "other").mkdir()
    llama.tensors = {f"{name}.other": values for name, values in llama.tensors.items()}
    llama.tensors["one.more"] = next(iter(llama.tensors.values()))
    other = number(llama.write(tmp_path / "other" / "model.gguf", parts=3), 2)
    number(part, 2).write_bytes(other.read_bytes())
    with pytest.raises(QCompressError, match=r"the 3 parts hold \d+ tensors, but split\.tensors\.count is \d+"):
        GgufModel(part)


def test_a_tensor_in_two_parts_is_refused(llama, part, tmp_path):
    (tmp_path / "other").mkdir()
    names = list(llama.tensors)
    llama.tensors = {name: llama.tensors[name] for name in names[::-1]}
    number(part, 3).write_bytes(number(llama.write(tmp_path / "other" / "model.gguf", parts=3), 3).read_bytes())
    with pytest.raises(QCompressError, match=r"00003-of-00003\.gguf: .* is also in model-00001-of-00003\.gguf"):
        GgufModel(part)
