"""vLLM without a server, for the scripts that test and time it: one engine per process, so that its memory returns."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from vllm import LLM

Dtype = Literal["auto", "float16", "bfloat16", "float32"]

# An explicit size of the KV cache also spares vLLM its own guess, which fails where memory is short.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_INT4_W4A8": "0",  # on AMX the default rounds activations to 8 bits
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# No compilation and no prefix cache: every call does the same work. With `enable_weights_track` vLLM refuses a
# checkpoint that leaves one of its parameters unset.
USUAL: dict[str, Any] = {
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
    "model_loader_extra_config": {"enable_weights_track": True},
}
# At the start of a line, or right behind the prefix that vLLM's logger puts before every line.
EXCEPTION = re.compile(r"^(?:\(.*?\] )?((?:\w+\.)*\w*(?:Error|Exception)\b.*)$", re.MULTILINE)


class VllmFailedError(RuntimeError):
    """vLLM ended without an answer; the message is the first exception in its output, which is the cause."""


def open_vllm(checkpoint: str, *, dtype: Dtype, max_model_len: int, **options: Any) -> "LLM":
    """An engine with the settings of USUAL; `options` are vLLM's own and win."""
    from vllm import LLM

    return LLM(checkpoint, dtype=dtype, max_model_len=max_model_len, **(USUAL | options))


def run_in_new_process(script: str, request: dict[str, Any]) -> Any:
    """What `python script --worker REQUEST ANSWER` writes to the file ANSWER, having read the file REQUEST; both JSON.

    Variables that are set already win over ENVIRONMENT. Raises VllmFailedError when the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("request.json", "answer.json")]
        Path(files[0]).write_text(json.dumps(request))
        command = [sys.executable, script, "--worker", *files]
        done = subprocess.run(
            command, env=ENVIRONMENT | os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise VllmFailedError(cause(done.stdout) or f"exit code {done.returncode}")
        return json.loads(Path(files[1]).read_text())


def cause(output: str) -> str:
    """The first exception in the output: later ones only say that a process is gone. Without one, the last line."""
    found = EXCEPTION.search(output)
    return found.group(1) if found else "".join(output.strip().splitlines()[-1:])
