"""Two processes with half of every micro-batch train what one does."""

import os
import subprocess
import sys

import pytest
import torch

from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import read_record
from compress.distill.config import DistillConfig
from compress.distill.job import distill_checkpoint
from compress.distill.packing import Batch
from compress.distill.parallel import share

SETTINGS = {"blocks": 1, "alpha": 1.0, "steps": 5, "batch_size": 5, "seq_len": 32, "learning_rate": 3e-3}


@pytest.fixture
def two(monkeypatch):
    def act_as(rank: int) -> None:
        monkeypatch.setattr("compress.distill.parallel.place", lambda: (rank, 2))

    return act_as


@pytest.mark.parametrize("windows", [1, 2, 5])
def test_every_window_of_a_step_counts_in_one_process_and_all_take_as_many(two, windows):
    ids, mask = torch.arange(windows * 3).view(windows, 3), torch.ones(windows, 3, dtype=torch.bool)
    shares = []
    for rank in range(2):
        two(rank)
        shares.append(share(Batch(ids, mask, ids)))
    assert all(torch.equal(one.ids, one.documents) for one in shares)
    assert len(shares[0].ids) == len(shares[1].ids) == -(-windows // 2)
    counted = torch.cat([one.ids[one.mask] for one in shares])
    assert sorted(counted.tolist()) == ids.flatten().tolist()


def test_two_processes_train_what_one_does(tiny_llama, tmp_path):
    distill_checkpoint(tiny_llama, tmp_path / "one", DistillConfig(**SETTINGS))
    flags = [part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "compress.cli", "distill", str(tiny_llama), *flags, "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [*launcher, *command], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (read_record(tmp_path / name)["loss"] for name in ("one", "two"))
    assert len(one) == len(two) == 5 and done.stderr.count("  loss ") == 5
    for ours, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
    for name in Checkpoint(tmp_path / "one").tensors:
        weights = [Checkpoint(tmp_path / place).tensor(name).float() for place in ("one", "two")]
        torch.testing.assert_close(*weights, rtol=0, atol=2e-3)
