"""How a checkpoint is timed, whatever engine runs it: in a process of its own, one JSON line per figure.

A figure that was written stays, also when the process dies at the next one. The lines are
    {"facts": {...}}                    once the model is loaded: keys of a row of `compress.evaluate.speed.measure`
    {"sample": {"ttft_s": 0.1, ...}}    a repeat
    {"facts": {"error": "..."}}         what could not be measured
Only `run_worker` touches files; the engines are in `runtimes/transformers_timed.py` and `runtimes/vllm_timed.py`.
"""

import ctypes
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]
Ids = list[int]
WARM_UP = 8  # tokens
PR_SET_PDEATHSIG = 1


class Engine(Protocol):
    """A loaded checkpoint."""

    def facts(self) -> Row:
        """What is known once it is loaded: engine, version, device, dtype, memory."""

    def generate(self, prompts: Sequence[Ids], new_tokens: int) -> None:
        """Read the prompts and make exactly `new_tokens` of each, greedily. May raise for want of memory."""

    def peak_bytes(self) -> int:
        """The most memory held so far."""

    def largest_batch(self, peaks: dict[int, int]) -> tuple[int, str]:
        """How many requests fit at a time, and how that is known; `peaks` has the peak bytes by size of batch."""

    def preemptions(self) -> int:
        """How often a request had to wait for room so far; 0 where the engine has no such thing."""


OpenEngine = Callable[[Row], Engine]


def random_prompts(count: int, length: int, vocabulary: int, seed: int) -> list[Ids]:
    """`count` prompts of `length` ids below `vocabulary`; the same for the same seed."""
    generator = random.Random(seed)
    return [generator.choices(range(vocabulary), k=length) for _ in range(count)]


def seconds(engine: Engine, prompts: Sequence[Ids], new_tokens: int) -> float:
    start = time.perf_counter()
    engine.generate(prompts, new_tokens)
    return time.perf_counter() - start


def measure(engine: Engine, request: Row) -> Iterator[Row]:
    """The lines of one process: facts, then one request at a time, then a batch, then the largest batch."""
    yield {"facts": engine.facts()}
    length, new, batch = request["prompt_tokens"], request["new_tokens"], request["batch"]

    def prompts(count: int, seed: int) -> list[Ids]:
        return random_prompts(count, length, request["vocabulary"], seed)

    for repeat in range(request["warm_up"]):
        engine.generate(prompts(1, -1 - repeat), min(WARM_UP, new))
    for repeat in range(request["repeats"]):
        sample = time_request(engine, prompts(1, repeat)[0], new)
        alone = {"throughput_tokens_per_s": new / sample["latency_s"]} if batch == 1 else {}
        yield {"sample": sample | alone}
    peaks = {1: engine.peak_bytes()}
    yield {"facts": {"peak_bytes": peaks[1]}}
    for repeat in range(request["repeats"] if batch > 1 else 0):
        taken = seconds(engine, prompts(batch, 1000 + repeat), new)
        yield {"sample": {"throughput_tokens_per_s": batch * new / taken}}
    peaks[batch] = engine.peak_bytes()
    yield {"facts": {"peak_bytes": peaks[batch]}}
    largest, how = engine.largest_batch(peaks)
    yield {"facts": {"largest_batch": largest, "largest_batch_how": how, "largest_batch_ran": False}}
    if request["confirm_batch"] and largest:
        yield {"facts": confirm(engine, prompts(largest, 2000), new) | {"peak_bytes": engine.peak_bytes()}}


def time_request(engine: Engine, prompt: Ids, new: int) -> Row:
    """One repeat: the first token alone, then the whole answer; what is beyond the first token is generation.

    A busy machine can take longer over the first token than over all: then generation has no figure in this repeat.
    """
    first, whole = seconds(engine, [prompt], 1), seconds(engine, [prompt], new)
    later = whole - first
    known = {"ttft_s": first, "latency_s": whole}
    return known | {"generate_s": later, "decode_tokens_per_s": (new - 1) / later} if later > 0 else known


def confirm(engine: Engine, prompts: Sequence[Ids], new: int) -> Row:
    """Run the largest batch: it ran when no request had to wait for room."""
    before = engine.preemptions()
    engine.generate(prompts, new)
    waited = engine.preemptions() - before
    note = f"a batch of {len(prompts)} preempted {waited} times" if waited else None
    return {"largest_batch_ran": not waited} | ({"note": note} if note else {})


def run_worker(open_engine: OpenEngine, files: Sequence[str]) -> None:
    """In the process of a checkpoint: read the request from the first file, append lines to the second."""
    end_with_parent()
    request = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    with Path(files[1]).open("a", encoding="utf-8") as lines:
        for line in measure(open_engine(request), request):
            lines.write(json.dumps(line) + "\n")
            lines.flush()


def end_with_parent() -> None:
    """On Linux, let this process be killed when its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def resident_peak(pid: int | str = "self") -> int:
    """The most bytes that a process has held in memory (VmHWM); 0 where Linux does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else 0
