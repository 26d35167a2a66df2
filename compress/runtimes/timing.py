"""Time a checkpoint in any runtime. A separate process writes one JSON line per measurement.

If the process dies, the lines of earlier measurements remain. The lines are
    {"facts": {...}}                    written after loading: values under the keys of a `SpeedRow`
    {"sample": {"ttft_s": 0.1, ...}}    the figures of one repeat
    {"facts": {"error": "..."}}         the reason why a measurement is missing
Only `run_worker` reads and writes files.
"""

import json
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from compress.core.sampling import Ids
from compress.runtimes.protocol import Row, TimedRuntime
from compress.sandbox.kernel import PR_SET_PDEATHSIG, prctl

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
        sample = time_request(runtime, prompts(1, repeat)[0], new_tokens)
        throughput = {"throughput_tokens_per_s": new_tokens / sample["latency_s"]} if batch_size == 1 else {}
        yield {"sample": sample | throughput}
    peaks = {1: runtime.peak_bytes()}
    yield {"facts": {"peak_bytes": peaks[1]}}
    for repeat in range(request["repeats"] if batch_size > 1 else 0):
        duration = seconds(runtime, prompts(batch_size, 1000 + repeat), new_tokens)
        yield {"sample": {"throughput_tokens_per_s": batch_size * new_tokens / duration}}
    peaks[batch_size] = runtime.peak_bytes()
    yield {"facts": {"peak_bytes": peaks[batch_size]}}
    largest, source = runtime.largest_batch(peaks)
    yield {"facts": {"largest_batch": largest, "largest_batch_how": source, "largest_batch_ran": False}}
    if request["confirm_batch"] and largest:
        yield {"facts": confirm(runtime, prompts(largest, 2000), new_tokens) | {"peak_bytes": runtime.peak_bytes()}}


def time_request(runtime: TimedRuntime, prompt: Ids, new_tokens: int) -> Row:
    """The figures of one repeat: the time to the first token, then the time of the whole answer.

    The generation time is the difference of the two. On a busy machine the time to the first token can exceed the time
    of the whole answer; such a repeat has no generation time.
    """
    first, total = seconds(runtime, [prompt], 1), seconds(runtime, [prompt], new_tokens)
    rest = total - first
    sample = {"ttft_s": first, "latency_s": total}
    return sample | {"generate_s": rest, "decode_tokens_per_s": (new_tokens - 1) / rest} if rest > 0 else sample


def confirm(runtime: TimedRuntime, prompts: Sequence[Ids], new_tokens: int) -> Row:
    """Run the largest batch. The run counts only if no request had to wait for memory."""
    before = runtime.preemptions()
    runtime.generate_exactly(prompts, new_tokens)
    preempted = runtime.preemptions() - before
    note = f"a batch of {len(prompts)} was preempted {preempted} times" if preempted else None
    return {"largest_batch_ran": not preempted} | ({"note": note} if note else {})


def run_worker(open_timed: OpenTimed, files: Sequence[str]) -> None:
    """Main function of a measuring process: read the request from the first file, append lines to the second."""
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed bench leaves no process
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
