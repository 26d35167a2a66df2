import pytest
import torch

from compress.quantize.blocks.activations import ActivationStore


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_come_back_in_the_dtype_of_the_store(tmp_path, keep, dtype):
    states = [torch.randn(2, 3, 4) for _ in range(4)]
    whole = ActivationStore(tmp_path, dtype=dtype, keep=keep).block_inputs(0, [(2, 3, 4)] * 4)
    first, second = whole.halves()
    for i in range(2):
        first[i], second[i] = states[i], states[2 + i]
    for ours, theirs in zip(whole, states, strict=True):
        assert torch.equal(ours, theirs.to(dtype))
    assert whole.path.stat().st_size == 4 * 24 * dtype.itemsize


def test_kept_states_are_not_read_from_the_file(tmp_path):
    stage = ActivationStore(tmp_path, keep=True).stage(0)
    stage.append(torch.ones(1, 2, 3))
    stage.path.write_bytes(b"")
    assert torch.equal(stage[0], torch.ones(1, 2, 3))


def test_a_resumed_job_reads_the_states_that_the_file_holds(tmp_path):
    ActivationStore(tmp_path, keep=True).block_inputs(1, [(1, 2, 3)])[0] = torch.ones(1, 2, 3)
    again = ActivationStore(tmp_path, keep=True).block_inputs(1, [(1, 2, 3)])
    assert torch.equal(again[0], torch.ones(1, 2, 3))
