"""quantize_checkpoint(): a plain checkpoint in, a 4-bit one out, block by block.

One block's weights are in memory at a time; the result lies under a temporary name until the validator has passed it.
A run that was killed goes on after the last block in its journal.
"""

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from calibration.corpus import source_digest
from calibration.start import choose_start
from calibration.windows import Windows, build_windows
from compress.checkpoint.check import check_checkpoint
from compress.checkpoint.finite import cast_finite, check_finite
from compress.checkpoint.formats import model_dtype, packed_config
from compress.checkpoint.load import load_tokenizer, open_causal_lm, start_candidate
from compress.checkpoint.memory import check_memory
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import RECORD, digest, record_text
from compress.checkpoint.write import CheckpointWriter, both_spellings, partial_path
from compress.config import QuantizeConfig
from compress.errors import GateFailure, QCompressError
from compress.model.blocks import Block, BlockModel, parameter_shapes
from compress.quantize.activations import Activations, boundary
from compress.quantize.block import BlockSettings, QuantizedBlock, quantize_block, round_block
from compress.quantize.journal import Journal, log_path, shared_journal
from compress.quantize.lockstep import lockstep
from compress.quantize.memory import (
    ACTIVATION_MEMORY,
    BATCH_TOKENS,
    START_LENGTH,
    START_WINDOWS,
    choose_driver,
    estimate_memory,
    resident,
)
from compress.quantize.plan import Plan, group_size_reason, make_plan, plan_row
from compress.quantize.processes import ALONE, Processes

Row = dict[str, Any]
Report = Callable[[Row], None]


def plan_quantize(model: Path, config: QuantizeConfig, *, dtype: torch.dtype | None = None) -> tuple[Checkpoint, Plan]:
    """The source and exact plan of a job, no weight read. QCompressError for what cannot be quantized."""
    checkpoint = open_causal_lm(model)
    if checkpoint.quantization is not None:
        method = checkpoint.quantization.get("quant_method")
        raise QCompressError(f"{model}: is already quantized ({method}); give the 16-bit checkpoint it was made from")
    target = dtype or storage_dtype(checkpoint.config)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return checkpoint, make_plan(str(model), shapes, checkpoint.config, config, target)


def plan_without_weights(
    where: str, model: dict[str, Any], config: QuantizeConfig, *, dtype: torch.dtype | None = None
) -> Plan:
    """The same plan from a config.json alone; `where` names it in errors."""
    return make_plan(where, parameter_shapes(model), model, config, dtype or storage_dtype(model))


def storage_dtype(config: dict[str, Any]) -> torch.dtype:
    """float16 or bfloat16, as the source; float32 sources become float16."""
    dtype = model_dtype(config)
    return torch.float16 if dtype == torch.float32 else dtype


def silent(row: Row) -> None:
    """No report."""


def quantize_checkpoint(
    model: Path,
    out: Path,
    config: QuantizeConfig,
    *,
    calibration: Sequence[str] = ("default",),
    dtype: torch.dtype | None = None,
    restart: bool = False,
    activation_memory: int = ACTIVATION_MEMORY,
    processes: Processes = ALONE,
    report: Report = silent,
) -> Row:
    """Quantize `model` into `out`; returns the summary row. Nothing is left at `out` when it fails.

    When blocks were done before it failed or was killed, their work stays, and the same call goes on from there to the
    very bytes of an uninterrupted run; `restart` removes that work first. `activation_memory` bytes may be parked
    between the stages of a block: it changes the speed, never the result. With
    several `processes` each runs its share of the windows, and the first writes and reports.
    QCompressError for bad input, GateFailure when the validator refuses the result.
    """
    started = time.perf_counter()
    checkpoint, plan = plan_quantize(model, config, dtype=dtype)
    tokenizer = load_tokenizer(model)
    blocks = BlockModel(checkpoint.config, lambda name: check_finite(name, checkpoint.tensor(name)))
    needed = estimate_memory(blocks, plan, config, activation_memory)
    check_memory(model, needed - resident())
    drive = choose_driver(blocks, plan, config, activation_memory)
    settings = job_settings(model, plan, config, calibration) | {"processes": processes.count}
    report = report if processes.rank == 0 else silent
    room = plan.bytes + work_bytes(blocks, config)
    with shared_journal(out, settings, room, processes, restart=restart) as journal:
        report(plan_row(str(model), plan, config) | {"memory_bytes": needed})
        if not config.group_size and (reason := group_size_reason(plan)):
            report({"group_size": reason})
        if not journal.published:
            windows = calibration_windows(blocks, tokenizer, calibration, config, journal, processes, report)
            with full_disk(out, plan):
                writer = processes.first(lambda: CheckpointWriter(out, plan.specs, keep=True))
                quantize_blocks(blocks, writer, plan, config, windows, journal, report, drive, processes)
                processes.first(lambda: finish(checkpoint, writer, plan, journal, windows))
        rows = processes.first(lambda: journal.rows)
        processes.first(journal.discard)
    return summary(plan_row(str(model), plan, config), config, rows, out, time.perf_counter() - started)


def job_settings(model: Path, plan: Plan, config: QuantizeConfig, calibration: Sequence[str]) -> Row:
    """Everything that the bytes of the result follow from."""
    texts = [] if config.method == "rtn" else calibration
    wanted = {key: value for key, value in asdict(config).items() if key != "max_size"}
    return {
        "model": str(model),
        "source": digest(model),
        **wanted,
        "group_size": plan.scheme.group_size,
        "sym": plan.scheme.sym,
        "dtype": str(plan.scheme.dtype).removeprefix("torch."),
        "calibration": {text: source_digest(text) for text in texts},
        **{name: version(name) for name in ("qcompress", "torch", "transformers")},
    }


@contextmanager
def full_disk(out: Path, plan: Plan) -> Iterator[None]:
    """A disk that fills up is said in one line; what is done stays."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(out.absolute().parent).free
        raise QCompressError(
            f"{partial_path(out)}: the disk is full: {plan.bytes:,} bytes are needed in all, {free:,} are free; "
            "make room and run the same command again, it goes on from here"
        ) from error


def finish(
    checkpoint: Checkpoint, writer: CheckpointWriter, plan: Plan, journal: Journal, windows: Windows | None
) -> None:
    """Write what is outside the blocks, and give the checkpoint its name.

    GateFailure, and nothing is kept, when it breaks a rule.
    """
    write_rest(checkpoint, writer, plan)
    names = [field.name for field in fields(QuantizeConfig)]
    record = record_text(
        "quantize",
        {name: journal.settings.get(name) for name in names},
        source={"path": str(checkpoint.path), "digest": journal.settings["source"]},
        calibration=windows.manifest | {"start": journal.notes["start"]} if windows else None,
        rows=journal.rows,
    )
    try:
        writer.publish(
            both_spellings(packed_config(checkpoint.config, plan.format, plan.scheme, plan.unquantized)),
            source=checkpoint.path,
            extra={RECORD: record},
            inspect=lambda folder: refuse_wrong(folder, checkpoint.path),
        )
    except GateFailure:
        journal.discard()
        raise


def refuse_wrong(folder: Path, source: Path) -> None:
    """GateFailure when the validator finds an error in what was written."""
    errors = [row for row in check_checkpoint(folder, source=source) if row["level"] == "error"]
    if errors:
        raise GateFailure(f"{folder}: {len(errors)} rules broken, nothing was kept; first: {errors[0]}")


def calibration_windows(
    blocks: BlockModel,
    tokenizer: Any,
    sources: Sequence[str],
    config: QuantizeConfig,
    journal: Journal,
    processes: Processes,
    report: Report,
) -> Windows | None:
    """The windows, beginning as this model wants them to begin: measured on a few short ones, once per job."""
    if config.method == "rtn":
        return None
    size = {"n_samples": config.n_samples, "seq_len": config.seq_len, "seed": config.seed}

    def measure() -> Row:
        if "start" not in journal.notes:
            plain = build_windows(sources, tokenizer, **size)
            candidate = start_candidate(tokenizer, blocks.model.config.to_dict())
            start = choose_start(plain.ids[:START_WINDOWS, :START_LENGTH], candidate, blocks.nll)
            journal.notes["start"] = asdict(start)
            journal.save()
        return journal.notes["start"]

    token = processes.first(measure)["token"]
    windows = build_windows(sources, tokenizer, start_token=token, **size)
    report({"calibration": ", ".join(sources), "windows": len(windows.ids), "start_token": token})
    return windows


@torch.no_grad()
def quantize_blocks(
    blocks: BlockModel,
    writer: CheckpointWriter,
    plan: Plan,
    config: QuantizeConfig,
    windows: Windows | None,
    journal: Journal,
    report: Report,
    drive: Callable[..., None] = lockstep,
    processes: Processes = ALONE,
) -> None:
    """Every block that is not done yet, quantized and written. Blocks see inputs made by quantized predecessors."""
    settings, first, started = block_settings(blocks, plan, config), len(journal.blocks), time.perf_counter()
    if first:
        report({"resumed": f"{first} of {len(blocks)} blocks were done"})
    for index in range(first):
        writer.written |= {name for name in writer.specs if name.startswith(f"{blocks.name(index)}.")}
    inputs = first_inputs(blocks, windows, config, journal, processes) if windows else None
    for index in range(first, len(blocks)):
        outputs = None
        with blocks.block(index) as block:
            if inputs is None:
                result = round_block(block, settings)
            else:
                outputs = boundary(journal.folder, index + 1, inputs.shapes, processes.rank)
                run = blocks.runner(block, index)
                result = quantize_block(block, run, inputs, settings, outputs, drive, processes)
                outputs.sync()
            digests = processes.gather(outputs.digest()) if outputs else None
            processes.first(partial(save_block, block, result, writer, plan, journal, digests))
        inputs = outputs
        line = block_line(block, result.rows, index, len(blocks), time.perf_counter() - started, first)
        report(line)
        processes.first(partial(write_log, journal.out, [line, *result.rows]))


def save_block(
    block: Block,
    result: QuantizedBlock,
    writer: CheckpointWriter,
    plan: Plan,
    journal: Journal,
    digests: list[str] | None,
) -> None:
    """The block on the disk, then its line in the journal."""
    write_block(block, result, writer, plan)
    writer.sync()
    journal.done(result.rows, digests)


def first_inputs(
    blocks: BlockModel, windows: Windows, config: QuantizeConfig, journal: Journal, processes: Processes
) -> Activations:
    """This process's inputs of the first block to do: embedded, or what the interrupted run has left."""
    parts = processes.mine(windows.ids.split(max(1, BATCH_TOKENS // config.seq_len)))
    if not parts:
        raise QCompressError(f"{len(windows.ids)} windows are too few for {processes.count} processes; start fewer")
    shapes = [(*ids.shape, blocks.model.config.hidden_size) for ids in parts]
    inputs = boundary(journal.folder, len(journal.blocks), shapes, processes.rank)
    with blocks.ends():
        if journal.blocks:
            for ids in (parts[0], parts[-1]):  # the blocks' masks and rotary tables, for every shape there is
                blocks.embed(ids)
            inputs.check(journal.blocks[-1]["activations"][processes.rank])
        else:
            for i, ids in enumerate(parts):
                inputs[i] = blocks.embed(ids)
    return inputs


def work_bytes(blocks: BlockModel, config: QuantizeConfig) -> int:
    """Bytes on disk of the activations before and after a block."""
    return 0 if config.method == "rtn" else 8 * config.n_samples * config.seq_len * blocks.model.config.hidden_size


def write_log(out: Path, rows: list[Row]) -> None:
    with log_path(out).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def block_settings(blocks: BlockModel, plan: Plan, config: QuantizeConfig) -> BlockSettings:
    model, scheme = blocks.model.config, plan.scheme
    heads, kv_heads = (
        model.num_attention_heads,
        getattr(model, "num_key_value_heads", None) or model.num_attention_heads,
    )
    return BlockSettings(
        config.method,
        scheme.bits,
        scheme.group_size,
        scheme.sym,
        scheme.dtype,
        config.damp_percent,
        share=heads // kv_heads,
        width=getattr(model, "head_dim", None) or model.hidden_size // heads,
    )


def block_line(block: Block, rows: list[Row], index: int, total: int, seconds: float, first: int) -> Row:
    """One line per block: mean error, plain rounding's, seconds since block `first` and to go."""
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in ("error", "rtn_error")}
    eta = seconds / (index + 1 - first) * (total - index - 1)
    return {"block": f"{index + 1}/{total}", **mean, "seconds": round(seconds, 1), "eta": round(eta, 1)}


def write_block(block: Block, result: QuantizedBlock, writer: CheckpointWriter, plan: Plan) -> None:
    """Packed linears and the block's other parameters, those that folding changed in their new form."""
    for name, weight in result.weights.items():
        for suffix, tensor in plan.format.save(weight, plan.scheme.dtype).items():
            writer.write(f"{block.name}.{name}.{suffix}", tensor)
    for path, parameter in block.module.named_parameters():
        name = f"{block.name}.{path}"
        if name in writer.specs:
            tensor = result.changed.get(path, parameter.detach())
            writer.write(name, cast_finite(name, tensor, writer.specs[name].dtype))


def write_rest(checkpoint: Checkpoint, writer: CheckpointWriter, plan: Plan) -> None:
    """Everything outside the blocks: embedding, final norm, head."""
    for name in writer.specs.keys() - writer.written:
        writer.write(name, cast_finite(name, checkpoint.tensor(name), writer.specs[name].dtype))


def summary(planned: Row, config: QuantizeConfig, rows: list[Row], out: Path, seconds: float) -> Row:
    """What the command prints: sizes, mean errors, how often damping had to grow, seconds."""
    means = {key: sum(row[key] for row in rows) / len(rows) for key in ("error", "rtn_error")}
    more_damping = sum(1 for row in rows if (row.get("damp_percent") or 0) > config.damp_percent)
    return {
        **planned,
        "out": str(out),
        "mean_error": means["error"],
        "mean_rtn_error": means["rtn_error"],
        "more_damping": more_damping,
        "scaled": sum(bool(row.get("scaled")) for row in rows),
        "seconds": round(seconds, 1),
    }
