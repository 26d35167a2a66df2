"""Blocks in order: a thread that prefetches the next block never changes a block."""

import copy
import threading
from pathlib import Path

import pytest
import torch

from compress.checkpoint.read import Checkpoint
from compress.model.blocks import BlockModel, make_config


def make_model(path: Path, *, prefetch: bool) -> tuple[BlockModel, list[tuple[str, bool]]]:
    """A model, and a list that grows with each read: the tensor's name, and True if the main thread read it."""
    checkpoint, read = Checkpoint(path), []

    def weights(name: str) -> torch.Tensor:
        read.append((name, threading.current_thread() is threading.main_thread()))
        return checkpoint.tensor(name)

    return BlockModel(checkpoint.config, weights, prefetch=prefetch), read


@pytest.mark.parametrize("first", [0, 1])
def test_prefetching_never_changes_a_block(tiny_llama, first):
    (plain, _), (prefetched, _) = make_model(tiny_llama, prefetch=False), make_model(tiny_llama, prefetch=True)
    for (i, block), (j, twin) in zip(plain.in_order(first), prefetched.in_order(first), strict=True):
        assert (i, block.name) == (j, twin.name)
        parameters = dict(twin.module.named_parameters())
        assert all(torch.equal(p, parameters[path]) for path, p in block.module.named_parameters())


def test_prefetching_reads_the_next_block_in_a_thread_and_each_weight_once(tiny_llama):
    model, read = make_model(tiny_llama, prefetch=True)
    blocks = [block.name for _, block in model.in_order()]
    assert len({name for name, _ in read}) == len(read)
    assert {main for name, main in read if name.startswith(f"{blocks[0]}.")} == {True}
    assert {main for name, main in read if name.startswith(f"{blocks[1]}.")} == {False}


def test_without_prefetching_only_the_current_block_is_read(tiny_llama):
    model, read = make_model(tiny_llama, prefetch=False)
    _, block = next(model.in_order())
    assert all(name.startswith(f"{block.name}.") for name, _ in read)


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_block_is_released_before_the_next_one(tiny_llama, prefetch):
    model, _ = make_model(tiny_llama, prefetch=prefetch)
    released: list[torch.nn.Module] = []
    for _, block in model.in_order():
        assert all(block.module.get_parameter(path).device.type == "cpu" for path, _ in block.module.named_parameters())
        assert all(parameter.is_meta for past in released for parameter in past.parameters())
        released.append(block.module)
    assert all(parameter.is_meta for past in released for parameter in past.parameters())


def test_a_read_error_in_the_thread_is_raised(tiny_llama):
    model, _ = make_model(tiny_llama, prefetch=True)
    source = model.source

    def broken(name: str) -> torch.Tensor:
        if model.name(1) in name:
            raise ValueError(f"{name}: unreadable")
        return source(name)

    model.source = broken
    with pytest.raises(ValueError, match="unreadable"):
        list(model.in_order())


def test_prepare_lets_a_block_run_on_a_shape_that_was_never_embedded(tiny_llama):
    (prepared, _), (embedded, _) = make_model(tiny_llama, prefetch=False), make_model(tiny_llama, prefetch=False)
    ids = torch.arange(12).view(2, 6)
    with embedded.embedding_and_norm():
        hidden = embedded.embed(ids)
    with prepared.embedding_and_norm():
        prepared.prepare([(2, 6)])
    with prepared.block(0) as block, embedded.block(0) as twin:
        assert torch.equal(prepared.runner(block, 0)(hidden), embedded.runner(twin, 0)(hidden))


def test_make_config_does_not_change_its_argument(tiny_llama):
    config = Checkpoint(tiny_llama).config
    before = copy.deepcopy(config)
    make_config(config)
    assert config == before
