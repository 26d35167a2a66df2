"""Captures: the same bytes however they came about, and a cache that cannot be used for anything else."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from compress.cli import cli
from compress.core.errors import QCompressError
from compress.distill.config import CaptureConfig, DistillConfig
from compress.distill.job import distill_checkpoint
from compress.distill.targets.cache import Cache, read_manifest
from compress.distill.targets.capture import capture_teacher
from compress.distill.targets.inspect import inspect_cache

pytestmark = pytest.mark.slow  # runs whole jobs

SMALL: dict[str, Any] = {"samples": 24, "seq_len": 32, "shard_windows": 5}
HYBRID: dict[str, Any] = {"codec": "hybrid", "temperature": 1.0, **SMALL}
SHORT: dict[str, Any] = {
    "alpha": 1.0,
    "blocks": 1,
    "steps": 6,
    "batch_size": 4,
    "seq_len": 32,
    "learning_rate": 3e-3,
    "eval_every": 3,
}


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def curve(path: Path) -> list[float]:
    return [row["loss"] for row in json.loads((path / "qcompress.json").read_text())["loss"]]


@pytest.fixture(scope="module")
def hybrid(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole hybrid cache of tiny_llama at temperature 1, 5 shards."""
    out = tmp_path_factory.mktemp("cache") / "hybrid"
    capture_teacher(tiny_llama, out, CaptureConfig(**HYBRID))
    return out


@pytest.fixture(scope="module")
def online(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The loss curve of a distillation with the teacher at hand, temperature 2."""
    out = tmp_path_factory.mktemp("online") / "student"
    distill_checkpoint(tiny_llama, out, DistillConfig(**SHORT))
    return curve(out)


def test_a_capture_reports_its_size_first_and_then_every_window(tiny_llama, tmp_path):
    reported: list[dict[str, Any]] = []
    row = capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(**HYBRID), report=reported.append)
    assert reported[0] == {"loads": tiny_llama.name} and (reported[1]["windows"], reported[1]["shards"]) == (24, 5)
    assert reported[1]["bytes"] == pytest.approx(row["bytes"], rel=0.3)
    counts = [row["windows"] for row in reported[2:]]
    assert counts[0] == "0/24" and counts[-1] == "24/24" and len(counts) >= 6
    again: list[dict[str, Any]] = []
    capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(**HYBRID), report=again.append)
    assert [row["windows"] for row in again[2:]] == [f"{done}/24" for done in (0, 5, 10, 15, 20, 24)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_cached_hidden_states_give_the_loss_curve_of_the_teacher(tiny_llama, tmp_path, online, dtype, tolerance):
    capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(dtype=dtype, **SMALL))
    row = distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(cache=str(tmp_path / "cache"), **SHORT))
    assert curve(tmp_path / "out") == pytest.approx(online, rel=tolerance)
    assert row["kl_after"] < row["kl_before"]


def test_a_hybrid_cache_teaches_too(tiny_llama, tmp_path, hybrid):
    settings = SHORT | {"temperature": 1.0}
    row = distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(cache=str(hybrid), **settings))
    assert row["kl_after"] < row["kl_before"]


def test_a_hybrid_cache_and_a_distillation_share_a_default_temperature(tiny_llama, tmp_path):
    capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(codec="hybrid", top_k=60, draws=40, **SMALL))
    row = distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(cache=str(tmp_path / "cache"), **SHORT))
    assert row["kl_after"] < row["kl_before"] and read_manifest(tmp_path / "cache").codec["temperature"] == 2.0


def test_two_processes_write_the_cache_of_one(tiny_llama, tmp_path, hybrid):
    settings = CaptureConfig(**HYBRID)
    rows = [capture_teacher(tiny_llama, tmp_path / "two", settings, rank=rank, ranks=2) for rank in (1, 0)]
    assert content(tmp_path / "two") == content(hybrid)
    assert sum(row["tokens_counted"] for row in rows) == inspect_cache(hybrid)["tokens_counted"]


def test_a_whole_cache_is_not_made_again(tiny_llama, tmp_path, hybrid):
    shutil.copytree(hybrid, tmp_path / "cache")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(**HYBRID))
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == before


def test_a_capture_that_was_killed_ends_in_the_same_bytes(tiny_llama, tmp_path, hybrid):
    out = tmp_path / "cache"
    arguments = ["capture", str(tiny_llama), "--out", str(out), "--codec", "hybrid", "--samples", "24"]
    arguments += ["--seq-len", "32", "--shard-windows", "5", "--temperature", "1"]
    program = [sys.executable, "-c", "from compress.cli import cli; cli()", *arguments]
    process = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    count = random.randrange(1, 5)
    while process.poll() is None and len(list(out.glob("targets-*"))) < count:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(out.glob("targets-*"))) >= count and (out / "manifest.json").is_file()
    capture_teacher(tiny_llama, out, CaptureConfig(**HYBRID))
    assert content(out) == content(hybrid)


def test_the_partial_shard_of_a_killed_run_is_removed(tiny_llama, tmp_path, hybrid):
    shutil.copytree(hybrid, tmp_path / "cache")
    name = read_manifest(hybrid).files[1]
    (tmp_path / "cache" / name).rename(tmp_path / "cache" / f".{name}.9999999.partial")
    capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(**HYBRID))
    assert content(tmp_path / "cache") == content(hybrid)


def test_the_partial_manifest_of_a_killed_run_is_removed(tiny_llama, tmp_path, hybrid):
    out = tmp_path / "cache"
    out.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    (out / f".manifest.json.{ended.pid}.partial").write_bytes(b"{")
    (out / f".manifest.json.{os.getppid()}.partial").write_bytes(b"{")  # of a running process
    capture_teacher(tiny_llama, out, CaptureConfig(**HYBRID))
    assert content(out).keys() - content(hybrid).keys() == {f".manifest.json.{os.getppid()}.partial"}


def test_a_last_digit_of_a_measurement_makes_no_other_cache(tiny_llama, tmp_path, hybrid):
    manifest = read_manifest(hybrid)
    start = manifest.data["start"] | {"nll_without": manifest.data["start"]["nll_without"] + 1e-6}
    other = replace(manifest, data=manifest.data | {"start": start})
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "manifest.json").write_text(other.text())
    capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(**HYBRID))
    assert Cache(tmp_path / "cache").manifest == other and len(Cache(tmp_path / "cache").shard(0)["window"]) == 5


@pytest.mark.parametrize("survivors", [0, 1, 4])
def test_a_capture_goes_on_from_any_shards_that_are_there(tiny_llama, tmp_path, hybrid, survivors):
    shutil.copytree(hybrid, tmp_path / "cache")
    for name in read_manifest(hybrid).files[survivors:]:
        (tmp_path / "cache" / name).unlink()
    with pytest.raises(QCompressError, match=f"{5 - survivors} of 5 shards are missing, first targets-0000{survivors}"):
        Cache(tmp_path / "cache")
    capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(**HYBRID))
    assert content(tmp_path / "cache") == content(hybrid)


def test_a_full_disk_is_one_line_and_keeps_whole_shards(tiny_llama, tmp_path, hybrid, monkeypatch):
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    settings = CaptureConfig(**HYBRID)
    with pytest.raises(
        QCompressError, match=r"targets-0000\d-of-00005.safetensors: the disk is full, [\d.,]+ .?B free; make room"
    ):
        capture_teacher(tiny_llama, tmp_path / "cache", settings)
    monkeypatch.undo()
    left = content(tmp_path / "cache")
    assert 1 < len(left) < 6 and all(content(hybrid)[name] == value for name, value in left.items())
    capture_teacher(tiny_llama, tmp_path / "cache", settings)
    assert content(tmp_path / "cache") == content(hybrid)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10))  # type: ignore[attr-defined]
    with pytest.raises(QCompressError, match=r"needs \d+\.\d kB, but .* has 10 B free"):
        capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(**SMALL))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"temperature": 2.0}, "temperature: 1.0 stored, 2.0 now"),
        ({"seq_len": 16}, "seq_len: 32 stored, 16 now"),
        ({"seed": 1}, "seed: 0 stored, 1 now"),
        ({"packing": "full"}, "packing: documents stored, full now"),
        ({"text": ("python",)}, "text: sha256:"),
        ({"text": ("default=1", "python=1")}, "text: sha256:"),
    ],
)
def test_a_run_that_differs_from_its_cache_is_refused_by_setting(tiny_llama, tmp_path, hybrid, change, name):
    settings = SHORT | {"temperature": 1.0} | change
    with pytest.raises(QCompressError, match=f"another setting than this run, {name}"):
        distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(cache=str(hybrid), **settings))
    assert not list(tmp_path.iterdir())


def test_another_teacher_and_another_template_are_refused_by_name(tiny_llama, tiny_qwen2, tmp_path, hybrid):
    settings = DistillConfig(cache=str(hybrid), **SHORT | {"temperature": 1.0})
    with pytest.raises(QCompressError, match=r"run, teacher: sha256:.* stored, sha256:.* now"):
        distill_checkpoint(tiny_qwen2, tmp_path / "out", settings)
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    for file in other.glob("*"):
        if "<|im_end|>\\n" in (text := file.read_text(errors="ignore")) and file.suffix in (".jinja", ".json"):
            file.write_text(text.replace("{% for message", "{# changed #}{% for message"))
    template = other / "chat_template.jinja"
    if template.is_file():
        template.write_text("{# changed #}" + template.read_text())
    with pytest.raises(QCompressError, match="run, chat_template: sha256:"):
        distill_checkpoint(other, tmp_path / "out", settings)


def test_another_tokenizer_is_refused_by_name(tiny_llama, tmp_path, hybrid):
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    file = json.loads((other / "tokenizer.json").read_text())
    first, second = (next(t for t, place in file["model"]["vocab"].items() if place == number) for number in (70, 71))
    file["model"]["vocab"] |= {first: 71, second: 70}
    (other / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(QCompressError, match=r"run, tokenizer: sha256:.* stored, sha256:.* now"):
        distill_checkpoint(other, tmp_path / "out", DistillConfig(cache=str(hybrid), **SHORT | {"temperature": 1.0}))


def test_sparse_targets_and_a_divergence_that_needs_all_are_refused(tiny_llama, tmp_path, hybrid):
    settings = DistillConfig(cache=str(hybrid), divergence="jsd", **SHORT | {"temperature": 1.0})
    with pytest.raises(
        QCompressError, match=r"--divergence jsd needs the probabilities of all tokens, but codec hybrid"
    ):
        distill_checkpoint(tiny_llama, tmp_path / "out", settings)


def test_a_capture_into_another_cache_is_refused_by_setting(tiny_llama, hybrid):
    before = content(hybrid)
    for change, name in (
        ({"codec": "topk"}, "codec: hybrid stored, topk now"),
        ({"draws": 3}, "draws: 10 stored, 3"),
    ):
        with pytest.raises(QCompressError, match=f"captured with other settings, {name}"):
            capture_teacher(tiny_llama, hybrid, CaptureConfig(**HYBRID | change))
    assert content(hybrid) == before


@pytest.mark.parametrize("place", [-1, -3000, 3000])
def test_a_flipped_bit_is_refused(tmp_path, hybrid, place):
    shutil.copytree(hybrid, tmp_path / "cache")
    file = tmp_path / "cache" / read_manifest(hybrid).files[2]
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(QCompressError, match=r"targets-00002.*(checksum mismatch|another manifest)"):
        inspect_cache(tmp_path / "cache")


def test_a_shard_of_another_capture_is_refused(tiny_llama, tmp_path, hybrid):
    capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(**HYBRID | {"seed": 1}))
    name = read_manifest(hybrid).files[1]
    shutil.copyfile(hybrid / name, tmp_path / "cache" / name)
    with pytest.raises(QCompressError, match="belongs to another manifest"):
        inspect_cache(tmp_path / "cache")


def test_rows_of_other_tokens_are_refused(hybrid):
    with pytest.raises(QCompressError, match="window 7 had other tokens when it was captured"):
        Cache(hybrid).rows(7, torch.zeros(32, dtype=torch.uint8))


def test_a_conversation_without_answers_makes_no_cache(tiny_llama, tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"a question without an answer, number {i}"}]} for i in range(99)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = CaptureConfig(text=(str(tmp_path / "chat.jsonl"),), **SMALL)
    with pytest.raises(QCompressError, match=r"chat.jsonl: [\d,]+ samples with 768 tokens, but 0"):
        capture_teacher(tiny_llama, tmp_path / "cache", settings)
    assert not (tmp_path / "cache").exists()


def test_inspect_prints_the_contents_of_a_cache(hybrid):
    shown = CliRunner().invoke(cli, ["cache", "inspect", str(hybrid), "--json"])
    row = json.loads(shown.stdout)
    assert row["codec"] == "hybrid" and row["biased"] is False and row["temperature"] == 1.0
    assert row["tokens_counted"] == 24 * 31 and row["bytes_per_token"] > 96
    assert row["shards"] == "5 of 5" and row["missing"] is None and 0 < row["tail_mass"] < 1 and row["entropy"] > 0


def test_nothing_in_a_cache_is_pickled(hybrid):
    assert {file.suffix for file in hybrid.iterdir()} == {".json", ".safetensors"}
    from safetensors.torch import load_file

    shard = load_file(hybrid / read_manifest(hybrid).files[0])
    assert shard["window"].tolist() == [0, 1, 2, 3, 4] and len(shard["codec.ids"]) == shard["ends"][-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codec": "zip"}, "codec=zip"),
        ({"codec": "hidden", "temperature": 2.0}, "temperature=2.0: codec hidden stores no probabilities"),
        ({"temperature": 0.0, "codec": "hybrid"}, "temperature=0.0"),
        ({"samples": 0}, "samples=0"),
        ({"dtype": "int8"}, "dtype=int8"),
    ],
)
def test_a_bad_setting_of_a_capture_is_named_with_its_value(settings, message):
    with pytest.raises(ValueError, match=message):
        CaptureConfig(**settings)


def test_restart_replaces_an_interrupted_capture_of_other_settings(tiny_llama, tmp_path, hybrid):
    out = tmp_path / "cache"
    capture_teacher(tiny_llama, out, CaptureConfig(**SMALL))
    (out / read_manifest(out).files[0]).unlink()
    with pytest.raises(QCompressError, match="captured with other settings"):
        capture_teacher(tiny_llama, out, CaptureConfig(**HYBRID))
    capture_teacher(tiny_llama, out, CaptureConfig(**HYBRID), restart=True)
    assert content(out) == content(hybrid)


def test_restart_keeps_a_whole_cache(tiny_llama, tmp_path, hybrid):
    shutil.copytree(hybrid, tmp_path / "cache")
    with pytest.raises(QCompressError, match="captured with other settings"):
        capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(**SMALL), restart=True)
    assert content(tmp_path / "cache") == content(hybrid)


def test_restart_is_refused_with_several_processes(tiny_llama, tmp_path):
    with pytest.raises(QCompressError, match="--restart works in one process only"):
        capture_teacher(tiny_llama, tmp_path / "cache", CaptureConfig(**SMALL), restart=True, ranks=2)
