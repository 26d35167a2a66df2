"""vLLM as a generator of token ids: one process per checkpoint, so that its memory returns, asked over a pipe.

python -m compress.serve.engine CHECKPOINT        reads {"prompts", "max_tokens"} lines, writes lists of ids
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from compress.serve.offline import ENVIRONMENT, VllmFailedError, cause, open_vllm

Ids = list[int]
LONGEST = 4096  # tokens of prompt and answer together


@contextmanager
def vllm_engine(path: Path) -> Iterator[Callable[[Sequence[Ids], int], list[Ids]]]:
    """Greedy continuations by vLLM in the checkpoint's dtype. Raises VllmFailedError, with the cause, when it ends."""
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "compress.serve.engine", str(path)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=ENVIRONMENT | os.environ
        ) as worker:
            try:
                yield lambda prompts, max_tokens: _ask(worker, log, prompts, max_tokens)
            finally:
                worker.terminate()


def _ask(worker: "subprocess.Popen[str]", log: IO[str], prompts: Sequence[Ids], max_tokens: int) -> list[Ids]:
    assert worker.stdin and worker.stdout  # both are pipes
    try:
        worker.stdin.write(json.dumps({"prompts": list(prompts), "max_tokens": max_tokens}) + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        code = worker.wait()
        log.seek(0)
        raise VllmFailedError(cause(log.read()) or f"exit code {code}")
    return list(json.loads(line))


def answer_lines(checkpoint: str, questions: IO[str], answers: IO[str]) -> None:
    """In the vLLM process: one line of ids for every line of prompts."""
    llm = open_vllm(checkpoint, dtype="auto", max_model_len=longest(Path(checkpoint)))
    for line in questions:
        answers.write(json.dumps(continue_prompts(llm, **json.loads(line))) + "\n")
        answers.flush()


def continue_prompts(llm: Any, prompts: list[Ids], max_tokens: int) -> list[Ids]:
    """What follows each prompt, without the token that ended it."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=max_tokens)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], greedy, use_tqdm=False)
    made = [output.outputs[0] for output in outputs]
    return [list(one.token_ids)[: -1 if one.finish_reason == "stop" else None] for one in made]


def longest(checkpoint: Path) -> int:
    """The most tokens that fit the model, at most `LONGEST`."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return min(LONGEST, config.get("max_position_embeddings") or LONGEST)


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints is no answer
    answer_lines(sys.argv[1], sys.stdin, channel)
