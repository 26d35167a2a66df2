"""Two processes with half of every micro-batch train what one does, as replicas and with spread parameters."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.checkpoint.read import Checkpoint, read_json
from compress.checkpoint.record import read_record
from compress.distill.config import DistillConfig, LoopConfig
from compress.distill.job import distill_checkpoint
from compress.distill.journal import JOURNAL, Keeper, work_path
from compress.distill.packing import Batch
from compress.distill.parallel import share
from compress.distill.spread import Spread, check_launch
from compress.errors import QCompressError

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["compress.distill.job", "torch.distributed.fsdp"])
SPREAD = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what `accelerate launch` makes of fsdp_version: 2
STAGES = ({"name": "first", "steps": 3}, {"name": "second", "steps": 2, "align_weight": 0.1})
SETTINGS: dict[str, Any] = {
    "blocks": 1,
    "alpha": 1.0,
    "batch_size": 5,
    "seq_len": 32,
    "learning_rate": 3e-3,
    "eval_every": 2,
    "gradient_checkpointing": True,
    "stages": STAGES,
}


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


class Killed(Exception):
    """What stands for SIGKILL, in all processes at the same step."""


def one_of_two(rank: int, teacher: Path, folder: Path) -> None:
    """What each process does: a training of replicas, one of spread parameters, and the latter killed and resumed."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    settings, patch = DistillConfig(**SETTINGS), pytest.MonkeyPatch()
    rows: list[Any] = []
    distill_checkpoint(teacher, folder / "replicas", settings, rows.append)
    assert sum("loss" in row for row in rows) == (0 if rank else 5)
    os.environ.update(SPREAD)
    parts: list[float] = []
    make = Spread.__init__

    def counted(self: Spread, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        parts.extend(parameter.to_local().numel() / parameter.numel() for parameter in self.parameters())  # type: ignore[attr-defined]

    def dying(self: Keeper, progress: Any, tensors: Any) -> None:
        keep(self, progress, tensors)
        if len(progress.curve) == 1 and self.stage == 1:
            raise Killed

    keep = Keeper.keep
    with patch.context() as once:
        once.setattr(Keeper, "keep", dying)
        once.setattr(Spread, "__init__", counted)
        with pytest.raises(Killed):
            distill_checkpoint(teacher, folder / "spread", settings, loop=LoopConfig(save_every=1))
    assert parts and max(parts) <= 0.5  # of each parameter
    if rank == 0:
        assert read_json(work_path(folder / "spread") / JOURNAL)["stages"][1]["step"] == 1
    distill_checkpoint(teacher, folder / "spread", settings, loop=LoopConfig(save_every=1))
    torch.distributed.destroy_process_group()


def test_two_processes_train_what_one_does_as_replicas_and_with_spread_parameters_also_resumed(tiny_llama, tmp_path):
    pair = [PROCESSES.Process(target=one_of_two, args=(rank, tiny_llama, tmp_path)) for rank in range(2)]
    for process in pair:
        process.start()
    distill_checkpoint(tiny_llama, tmp_path / "one", DistillConfig(**SETTINGS))
    for process in pair:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in pair] == [0, 0]
    expected = Checkpoint(tmp_path / "one")
    for name in ("replicas", "spread"):
        found = Checkpoint(tmp_path / name)
        assert found.config == expected.config and list(found.tensors) == list(expected.tensors)
        for ours, theirs in zip(*(read_record(one.path)["loss"] for one in (expected, found)), strict=True):
            assert theirs.pop("stage") == ours["stage"]
            assert theirs == pytest.approx({key: value for key, value in ours.items() if key != "stage"}, rel=1e-4)
        for tensor in expected.tensors:
            torch.testing.assert_close(*(one.tensor(tensor).float() for one in (expected, found)), rtol=0, atol=2e-3)
    aligned = [(tmp_path / f"{name}.align.safetensors").stat().st_size for name in ("one", "replicas", "spread")]
    assert len(set(aligned)) == 1 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("flags", "cure"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed.*MULTI_GPU.*fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "version 1; set fsdp_version: 2"),
        (SPREAD | {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params.*leave out"),
        (SPREAD | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use --gradient-checkpointing"),
    ],
)
def test_what_would_train_otherwise_than_its_launcher_says_is_refused(monkeypatch, flags, cure):
    for name, value in flags.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(QCompressError, match=cure):
        check_launch()
