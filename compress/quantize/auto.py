"""`--method auto`: every method in turn, judged by KL on windows that none of them read; the best is written.

Plain rounding is among them, so the result is never worse than it on those windows. With `recover`, the best is trained
too, and stands only where that lowered the KL. The table of all lies in the checkpoint's record.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.card import CARD, write_card
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.load import load_tokenizer, open_causal_lm
from compress.checkpoint.read import read_json
from compress.checkpoint.record import RECORD, read_record
from compress.checkpoint.work import refuse_changes
from compress.checkpoint.write import check_room, write_json
from compress.config import AUTO, METHODS, QuantizeConfig, eighth
from compress.model.blocks import BlockModel
from compress.quantize.calibrate import job_start, job_windows
from compress.quantize.job import job_settings, plan_quantize, quantize_checkpoint
from compress.quantize.recover import final_states, mean_kl

Row = dict[str, Any]
Report = Callable[[Row], None]
BATCH = 4  # windows
SETTINGS = "auto.json"


def quantize(
    model: Path,
    out: Path,
    config: QuantizeConfig,
    *,
    calibration: Sequence[str] = ("default",),
    dtype: torch.dtype | None = None,
    restart: bool = False,
    report: Report = lambda row: None,
    **resources: Any,
) -> Row:
    """Quantize `model` into `out` with the config's method, or with the best of all; returns the summary row."""
    options = {"calibration": calibration, "dtype": dtype, "restart": restart, "report": report, **resources}
    if config.method != AUTO:
        return quantize_checkpoint(model, out, config, **options)  # type: ignore[arg-type]
    config = replace(config, held_out=config.held_out or eighth(config.n_samples))
    folder = open_folder(model, out, config, calibration, dtype, restart)
    judge = make_judge(model, config, calibration)
    found: list[Row] = []

    def attempt(candidate: QuantizeConfig) -> None:
        path = folder / name_of(candidate)
        if not path.is_dir():
            quantize_checkpoint(model, path, candidate, **options)  # type: ignore[arg-type]
        found.append({"candidate": path.name, "held_out_kl": judge.kl(path)})
        report(found[-1])

    for method in METHODS:
        attempt(replace(config, method=method, recover=0))
    if config.recover:
        attempt(replace(config, method=best_of(found)["candidate"]))
    return publish(folder, out, found)


def name_of(config: QuantizeConfig) -> str:
    return f"{config.method}+recover" if config.recover else config.method


def best_of(found: list[Row]) -> Row:
    """The first of the lowest: earlier methods are the simpler ones."""
    return min(found, key=lambda row: row["held_out_kl"])


def open_folder(
    model: Path,
    out: Path,
    config: QuantizeConfig,
    calibration: Sequence[str],
    dtype: torch.dtype | None,
    restart: bool,
) -> Path:
    """Where finished candidates wait for the others, hidden beside `out`; one that was begun with the same settings
    goes on. QCompressError for other settings, a full directory or disk."""
    folder = out.with_name(f".{out.name}.auto")
    _, plan = plan_quantize(model, replace(config, method="rtn"), dtype=dtype)
    settings = {key: str(value) for key, value in job_settings(model, plan, config, calibration).items()}
    check_room(out, (len(METHODS) + 1) * plan.bytes)
    if restart:
        shutil.rmtree(folder, ignore_errors=True)
    if (folder / SETTINGS).is_file():
        refuse_changes(folder, read_json(folder / SETTINGS), settings)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SETTINGS, settings)
    return folder


@dataclass(frozen=True)
class Judge:
    """The 16-bit model, the windows that no candidate reads, and what it makes of them after its last block."""

    teacher: BlockModel
    ids: Tensor
    answers: Tensor

    @torch.no_grad()
    def kl(self, path: Path) -> float:
        """Mean KL in nats of the checkpoint at `path` on all positions."""
        checkpoint = open_causal_lm(path)
        model = BlockModel(checkpoint.config, weight_reader(checkpoint))
        with self.teacher.ends(head=True), model.ends(head=True):
            return mean_kl(self.teacher, model, self.ids, self.answers, BATCH)


@torch.no_grad()
def make_judge(model: Path, config: QuantizeConfig, calibration: Sequence[str]) -> Judge:
    checkpoint = open_causal_lm(model)
    teacher = BlockModel(checkpoint.config, checkpoint.tensor)
    tokenizer = load_tokenizer(model)
    token = job_start(teacher, tokenizer, calibration, config).token
    ids = job_windows(tokenizer, calibration, config, token).ids[-config.held_out :]
    return Judge(teacher, ids, final_states(teacher, ids, BATCH))


def publish(folder: Path, out: Path, found: list[Row]) -> Row:
    """Give the best candidate its name, with the table of all in its record; its row."""
    best = best_of(found)
    path = folder / best["candidate"]
    record = read_record(path) | {"candidates": found}
    write_json(path / RECORD, record)
    (path / CARD).write_text(write_card(record), encoding="utf-8")
    if out.exists():
        out.rmdir()  # checked empty at the start
    path.rename(out)
    shutil.rmtree(folder)
    rtn = next(row["held_out_kl"] for row in found if row["candidate"] == "rtn")
    return {"out": str(out), **best, "rtn_kl": rtn, "bytes": open_causal_lm(out).bytes}
