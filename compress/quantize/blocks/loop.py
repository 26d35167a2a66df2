"""The loop over the blocks: load a block, quantize it, write it, record it in the journal, and release its memory.

Between two blocks, each process keeps the activations of its windows in a file.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.checkpoint.finite import cast_finite
from compress.checkpoint.read import Checkpoint, read_header
from compress.checkpoint.write import CheckpointWriter
from compress.core.atomic import file_errors
from compress.core.config import QuantizeConfig
from compress.core.errors import QCompressError
from compress.model.blocks import Block, BlockModel
from compress.quantize.blocks.activations import Activations, ActivationStore
from compress.quantize.blocks.block import QuantizedBlock, Reference, quantize_block, round_block
from compress.quantize.blocks.lockstep import Schedule
from compress.quantize.blocks.memory_estimate import BATCH_TOKENS, paused_bytes
from compress.quantize.blocks.problem import BlockSettings
from compress.quantize.calibrate import block_matmul_dtype
from compress.quantize.journal import TRAINED, QuantizeJournal
from compress.quantize.layout.plan import LayoutPlan
from compress.quantize.log import log_path
from compress.quantize.processes import Processes

Row = dict[str, Any]
Report = Callable[[Row], None]


@dataclass(frozen=True)
class QuantizeJob:
    """A quantization of `checkpoint`, with its layout `plan`, its settings, and the journal of its finished blocks."""

    checkpoint: Checkpoint
    plan: LayoutPlan
    config: QuantizeConfig
    blocks: BlockModel
    journal: QuantizeJournal
    processes: Processes
    report: Report


@torch.no_grad()
def quantize_blocks(job: QuantizeJob, writer: CheckpointWriter, windows: Windows | None, schedule: Schedule) -> None:
    """Quantize and write every unfinished block. A block's inputs are the outputs of the quantized block before it.

    `schedule` is `lockstep` or `replay`. Without `windows`, weights are rounded to nearest.
    """
    settings, first, started = block_settings(job), len(job.journal.blocks), time.perf_counter()
    store = activation_store(job)
    if first:
        job.report({"resumed": f"{first} of {len(job.blocks)} blocks were done"})
        job.processes.first(partial(accept_blocks, job.journal, writer))
    inputs = first_inputs(job, windows.ids, store) if windows else None
    for index, block in job.blocks.in_order(first):
        outputs = store.block_inputs(index + 1, inputs.shapes) if inputs else None
        if inputs is None or outputs is None:
            result = round_block(block, settings)
        else:
            result = solve_block(job, block, index, (inputs, outputs), store, settings, schedule)
            outputs.sync()
        digests = job.processes.gather(outputs.digest()) if outputs else None
        job.processes.first(partial(save_block, job, block, result, writer, digests))
        inputs = outputs
        line = block_line(result.rows, index, len(job.blocks), time.perf_counter() - started, first)
        job.report(line)
        job.processes.first(partial(write_log, job.journal.out, [line, *result.rows]))
        del result  # frees the codes before the next block needs memory


def solve_block(
    job: QuantizeJob,
    block: Block,
    index: int,
    states: tuple[Activations, Activations],
    store: ActivationStore,
    settings: BlockSettings,
    schedule: Schedule,
) -> QuantizedBlock:
    """Quantize one block. `states` are its inputs and its outputs.

    With error correction, the second half of each holds the 16-bit model's states.
    """
    run, (inputs, outputs) = job.blocks.runner(block, index), states
    if not settings.error_correction:
        return quantize_block(block, run, inputs, settings, outputs, schedule, job.processes)
    (batches, reference_inputs), (batch_outputs, reference_outputs) = inputs.halves(), outputs.halves()
    reference = Reference(reference_inputs, reference_outputs, store.stage)
    return quantize_block(block, run, batches, settings, batch_outputs, schedule, job.processes, reference)


def activation_store(job: QuantizeJob) -> ActivationStore:
    """The store of this process's states: float32 on a CPU, the dtype of the blocks on a GPU."""
    states = work_bytes(job.blocks, job.plan, job.config) // job.processes.count
    keep = job.blocks.device.type == "cuda" and states < torch.cuda.mem_get_info(job.blocks.device)[0] // 2
    return ActivationStore(job.journal.folder, job.processes.rank, job.blocks.dtype, keep)


def first_inputs(job: QuantizeJob, ids: Tensor, store: ActivationStore) -> Activations:
    """This process's inputs of the first unfinished block: embedded windows, or the file of the interrupted run.

    With error correction, the file holds two halves: inputs in the quantized model, then those in the 16-bit model.
    """
    calibration = ids[: len(ids) - job.config.held_out]
    parts = job.processes.mine(calibration.split(max(1, BATCH_TOKENS // job.config.seq_len)))
    if not parts:
        raise QCompressError(
            f"{len(calibration)} windows are too few for {job.processes.count} processes; raise --samples"
        )
    parts *= 2 if job.config.error_correction else 1
    shapes = [(*part.shape, job.blocks.model.config.hidden_size) for part in parts]
    inputs = store.block_inputs(len(job.journal.blocks), shapes)
    with job.blocks.embedding_and_norm():
        if job.journal.blocks:
            job.blocks.prepare((*part.shape,) for part in (parts[0], parts[-1]))  # only the last part may be shorter
            inputs.check(job.journal.blocks[-1]["activations"][job.processes.rank])
        else:
            for i, part in enumerate(parts):
                inputs[i] = job.blocks.embed(part)
    return inputs


def work_bytes(blocks: BlockModel, plan: LayoutPlan, config: QuantizeConfig) -> int:
    """Disk space in bytes for a block's inputs and outputs.

    Error correction also stores the inputs and outputs in the 16-bit model, and the reference tensors of the stages.
    """
    tokens, width = config.samples * config.seq_len, blocks.model.config.hidden_size
    if config.method == "rtn":
        return 0
    ends = 2 * tokens * width * blocks.dtype.itemsize
    return 2 * ends + paused_bytes(blocks, plan, tokens) if config.error_correction else ends


def block_settings(job: QuantizeJob) -> BlockSettings:
    model = job.blocks.model.config
    heads = model.num_attention_heads
    kv_heads = getattr(model, "num_key_value_heads", None) or heads
    return BlockSettings(
        job.config.method,
        job.plan.scheme,
        job.config.damp_percent,
        job.config.error_correction,
        query_heads_per_kv_head=heads // kv_heads,
        head_dim=getattr(model, "head_dim", None) or model.hidden_size // heads,
        eight_bit=job.plan.eight_bit,
        matmul_dtype=block_matmul_dtype(job.config, job.blocks.device),
    )


def save_block(
    job: QuantizeJob, block: Block, result: QuantizedBlock, writer: CheckpointWriter, digests: list[str] | None
) -> None:
    """Write the block to disk, then record it in the journal."""
    write_block(block, result, writer, job.plan)
    writer.sync()
    job.journal.done(result.rows, digests, writer.digests(f"{block.name}."))


def accept_blocks(journal: QuantizeJournal, writer: CheckpointWriter) -> None:
    """Mark the finished blocks as written.

    Raises QCompressError if tensors on disk have changed since the interrupted run.
    Tensors that tuning has begun to overwrite are not compared; tuning writes all of them again.
    """
    tuned = read_header(journal.folder / TRAINED) if (journal.folder / TRAINED).is_file() else {}
    for block in journal.blocks:
        writer.accept(block["tensors"], unknown=tuned)


def write_block(block: Block, result: QuantizedBlock, writer: CheckpointWriter, plan: LayoutPlan) -> None:
    """Write the block's packed linears and other parameters. Folding has changed some of these parameters."""
    for name, weight in result.weights.items():
        for suffix, tensor in plan.format.save(weight, plan.scheme.dtype.torch).items():
            writer.write(f"{block.name}.{name}.{suffix}", tensor)
    for path, parameter in block.module.named_parameters():
        name = f"{block.name}.{path}"
        if name in writer.specs:
            tensor = result.changed.get(path, parameter.detach())
            writer.write(name, cast_finite(name, tensor, writer.specs[name].dtype.torch))


def block_line(rows: list[Row], index: int, total: int, seconds: float, first: int) -> Row:
    """The progress line of a block: mean errors, seconds since block `first` began, and estimated seconds left."""
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in ("error", "rtn_error")}
    eta = seconds / (index + 1 - first) * (total - index - 1)
    return {"block": f"{index + 1}/{total}", **mean, "seconds": round(seconds, 1), "eta": round(eta, 1)}


def write_log(out: Path, rows: list[Row]) -> None:
    with file_errors(log_path(out), "it continues from here"), log_path(out).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
