"""Two processes with half of every micro-batch train what one does, as replicas and however the training is spread."""

import multiprocessing
import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.checkpoint.read import Checkpoint, read_json
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig, LoopConfig
from compress.distill.job import distill_checkpoint
from compress.distill.model import MICRO_TOKENS
from compress.distill.sharding.fsdp import ShardedObjective, Zero, check_launch
from compress.distill.sharding.parallel import share
from compress.distill.text.packing import Batch
from compress.distill.training.journal import JOURNAL, StateSaver, work_path

pytestmark = pytest.mark.slow  # runs whole jobs

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["compress.distill.job", "torch.distributed.fsdp"])
SPREAD = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what `accelerate launch` makes of fsdp_version: 2
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
WAYS = {"replicas": {}, "spread": SPREAD, "zero-1": ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "zero-2": ZERO}
PATIENCE = 300  # seconds, on a machine that does other things too
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
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
        monkeypatch.setattr("compress.distill.sharding.parallel.place", lambda: (rank, 2))

    return act_as


@pytest.mark.parametrize("windows", [1, 2, 5])
def test_ranks_share_the_windows_of_a_step_equally_without_overlap(two, windows):
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


def one_of_two(rank: int, teacher: Path, folder: Path, ways: tuple[str, str]) -> None:
    """What each process does: a training that goes through, and another way one that is killed and resumed."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    settings, patch = DistillConfig(**SETTINGS), pytest.MonkeyPatch()
    patch.setitem(MICRO_TOKENS, "cpu", 2 * settings.seq_len)
    rows: list[Any] = []
    os.environ.update(WAYS[ways[0]])
    distill_checkpoint(teacher, folder / ways[0], settings, rows.append)
    assert sum("loss" in row for row in rows) == (0 if rank else 5)
    os.environ.update(WAYS[ways[1]])
    with patch.context() as once:
        parts = count_parts(once)
        die_once(once)
        with pytest.raises(Killed):
            distill_checkpoint(teacher, folder / ways[1], settings, loop=LoopConfig(save_every=1))
    assert parts and max(parts) <= 0.51  # of each parameter, or of all moments
    if rank == 0:
        assert read_json(work_path(folder / ways[1]) / JOURNAL)["stages"][1]["step"] == 1
    distill_checkpoint(teacher, folder / ways[1], settings, loop=LoopConfig(save_every=1))
    torch.distributed.destroy_process_group()


def count_parts(patch: pytest.MonkeyPatch) -> list[float]:
    """A list that fills with the shares that this process has of what is spread."""
    parts: list[float] = []
    spread, zero = ShardedObjective.__init__, Zero.__init__

    def of_parameters(self: ShardedObjective, *arguments: Any) -> None:
        spread(self, *arguments)
        parts.extend(parameter.to_local().numel() / parameter.numel() for parameter in self.parameters())  # type: ignore[attr-defined]

    def of_moments(self: Zero, objective: Any, optimizer: Any, **options: Any) -> None:
        zero(self, objective, optimizer, **options)
        learning = sum(parameter.numel() for parameter in objective.parameters())
        parts.append(sum(group["params"][0].numel() for group in optimizer.param_groups) / learning)

    patch.setattr(ShardedObjective, "__init__", of_parameters)
    patch.setattr(Zero, "__init__", of_moments)
    return parts


def die_once(patch: pytest.MonkeyPatch) -> None:
    """Kill the training after its first step of the second stage."""
    keep = StateSaver.keep

    def dying(self: StateSaver, progress: Any, tensors: Any) -> None:
        keep(self, progress, tensors)
        if len(progress.curve) == 1 and self.stage == 1:
            raise Killed

    patch.setattr(StateSaver, "keep", dying)


@pytest.mark.parametrize(
    "ways", [("replicas", "spread"), pytest.param(("zero-1", "zero-2"), marks=needs_deepspeed)], ids="-".join
)
def test_two_processes_train_the_student_of_one_even_when_resumed(tiny_llama, tmp_path, ways):
    pair = [PROCESSES.Process(target=one_of_two, args=(rank, tiny_llama, tmp_path, ways)) for rank in range(2)]
    for process in pair:
        process.start()
    distill_checkpoint(tiny_llama, tmp_path / "one", DistillConfig(**SETTINGS))
    for process in pair:
        process.join(PATIENCE)
        process.kill()
    assert [process.exitcode for process in pair] == [0, 0]
    expected = Checkpoint(tmp_path / "one")
    for name in ways:
        student = Checkpoint(tmp_path / name)
        assert student.config == expected.config and list(student.tensors) == list(expected.tensors)
        for row, other in zip(*(Checkpoint(one.path).record["loss"] for one in (expected, student)), strict=True):
            assert other.pop("stage") == row["stage"]
            assert other == pytest.approx({key: value for key, value in row.items() if key != "stage"}, rel=1e-4)
        for tensor in expected.tensors:
            torch.testing.assert_close(*(one.tensor(tensor).float() for one in (expected, student)), rtol=0, atol=2e-3)
    aligned = [(tmp_path / f"{name}.align.safetensors").stat().st_size for name in ("one", *ways)]
    assert len(set(aligned)) == 1 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("flags", "cure"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM.*MULTI_GPU.*fsdp_version: 2.*zero_stage: 1 or 2"),
        (ZERO, r"pip install 'qcompress\[deepspeed\]'"),
        (ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, " zero_stage to 3.*FSDP with fsdp_version: 2"),
        (ZERO | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "DS.json"}, "deepspeed_config_file to DS.json.*set zero_stage"),
        (ZERO | {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"}, "offload_optimizer_device to nvme.*out"),
        (ZERO | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "offload_param_device to cpu.*leave it out"),
        (ZERO | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "accumulation_steps to 4.*--batch-size"),
        (ZERO | {"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision to fp16.*bfloat16 on GPUs that support it"),
        (ZERO | {"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "clipping to 0.5.*clips gradients at norm 1"),
        ({"ACCELERATE_USE_FSDP": "true"}, "version 1; set fsdp_version: 2"),
        (SPREAD | {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params.*leave out"),
        (SPREAD | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use --gradient-checkpointing"),
    ],
)
def test_settings_that_contradict_the_launcher_are_refused(monkeypatch, flags, cure):
    for name, value in flags.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(QCompressError, match=cure):
        check_launch()


@needs_deepspeed
def test_zero_skips_a_step_without_finite_gradients_and_keeps_autocast(tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        half = partial(torch.autocast, "cpu", torch.bfloat16)
        linear = torch.nn.Linear(3, 1, bias=False)
        optimizer = torch.optim.AdamW(linear.parameters(), lr=1.0)
        zero = Zero(linear, optimizer, max_norm=1.0, autocast=half)
        with half():
            assert zero(torch.ones(1, 3)).dtype == torch.bfloat16
        for scale, moved in ((2.0, True), (float("nan"), False), (float("inf"), False), (2.0, True)):
            before = linear.weight.detach().clone()
            zero.engine.backward(zero(torch.ones(1, 3)).sum() * scale)
            assert zero.step() == pytest.approx(2 * 3**0.5 if moved else float("inf"))
            assert torch.equal(linear.weight, before) != moved
    finally:
        torch.distributed.destroy_process_group()
