"""vLLM as a runtime in a separate process. Requests go over a pipe; the end of the process frees all memory.

python -m compress.runtimes.vllm_process CHECKPOINT LENGTH DTYPE
    reads a line {"prompts", "seeds", "sampling"} per request, and writes a line of [ids, ended] pairs as the answer
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any

from compress.checkpoint.read import Checkpoint
from compress.core.guard import worker_command
from compress.core.sampling import Answer, Ids, Sampling
from compress.runtimes.vllm_offline import ENVIRONMENT, VllmFailedError, cause
from compress.runtimes.vllm_runtime import VllmRuntime

MAX_LENGTH = 4096  # tokens of a prompt with its answer
PATIENCE = 20.0  # seconds until a process that does not end is killed
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class VllmProcess:
    """A checkpoint in a vLLM process.

    `length` is the maximum number of tokens of a prompt with its answer; None means the model's limit, at most
    MAX_LENGTH. `gpu` is the number of the GPU to use. `generate` raises VllmFailedError, with the cause, if vLLM ends.
    """

    def __init__(
        self, checkpoint: Checkpoint, length: int | None = None, *, dtype: str = "auto", gpu: int | None = None
    ) -> None:
        # vLLM would read torchrun's variables and wait for its ranks
        environment = ENVIRONMENT | {name: value for name, value in os.environ.items() if name not in TORCHRUN}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = visible_gpu(gpu)
        arguments = [str(checkpoint.path), str(length or longest_request(checkpoint)), dtype]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by close()
        self.worker = subprocess.Popen(
            worker_command("compress.runtimes.vllm_process", *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def generate(self, prompts: Sequence[Ids], sampling: Sampling, seeds: Sequence[int] = ()) -> list[Answer]:
        assert self.worker.stdin and self.worker.stdout  # both are pipes
        request = {"prompts": list(prompts), "seeds": list(seeds), "sampling": asdict(sampling)}
        try:
            self.worker.stdin.write(json.dumps(request) + "\n")
            self.worker.stdin.flush()
            line = self.worker.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.worker.wait()
            self.log.seek(0)
            raise VllmFailedError(cause(self.log.read()) or f"exit code {code}")
        return [Answer(*answer) for answer in json.loads(line)]

    def close(self) -> None:
        """Close the pipes and wait until the process ends. Then kill all remaining processes of its group."""
        for pipe in (self.worker.stdin, self.worker.stdout):
            with suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        with suppress(subprocess.TimeoutExpired):
            self.worker.wait(PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(self.worker.pid, signal.SIGKILL)  # the whole group, as vLLM's processes outlive their parent
        self.worker.wait()
        self.log.close()


def visible_gpu(number: int) -> str:
    """The name of GPU `number` in CUDA_VISIBLE_DEVICES. Counting starts again after the last visible GPU."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[number % len(names)] if names else str(number)


def longest_request(checkpoint: Checkpoint) -> int:
    """The model's context in tokens, at most MAX_LENGTH."""
    return min(MAX_LENGTH, checkpoint.config.get("max_position_embeddings") or MAX_LENGTH)


def serve(runtime: Any, requests: IO[str], answers: IO[str]) -> None:
    """The main loop of the vLLM process. It answers each line of prompts by one line."""
    for line in requests:
        request = json.loads(line)
        sampling = Sampling(**request["sampling"])
        answers.write(json.dumps(runtime.generate(request["prompts"], sampling, request["seeds"])) + "\n")
        answers.flush()


def main(checkpoint: str, length: str, dtype: Any) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints on stdout must not mix with the answers
    serve(VllmRuntime(checkpoint, int(length), dtype=dtype), sys.stdin, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
