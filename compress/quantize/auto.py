"""quantize(): run one method or, with `--method auto`, run every method and keep the best result.

Auto measures each candidate by its KL on windows that no method reads. Plain rounding is a candidate, so the result is
never worse than plain rounding on those windows. With `tune`, the best candidate is trained as well. The trained
checkpoint is kept only if its KL is lower. The record of the checkpoint lists all candidates.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from compress.checkpoint.formats import weight_reader
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.model_card import CARD, write_card
from compress.checkpoint.read import RECORD, Checkpoint, PathOrCheckpoint, read_json
from compress.checkpoint.record import refresh_file_digests
from compress.checkpoint.workdir import check_same_settings, open_work, read_journal, remove_work, write_journal
from compress.checkpoint.write import check_room, write_json
from compress.core.config import AUTO, METHODS, QuantizeConfig
from compress.core.interrupt import RESUME, on_interrupt
from compress.core.lock import output_lock
from compress.core.report import Report, Row, silent
from compress.model.blocks import BlockModel
from compress.quantize.calibrate import job_start, job_windows
from compress.quantize.job import (
    DEFAULT_RUN,
    RunOptions,
    choose_compute_dtype,
    job_settings,
    make_blocks,
    plan_quantize,
    quantize_checkpoint,
)
from compress.quantize.journal import remove_output
from compress.quantize.processes import Processes
from compress.quantize.tune.end_to_end import final_states, mean_kl

BATCH = 4  # windows
SETTINGS = "auto.json"
KEYS = ("source", "method")


def quantize(model: PathOrCheckpoint, out: Path, config: QuantizeConfig, run: RunOptions = DEFAULT_RUN) -> Row:
    """Quantize `model` into `out` with the config's method, or with the best method. Returns the summary row.

    Arguments and errors are those of `quantize_checkpoint`. After a kill, the same call continues the run.
    """
    if config.method != AUTO:
        return quantize_checkpoint(model, out, config, run)
    processes = run.processes
    model, config = open_causal_lm(model), config.with_held_out()
    with ExitStack() as stack:
        processes.first(lambda: stack.enter_context(output_lock(out)))
        folder = processes.first(lambda: open_folder(model, out, config, restart=run.restart))
        stack.enter_context(on_interrupt(lambda: f"finished candidates are kept in {folder}; {RESUME}"))
        if not processes.first(lambda: is_published(out)):
            evaluator = make_evaluator(model, config, run.device) if processes.rank == 0 else None

            def attempt(candidate: QuantizeConfig) -> Row:
                path = folder / candidate_name(candidate)
                if not processes.first(path.is_dir):
                    quantize_checkpoint(model, path, candidate, run)
                return candidate_row(path, evaluator, processes)

            rows = try_methods(config, attempt, silent if processes.rank else run.report)
            processes.first(lambda: publish(folder, out, rows))
        return processes.first(lambda: finish(folder, out))


def try_methods(config: QuantizeConfig, attempt: Callable[[QuantizeConfig], Row], report: Report) -> list[Row]:
    """One row per method. If the config has `tune`, one more row for the best method with training."""
    rows: list[Row] = []
    for method in METHODS:
        rows.append(attempt(replace(config, method=method, tune=0)))
        report(rows[-1])
    if config.tune:
        rows.append(attempt(replace(config, method=best_of(rows)["candidate"])))
        report(rows[-1])
    return rows


def candidate_row(path: Path, evaluator: "CandidateScorer | None", processes: Processes) -> Row:
    """The name and the held-out KL of the candidate at `path`. The first process measures it for all processes."""
    return {"candidate": path.name, "eval_kl": processes.first(lambda: evaluator.kl(path) if evaluator else 0.0)}


def candidate_name(config: QuantizeConfig) -> str:
    """The folder name of a candidate: its method, followed by "+tune" if it is trained."""
    return f"{config.method}+tune" if config.tune else config.method


def best_of(rows: list[Row]) -> Row:
    """The row with the lowest KL. The first row wins a tie, because METHODS begins with the simplest method."""
    return min(rows, key=lambda row: row["eval_kl"])


def open_folder(model: PathOrCheckpoint, out: Path, config: QuantizeConfig, *, restart: bool) -> Path:
    """The hidden folder beside `out` that holds finished candidates: a new one, or the one of an interrupted run.

    Raises QCompressError if the interrupted run had other settings, `out` is not empty, or the disk is too full.
    """
    folder = out.with_name(f".{out.name}.auto")
    checkpoint, plan = plan_quantize(model, replace(config, method="rtn"))
    settings = {key: str(value) for key, value in job_settings(checkpoint, plan, config).items()}
    if (folder / SETTINGS).is_file() and restart:
        remove_candidates(folder)
    if (folder / SETTINGS).is_file():
        check_same_settings(folder, read_journal(folder / SETTINGS, KEYS), settings)
        if not is_published(out):
            check_room(out, 0)
    else:
        check_room(out, (len(METHODS) + 1) * plan.bytes)
        open_work(folder, SETTINGS, KEYS)
        write_journal(folder / SETTINGS, settings)
    return folder


def remove_candidates(folder: Path) -> None:
    """Remove all candidates, finished or not, and then the folder. Files of other programs stay."""
    if (folder / SETTINGS).is_file():
        read_journal(folder / SETTINGS, KEYS)
    for name in (*METHODS, *(f"{method}+tune" for method in METHODS)):
        remove_output(folder / name)
    remove_work(folder, SETTINGS, ())


@dataclass(frozen=True)
class CandidateScorer:
    """Measures candidates against the 16-bit model `teacher`.

    `ids` are the held-out windows (n, seq_len). `states` are the teacher's states after its last block.
    """

    teacher: BlockModel
    ids: Tensor
    states: Tensor

    @torch.no_grad()
    def kl(self, path: Path) -> float:
        """Mean KL(16-bit model ‖ checkpoint at `path`), in nats, over all positions of the held-out windows."""
        checkpoint = open_causal_lm(path)
        model = BlockModel(checkpoint.config, weight_reader(checkpoint), self.teacher.dtype, self.teacher.device)
        with self.teacher.embedding_and_norm(head=True), model.embedding_and_norm(head=True):
            return mean_kl(self.teacher, model, self.ids, self.states, BATCH)


@torch.no_grad()
def make_evaluator(model: PathOrCheckpoint, config: QuantizeConfig, device: str) -> CandidateScorer:
    """The scorer on the held-out windows of `config`. They begin with the start token of the calibration windows."""
    checkpoint, _ = plan_quantize(model, replace(config, method="rtn"))
    config = replace(config, compute_dtype=choose_compute_dtype(config, checkpoint, device))
    teacher = make_blocks(checkpoint, config, device)
    start = job_start(teacher, checkpoint.tokenizer, config)
    ids = job_windows(checkpoint.tokenizer, config, start.token).ids[-config.held_out :]
    return CandidateScorer(teacher, ids, final_states(teacher, ids, BATCH))


def publish(folder: Path, out: Path, rows: list[Row]) -> None:
    """Move the best candidate to `out`, with the rows of all candidates in its record."""
    path = folder / best_of(rows)["candidate"]
    record = Checkpoint(path).record | {"candidates": rows}
    write_json(path / RECORD, record)
    (path / CARD).write_text(write_card(record), encoding="utf-8")
    refresh_file_digests(path)
    if out.exists():
        out.rmdir()  # open_folder has checked that it is empty
    path.rename(out)


def is_published(out: Path) -> bool:
    """True if `out` holds a result of `--method auto`, even if the run was killed before its clean-up."""
    return (out / RECORD).is_file() and "candidates" in read_json(out / RECORD)


def finish(folder: Path, out: Path) -> Row:
    """Remove all candidates that were not published. Returns the summary row of the published one."""
    remove_candidates(folder)
    checkpoint = open_causal_lm(out)
    rows = checkpoint.record["candidates"]
    rtn = next(row["eval_kl"] for row in rows if row["candidate"] == "rtn")
    return {"out": str(out), **best_of(rows), "rtn_kl": rtn, "bytes": checkpoint.bytes}
