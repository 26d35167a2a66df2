"""What fits instead of a checkpoint that the gate of `ship` refuses. Every number is computed, not guessed."""

from compress.core.config import GROUP_SIZES
from compress.evaluate.speed.capacity import ModelFootprint, split_reason
from compress.evaluate.speed.hardware import Hardware
from compress.evaluate.speed.kv_cache import AUTO, INT8, kv_bytes, longest_within
from compress.ship.features import missing_feature
from compress.ship.fit import Subject
from compress.ship.smaller import smallest_layout, source_of


def split_cure(footprint: ModelFootprint, hardware: Hardware) -> str:
    """Numbers of GPUs and group sizes that divide the model."""
    fewer = [gpus for gpus in range(1, hardware.gpus) if split_reason(footprint, gpus) is None]
    cures = [f"use --tensor-parallel-size {max(fewer)}"] if fewer else []
    smaller = [size for size in GROUP_SIZES if split_reason(footprint, hardware.gpus, size) is None]
    if footprint.schemes and smaller:
        cures.append(f"quantize with --group-size {max(smaller)}")
    return ", or ".join(cures)


def smaller_request(subject: Subject) -> str:
    """What fits instead: fewer requests or a shorter context, and a smaller layout for the whole request.

    If these weights fit with no request, the layout may be for one request, or for a KV cache in INT8.
    """
    request = subject.request
    smaller = fewer_tokens(subject)
    cures = [smaller] if smaller else []
    tries = [(request.requests, request.kv_dtype)]
    if not smaller:
        tries += [(1, request.kv_dtype)]
        tries += [(1, INT8)] if missing_feature(subject.checkpoint, INT8, subject.board.vllm) is None else []
    smallest = smallest_layout(subject.checkpoint, subject.board.vllm)
    for requests, kv_dtype in tries:
        if smallest <= subject.room(requests, kv_dtype):
            cures.append(f"a smaller layout fits: `{plan_command(subject, requests, kv_dtype)}`")
            break
    return "; ".join(cures) if cures else "no 4-bit layout fits; use a larger board or a smaller model"


def fewer_tokens(subject: Subject) -> str | None:
    """The most requests of the same context that fit beside these weights, or else the longest context of one."""
    request, footprint = subject.request, subject.footprint
    rooms = (subject.usable_after_weights(count) for count in range(1, request.requests))
    cache = kv_bytes(footprint.blocks, request.context)
    counts = [count for count, room in enumerate(rooms, 1) if count * cache <= room]
    if counts:
        return f"--requests {max(counts)} fits"
    longest = longest_within(footprint.blocks, max(subject.usable_after_weights(1), 0), request.context)
    return f"--requests 1 --context {longest} fits" if longest else None


def plan_command(subject: Subject, requests: int, kv_dtype: str) -> str:
    """The command that lists layouts for the board and the request."""
    command = f"qcompress plan {source_of(subject.checkpoint)} --hardware {subject.board.name}"
    command += f" --context {subject.request.context} --requests {requests}"
    return command if kv_dtype == AUTO else f"{command} --kv-cache-dtype {kv_dtype}"
