"""quantize_checkpoint(): a plain checkpoint in, a 4-bit one out, block by block.

One block's weights are in memory at a time; the result lies under a temporary name until the validator has passed it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.checkpoint.check import check_checkpoint
from compress.checkpoint.finite import cast_finite, check_finite
from compress.checkpoint.formats import packed_config
from compress.checkpoint.load import load_tokenizer, open_causal_lm
from compress.checkpoint.memory import check_memory
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import RECORD, digest, record_text
from compress.checkpoint.write import CheckpointWriter, both_spellings, check_room
from compress.config import QuantizeConfig
from compress.errors import GateFailure
from compress.model.blocks import Block, BlockModel, parameter_shapes
from compress.quantize.block import BlockSettings, QuantizedBlock, quantize_block, round_block
from compress.quantize.budget import plan_within
from compress.quantize.calibrate import calibration_windows
from compress.quantize.plan import Plan, Source, checkpoint_source, group_size_reason, plan_row, storage_dtype
from compress.quantize.tables import pack_table

Row = dict[str, Any]
Report = Callable[[Row], None]
BATCH_TOKENS = 2048  # per micro-batch: large enough for the matrix products, small enough for the cache


def plan_quantize(model: Path, config: QuantizeConfig, *, dtype: torch.dtype | None = None) -> tuple[Checkpoint, Plan]:
    """The source and exact plan of a job, no weight read. QCompressError for what cannot be quantized."""
    checkpoint = open_causal_lm(model)
    return checkpoint, plan_within(checkpoint_source(checkpoint, dtype), config)


def plan_without_weights(
    where: str, model: dict[str, Any], config: QuantizeConfig, *, dtype: torch.dtype | None = None
) -> Plan:
    """The same plan from a config.json alone; `where` names it in errors."""
    return plan_within(Source(where, parameter_shapes(model), model, dtype or storage_dtype(model)), config)


def quantize_checkpoint(
    model: Path,
    out: Path,
    config: QuantizeConfig,
    *,
    calibration: Sequence[str] = ("default",),
    dtype: torch.dtype | None = None,
    report: Report = lambda row: None,
) -> Row:
    """Quantize `model` into `out`; returns the summary row. Nothing is left at `out` when it fails.

    QCompressError for bad input, GateFailure when the validator refuses the result.
    """
    started = time.perf_counter()
    checkpoint, plan = plan_quantize(model, config, dtype=dtype)
    check_room(out, plan.bytes)
    tokenizer = load_tokenizer(model)
    blocks = BlockModel(checkpoint.config, lambda name: check_finite(name, checkpoint.tensor(name)))
    check_memory(model, estimate_memory(blocks, plan, config))
    report(plan_row(str(model), plan, config))
    if not config.group_size and (reason := group_size_reason(plan)):
        report({"group_size": reason})
    windows, start = None, None
    if config.method != "rtn":
        windows, start = calibration_windows(
            blocks, tokenizer, calibration, n_samples=config.n_samples, seq_len=config.seq_len, seed=config.seed
        )
        report({"calibration": ", ".join(calibration), "windows": len(windows.ids), "start_token": start.token})
    writer = CheckpointWriter(out, plan.specs)
    try:
        rows = quantize_blocks(blocks, writer, plan, config, windows, report)
        tables = write_rest(checkpoint, writer, plan, report)
        record = record_text(
            "quantize",
            asdict(config) | {"group_size": plan.scheme.group_size, "sym": plan.scheme.sym},
            source={"path": str(model), "digest": digest(model)},
            calibration=windows.manifest | {"start": asdict(start)} if windows and start else None,
            rows=rows,
            tables=tables,
        )
        writer.publish(
            both_spellings(packed_config(checkpoint.config, plan.format, plan.schemes, plan.unquantized)),
            source=checkpoint.path,
            extra={RECORD: record},
            inspect=lambda folder: refuse_wrong(folder, model),
        )
    except BaseException:
        writer.discard()
        raise
    return summary(plan_row(str(model), plan, config), config, rows, out, time.perf_counter() - started)


def refuse_wrong(folder: Path, source: Path) -> None:
    """GateFailure when the validator finds an error in what was written."""
    errors = [row for row in check_checkpoint(folder, source=source) if row["level"] == "error"]
    if errors:
        raise GateFailure(f"{folder}: {len(errors)} rules broken, nothing was kept; first: {errors[0]}")


@torch.no_grad()
def quantize_blocks(
    blocks: BlockModel,
    writer: CheckpointWriter,
    plan: Plan,
    config: QuantizeConfig,
    windows: Windows | None,
    report: Report,
) -> list[Row]:
    """Every block quantized and written; the rows of all linears. Blocks see inputs made by quantized predecessors."""
    settings = block_settings(blocks, plan, config)
    batches: list[Tensor] = []
    if windows is not None:
        with blocks.ends():
            batches = [blocks.embed(ids) for ids in windows.ids.split(max(1, BATCH_TOKENS // config.seq_len))]
    rows: list[Row] = []
    started = time.perf_counter()
    for index in range(len(blocks)):
        with blocks.block(index) as block:
            if windows is None:
                result = round_block(block, settings)
            else:
                result, batches = quantize_block(block, blocks.runner(block, index), batches, settings)
            write_block(block, result, writer, plan)
        rows += result.rows
        report(block_line(block, result.rows, index, len(blocks), time.perf_counter() - started))
    return rows


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
        eight_bit=plan.eight_bit,
    )


def block_line(block: Block, rows: list[Row], index: int, total: int, seconds: float) -> Row:
    """One line per block: mean error, plain rounding's, seconds so far and to go."""
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in ("error", "rtn_error")}
    eta = seconds / (index + 1) * (total - index - 1)
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


def write_rest(checkpoint: Checkpoint, writer: CheckpointWriter, plan: Plan, report: Report) -> list[Row]:
    """Everything outside the blocks: embedding, final norm, head. The rows of those that are packed."""
    rows = []
    for module, source in plan.tables.items():
        parts, row = pack_table(check_finite(source, checkpoint.tensor(source)), plan.format, plan.schemes[module])
        for suffix, tensor in parts.items():
            writer.write(f"{module}.{suffix}", tensor)
        rows.append({"linear": module, **row})
        report(rows[-1])
    for name in writer.specs.keys() - writer.written:
        writer.write(name, cast_finite(name, checkpoint.tensor(name), writer.specs[name].dtype))
    return rows


def estimate_memory(blocks: BlockModel, plan: Plan, config: QuantizeConfig) -> int:
    """Bytes at the peak: the embedding as stored, one block in float32 with its Hessians, all windows' activations."""
    model = blocks.model.config
    per_block = sum(out * inn for out, inn in plan.linears.values()) // len(blocks)
    widest = max(inn for _, inn in plan.linears.values())
    tokens = 0 if config.method == "rtn" else config.n_samples * config.seq_len
    table = 2 * model.vocab_size * model.hidden_size
    return table + 4 * (3 * per_block + 6 * widest**2 + tokens * (3 * model.hidden_size + widest))


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
