"""Time a checkpoint in any runtime. A separate process writes one JSON line per measurement.

If the process dies, the lines of earlier measurements remain. The lines are
    {"facts": {...}}                    written after loading: values under the keys of a `SpeedRow`
    {"sample": {"ttft_ms": 98.0, ...}}  the figures of one repeat
    {"facts": {"error": "..."}}         the reason why a measurement is missing
Only `run_worker` reads and writes files.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from compress.core.sampling import Ids
from compress.runtimes.protocol import Row, TimedRuntime

WARM_UP = 8  # tokens generated before the first measurement

OpenTimed = Callable[[Row], TimedRuntime]


def random_prompts(count: int, length: int, vocab_size: int, seed: int) -> list[Ids]:
    """`count` prompts of `length` random token ids below `vocab_size`. Equal seeds give equal prompts."""
    generator = random.Random(seed)
    return [generator.choices(range(vocab_size), k=length) for _ in range(count)]


def seconds(runtime: TimedRuntime, prompts: Sequence[Ids], new_tokens: int) -> float:
    """The seconds that it takes to generate exactly `new_tokens` tokens per prompt."""
    start = time.perf_counter()
    runtime.generate_exactly(prompts, new_tokens)
    return time.perf_counter() - start


def measure(runtime: TimedRuntime, request: Row) -> Iterator[Row]:
    """Yields the lines of one process: facts, single requests, batches, and the largest batch."""
    yield {"facts": runtime.facts()}
    length, new_tokens, batch_size = request["prompt_tokens"], request["new_tokens"], request["batch_size"]

    def prompts(count: int, seed: int) -> list[Ids]:
        return random_prompts(count, length, request["vocab_size"], seed)

    for repeat in range(request["warm_up"]):
        runtime.generate_exactly(prompts(1, -1 - repeat), min(WARM_UP, new_tokens))
    for repeat in range(request["repeats"]):
        times = time_prompts(runtime, prompts(1, repeat), new_tokens)
        throughput = throughput_sample(times, 1, length, new_tokens) if batch_size == 1 else {}
        yield {"sample": latency_sample(times, new_tokens) | throughput}
    yield {"facts": {"peak_bytes": runtime.peak_bytes()}}
    for repeat in range(request["repeats"] if batch_size > 1 else 0):
        times = time_prompts(runtime, prompts(batch_size, 1000 + repeat), new_tokens)
        yield {"sample": throughput_sample(times, batch_size, length, new_tokens)}
    yield {"facts": {"peak_bytes": runtime.peak_bytes()}}
    limit = runtime.largest_batch()
    if limit is not None:
        yield {"facts": {"largest_batch": limit[0], "largest_batch_how": limit[1], "largest_batch_ran": False}}
    if limit is not None and limit[0] and request["confirm_batch"]:
        yield {"facts": confirm(runtime, prompts(limit[0], 2000), new_tokens) | {"peak_bytes": runtime.peak_bytes()}}


def time_prompts(runtime: TimedRuntime, prompts: Sequence[Ids], new_tokens: int) -> tuple[float, float]:
    """The seconds in which only the first token of each prompt is generated, and those for the whole answers."""
    return seconds(runtime, prompts, 1), seconds(runtime, prompts, new_tokens)


def latency_sample(times: tuple[float, float], new_tokens: int) -> Row:
    """The figures of one request: TTFT, TPOT and E2EL in milliseconds.

    `times` are the seconds to the first token and for the whole answer; TPOT comes from their difference. On a busy
    machine the first token can take longer than the answer; such a repeat has no TPOT.
    """
    first, total = times
    sample = {"ttft_ms": 1e3 * first, "e2el_ms": 1e3 * total}
    return sample | {"tpot_ms": 1e3 * (total - first) / (new_tokens - 1)} if total > first else sample


def throughput_sample(times: tuple[float, float], batch: int, prompt_tokens: int, new_tokens: int) -> Row:
    """The throughputs of a batch in tokens per second: new tokens end to end, all tokens, and decoding alone."""
    first, total = times
    output = {"output_throughput": batch * new_tokens / total}
    output["total_token_throughput"] = batch * (prompt_tokens + new_tokens) / total
    return output | {"decode_throughput": batch * (new_tokens - 1) / (total - first)} if total > first else output


def confirm(runtime: TimedRuntime, prompts: Sequence[Ids], new_tokens: int) -> Row:
    """Run the largest batch. The run counts only if no request had to wait for memory."""
    before = runtime.preemptions()
    runtime.generate_exactly(prompts, new_tokens)
    preempted = runtime.preemptions() - before
    note = f"a batch of {len(prompts)} was preempted {preempted} times" if preempted else None
    return {"largest_batch_ran": not preempted} | ({"note": note} if note else {})


def run_worker(open_timed: OpenTimed, files: Sequence[str]) -> None:
    """Main function of a measuring process: read the request from the first file, append lines to the second."""
    request = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    with Path(files[1]).open("a", encoding="utf-8") as lines:
        for line in measure(open_timed(request), request):
            lines.write(json.dumps(line) + "\n")
            lines.flush()


def resident_peak(pid: int | str = "self") -> int:
    """The peak resident bytes of a process (VmHWM), or 0 if the kernel does not report it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    values = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(values[0]) if values else 0
