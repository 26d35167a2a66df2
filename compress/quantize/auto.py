"""`--method auto`: every method in turn, judged by KL on windows that none of them read; the best is written.

Plain rounding is among them, so the result is never worse than it on those windows. With `tune`, the best is trained
too, and stands only where that lowered the KL. The table of all lies in the checkpoint's record.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.formats import weight_reader
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.model_card import CARD, write_card
from compress.checkpoint.read import RECORD, Checkpoint, PathOrCheckpoint, read_json
from compress.checkpoint.workdir import refuse_changes
from compress.checkpoint.write import check_room, write_json
from compress.core.config import AUTO, METHODS, QuantizeConfig
from compress.model.blocks import BlockModel
from compress.quantize.calibrate import job_start, job_windows
from compress.quantize.job import (
    Report,
    Row,
    compute_dtype,
    job_settings,
    make_blocks,
    plan_quantize,
    quantize_checkpoint,
    silent,
)
from compress.quantize.processes import ALONE, Processes
from compress.quantize.tune.end_to_end import final_states, mean_kl

BATCH = 4  # windows
SETTINGS = "auto.json"


def quantize(
    model: PathOrCheckpoint,
    out: Path,
    config: QuantizeConfig,
    *,
    text: Sequence[str] = ("default",),
    dtype: torch.dtype | None = None,
    restart: bool = False,
    device: str = "cpu",
    processes: Processes = ALONE,
    report: Report = silent,
    **resources: Any,
) -> Row:
    """Quantize `model` into `out` with the config's method, or with the best of all; returns the summary row.

    Errors, resuming and several `processes` are those of `quantize_checkpoint`, whose options the others are.
    """
    options: dict[str, Any] = {"text": text, "dtype": dtype, "restart": restart, "device": device}
    options |= {"processes": processes, "report": report, **resources}
    if config.method != AUTO:
        return quantize_checkpoint(model, out, config, **options)
    model, config = open_causal_lm(model), config.judged()
    folder = processes.first(lambda: open_folder(model, out, config, text, dtype, restart))
    if processes.first(lambda: is_published(out)):
        return processes.first(lambda: finish(folder, out))
    judges = [make_judge(model, config, text, dtype, device)] if processes.rank == 0 else []
    found: list[Row] = []

    def attempt(candidate: QuantizeConfig) -> None:
        path = folder / name_of(candidate)
        if not processes.first(path.is_dir):
            quantize_checkpoint(model, path, candidate, **options)
        found.append({"candidate": path.name, "heldout_kl": processes.first(lambda: judges[0].kl(path))})
        if processes.rank == 0:
            report(found[-1])

    for method in METHODS:
        attempt(replace(config, method=method, tune=0))
    if config.tune:
        attempt(replace(config, method=best_of(found)["candidate"]))
    processes.first(lambda: publish(folder, out, found))
    return processes.first(lambda: finish(folder, out))


def name_of(config: QuantizeConfig) -> str:
    return f"{config.method}+tune" if config.tune else config.method


def best_of(found: list[Row]) -> Row:
    """The first of the lowest: earlier methods are the simpler ones."""
    return min(found, key=lambda row: row["heldout_kl"])


def open_folder(
    model: Checkpoint,
    out: Path,
    config: QuantizeConfig,
    text: Sequence[str],
    dtype: torch.dtype | None,
    restart: bool,
) -> Path:
    """Where finished candidates wait for the others, hidden beside `out`; one that was begun with the same settings
    goes on. QCompressError for other settings, a full directory or disk."""
    folder = out.with_name(f".{out.name}.auto")
    _, plan = plan_quantize(model, replace(config, method="rtn"), dtype=dtype)
    settings = {key: str(value) for key, value in job_settings(model, plan, config, text).items()}
    if restart:
        shutil.rmtree(folder, ignore_errors=True)
    if (folder / SETTINGS).is_file():
        refuse_changes(folder, read_json(folder / SETTINGS), settings)
        if not is_published(out):
            check_room(out, 0)
    else:
        check_room(out, (len(METHODS) + 1) * plan.bytes)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SETTINGS, settings)
    return folder


@dataclass(frozen=True)
class Judge:
    """The 16-bit model, (n, seq) windows that no candidate reads, and what it makes of them after its last block."""

    teacher: BlockModel
    ids: Tensor
    answers: Tensor

    @torch.no_grad()
    def kl(self, path: Path) -> float:
        """Mean KL in nats of the checkpoint at `path` on all positions."""
        checkpoint = open_causal_lm(path)
        model = BlockModel(checkpoint.config, weight_reader(checkpoint), self.teacher.dtype, self.teacher.device)
        with self.teacher.embedding_and_norm(head=True), model.embedding_and_norm(head=True):
            return mean_kl(self.teacher, model, self.ids, self.answers, BATCH)


@torch.no_grad()
def make_judge(
    model: Checkpoint, config: QuantizeConfig, text: Sequence[str], dtype: torch.dtype | None, device: str
) -> Judge:
    """The judge of a config's held-out windows, which begin as those of the candidates do."""
    checkpoint, plan = plan_quantize(model, replace(config, method="rtn"), dtype=dtype)
    config = replace(config, compute_dtype=compute_dtype(config, plan, device))
    teacher, tokenizer = make_blocks(checkpoint, config, device), checkpoint.tokenizer
    token = job_start(teacher, tokenizer, text, config).token
    ids = job_windows(tokenizer, text, config, token).ids[-config.held_out :]
    return Judge(teacher, ids, final_states(teacher, ids, BATCH))


def publish(folder: Path, out: Path, found: list[Row]) -> None:
    """Give the best candidate its name, with the table of all in its record."""
    path = folder / best_of(found)["candidate"]
    record = Checkpoint(path).record | {"candidates": found}
    write_json(path / RECORD, record)
    (path / CARD).write_text(write_card(record), encoding="utf-8")
    if out.exists():
        out.rmdir()  # checked empty at the start
    path.rename(out)


def is_published(out: Path) -> bool:
    """Whether a job lies at `out` that tried every method; it may have been killed before it had cleared up."""
    return (out / RECORD).is_file() and "candidates" in Checkpoint(out).record


def finish(folder: Path, out: Path) -> Row:
    """Remove what lost; the row of what was published."""
    shutil.rmtree(folder)
    found = Checkpoint(out).record["candidates"]
    rtn = next(row["heldout_kl"] for row in found if row["candidate"] == "rtn")
    return {"out": str(out), **best_of(found), "rtn_kl": rtn, "bytes": open_causal_lm(out).bytes}
