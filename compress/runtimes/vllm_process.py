"""vLLM as a generator of token ids: one process per checkpoint, so that its memory returns, asked over a pipe.

python -m compress.runtimes.vllm_process CHECKPOINT LENGTH
    reads {"prompts", "seeds", "sampling"}, writes [ids, ended]
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import IO, Any

from compress.checkpoint.read import Checkpoint
from compress.core.sampling import Answer, Ids, Sampler, Sampling
from compress.runtimes.vllm_offline import ENVIRONMENT, VllmFailedError, cause, open_vllm

LONGEST = 4096
PATIENCE = 20.0  # seconds
OURS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # not meant for vLLM


@contextmanager
def vllm_sampler(checkpoint: Checkpoint, length: int | None = None, gpu: int | None = None) -> Iterator[Sampler]:
    """Answers by vLLM in the checkpoint's dtype, on one GPU of several where `gpu` names it.

    `length` is the most tokens of prompt and answer together; None is the model's, at most LONGEST.

    Raises VllmFailedError, with the cause, when vLLM ends.
    """
    environment = ENVIRONMENT | {name: value for name, value in os.environ.items() if name not in OURS}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible_gpu(gpu)
    with tempfile.TemporaryFile("w+") as log:
        command = [
            sys.executable,
            "-m",
            "compress.runtimes.vllm_process",
            str(checkpoint),
            str(length or longest(checkpoint)),
        ]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
        worker = subprocess.Popen(command, **pipes, env=environment, start_new_session=True)
        try:
            yield lambda prompts, seeds, sampling: _ask(worker, log, prompts, seeds, sampling)
        finally:
            end(worker)


def end(worker: "subprocess.Popen[str]") -> None:
    """No more questions: the worker ends, and vLLM's own processes with it. They are killed when that takes long."""
    for pipe in (worker.stdin, worker.stdout):
        with suppress(BrokenPipeError):
            pipe.close()  # type: ignore[union-attr]
    with suppress(subprocess.TimeoutExpired):
        worker.wait(PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)  # its group: a killed worker alone leaves them, and the memory they hold
    worker.wait()


@contextmanager
def vllm_engine(checkpoint: Checkpoint) -> Iterator[Callable[[Sequence[Ids], int], list[Ids]]]:
    """Greedy continuations by vLLM. Raises VllmFailedError, with the cause, when it ends."""
    with vllm_sampler(checkpoint) as sampler:
        yield lambda prompts, max_tokens: [answer.ids for answer in sampler(prompts, (), Sampling(max_tokens))]


def visible_gpu(number: int) -> str:
    """GPU `number` of those that this process may see, by the name CUDA_VISIBLE_DEVICES gives it."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[number % len(names)] if names else str(number)


def _ask(
    worker: "subprocess.Popen[str]", log: IO[str], prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
) -> list[Answer]:
    assert worker.stdin and worker.stdout  # both are pipes
    question = {"prompts": list(prompts), "seeds": list(seeds), "sampling": asdict(sampling)}
    try:
        worker.stdin.write(json.dumps(question) + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        code = worker.wait()
        log.seek(0)
        raise VllmFailedError(cause(log.read()) or f"exit code {code}")
    return [Answer(*answer) for answer in json.loads(line)]


def answer_lines(checkpoint: str, length: int, questions: IO[str], answers: IO[str]) -> None:
    """In the vLLM process: one line of answers for every line of prompts."""
    llm = open_vllm(checkpoint, dtype="auto", max_model_len=length)
    for line in questions:
        answers.write(json.dumps(continue_prompts(llm, **json.loads(line))) + "\n")
        answers.flush()


def continue_prompts(llm: Any, prompts: list[Ids], seeds: list[int], sampling: dict[str, Any]) -> list[Answer]:
    """What follows each prompt, without the token that ended it."""
    from vllm import SamplingParams

    how = Sampling(**sampling)
    options: dict[str, Any] = {"temperature": how.temperature, "max_tokens": how.max_tokens}
    if how.temperature:
        params = [SamplingParams(**options, top_p=how.top_p, seed=seed) for seed in seeds]
    else:
        params = [SamplingParams(**options)] * len(prompts)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    made = [output.outputs[0] for output in outputs]
    ended = [one.finish_reason == "stop" for one in made]
    return [Answer(list(one.token_ids)[: -1 if end else None], end) for one, end in zip(made, ended, strict=True)]


def longest(checkpoint: Checkpoint) -> int:
    """The most tokens that fit the model, at most `LONGEST`."""
    return min(LONGEST, checkpoint.config.get("max_position_embeddings") or LONGEST)


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints is no answer
    answer_lines(sys.argv[1], int(sys.argv[2]), sys.stdin, channel)
