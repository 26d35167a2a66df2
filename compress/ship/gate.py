"""The gate of `ship`: a checkpoint that does not run on a board is refused, with bytes and with what would fit."""

from dataclasses import replace

from compress.checkpoint.formats import format_of
from compress.checkpoint.read import Checkpoint
from compress.core.errors import GateFailure, QCompressError
from compress.core.units import format_bytes
from compress.evaluate.speed.capacity import ModelFootprint, checkpoint_footprint, split_reason, unfit_reason
from compress.evaluate.speed.hardware import Hardware
from compress.evaluate.speed.kv_cache import kv_blocks_of, unsupported_dtype
from compress.ship.boards import Board
from compress.ship.cures import plan_command, smaller_request, split_cure
from compress.ship.features import missing_feature
from compress.ship.fit import SYSTEM, Fit, Request, Subject, measure_fit
from compress.ship.smaller import smallest_layout, source_of

__all__ = ["Fit", "Request", "check_fit"]


def check_fit(checkpoint: Checkpoint, board: Board, request: Request) -> Fit:
    """The sizes and flags of a checkpoint on a board.

    Raises GateFailure if it does not run there: its layout, dtype or GPUs do not match, or memory or disk is short. The
    error has the bytes and what would fit. Raises QCompressError if the model's context is shorter than the request's.
    """
    footprint = checkpoint_footprint(checkpoint)
    check_context(checkpoint, footprint, request)
    hardware = used_hardware(checkpoint, board, request)
    footprint = replace(footprint, blocks=kv_blocks_of(footprint.config, request.kv_dtype, hardware.gpus))
    check_kernels(checkpoint, board, footprint, hardware, request)
    fit = measure_fit(checkpoint, footprint, hardware, request)
    subject = Subject(checkpoint, board, footprint, hardware, request, fit)
    check_memory(subject)
    check_load(subject)
    if request.disk is not None and fit.disk > request.disk:
        raise GateFailure(
            f"{checkpoint}: {format_bytes(fit.disk)} of files do not fit on the board's disk, "
            f"{format_bytes(fit.disk - request.disk)} too much of {format_bytes(request.disk)}; free space there"
        )
    return fit


def check_context(checkpoint: Checkpoint, footprint: ModelFootprint, request: Request) -> None:
    limit = footprint.context_limit
    if limit and request.context > limit:
        raise QCompressError(f"--context {request.context:,}: {checkpoint} has a context of {limit:,} tokens; lower it")


def used_hardware(checkpoint: Checkpoint, board: Board, request: Request) -> Hardware:
    """The board's hardware with the GPUs that the request uses. Raises GateFailure if the board has fewer."""
    gpus = request.tensor_parallel_size or board.gpus
    if gpus > board.gpus:
        count = "1 GPU" if board.gpus == 1 else f"{board.gpus} GPUs"
        raise GateFailure(f"{checkpoint}: --tensor-parallel-size {gpus}: {board.title} has {count}; lower it")
    return replace(board.hardware, gpus=gpus)


def check_kernels(
    checkpoint: Checkpoint, board: Board, footprint: ModelFootprint, hardware: Hardware, request: Request
) -> None:
    """Raises GateFailure if no size could cure the fault: the layout, the dtypes, or the number of GPUs."""
    if split := split_reason(footprint, hardware.gpus):
        raise GateFailure(f"{checkpoint}: does not run on {board.title}: {split}; {split_cure(footprint, hardware)}")
    if fault := unsupported_dtype(request.kv_dtype, footprint.config, hardware.capability):
        raise GateFailure(f"{checkpoint}: does not run on {board.title}: {fault}; use another --kv-cache-dtype")
    if fault := layout_fault(checkpoint, board, request) or unfit_reason(footprint, hardware, request.kv_dtype):
        plan = f"qcompress plan {source_of(checkpoint)} --hardware {board.name}"
        raise GateFailure(f"{checkpoint}: does not run on {board.title}: {fault}; `{plan}` lists layouts that do")


def layout_fault(checkpoint: Checkpoint, board: Board, request: Request) -> str | None:
    """The reason why the vLLM of the board's image cannot read the checkpoint or its KV cache, or None."""
    layout = format_of(checkpoint)
    if layout is not None and layout.name not in board.formats:
        return f"its runtimes read {', '.join(board.formats)}, not {layout.name}"
    return missing_feature(checkpoint, request.kv_dtype, board.vllm)


def check_memory(subject: Subject) -> None:
    """Raises GateFailure if weights, KV cache and allowance are too large. The error has what would fit."""
    fit, request = subject.fit, subject.request
    if fit.needed <= fit.usable:
        return
    requests = "1 request" if request.requests == 1 else f"{request.requests:,} requests"
    raise GateFailure(
        f"{subject.checkpoint}: does not fit on {subject.hardware.title}: weights {format_bytes(fit.weights)} + KV "
        f"cache {format_bytes(fit.kv_cache)} ({requests} of {request.context:,} tokens, {request.kv_dtype}) + "
        f"allowance {format_bytes(fit.allowance)} = {format_bytes(fit.needed)}, and vLLM may use "
        f"{format_bytes(fit.usable)}: {format_bytes(fit.needed - fit.usable)} too much; {smaller_request(subject)}"
    )


def check_load(subject: Subject) -> None:
    """Raises GateFailure if unified memory cannot hold the weights and the pages of a weight file at the same time."""
    fit, hardware, request = subject.fit, subject.hardware, subject.request
    room = hardware.memory - SYSTEM
    if fit.load_peak <= room:
        return
    smaller = smallest_layout(subject.checkpoint, subject.board.vllm) <= subject.room(1, request.kv_dtype)
    plan = f"a smaller layout fits: `{plan_command(subject, 1, request.kv_dtype)}`"
    raise GateFailure(
        f"{subject.checkpoint}: loading it on {hardware.title} needs {format_bytes(fit.load_peak)}, for the weights "
        f"and the pages of the largest weight file, and {format_bytes(room)} are free: "
        f"{format_bytes(fit.load_peak - room)} too much; {plan if smaller else 'use a larger board'}"
    )
