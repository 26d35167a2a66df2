"""Settings, processes and errors of vLLM without a server.

Each vLLM runs in a separate process, because only the end of its process frees all memory.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.core.errors import QCompressError

if TYPE_CHECKING:
    from vllm import LLM

Dtype = Literal["auto", "float16", "bfloat16", "float32"]

# Without a size for the KV cache, vLLM guesses one, and fails if memory is short.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_INT4_W4A8": "0",  # on CPUs with AMX, the default rounds activations to 8 bits
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# Without compilation and prefix cache, every call does the same work. With `enable_weights_track`, vLLM rejects a
# checkpoint that lacks a parameter.
DEFAULTS: dict[str, Any] = {
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
    "model_loader_extra_config": {"enable_weights_track": True},
}
# An exception's name at the start of a line, or after the prefix of vLLM's logger.
EXCEPTION = re.compile(r"^(?:\(.*?\] )?((?:\w+\.)*\w*(?:Error|Exception)\b.*)$", re.MULTILINE)


class VllmFailedError(QCompressError):
    """Raised if vLLM ends without an answer. The message is the first exception in vLLM's output: the cause."""

    def format_message(self) -> str:
        return f"vLLM failed: {self.message}; use --runtime transformers"


def open_vllm(checkpoint: str, *, dtype: Dtype, max_model_len: int, **options: Any) -> "LLM":
    """Open vLLM's `LLM` with the arguments in DEFAULTS. `options` override them."""
    from vllm import LLM

    return LLM(checkpoint, dtype=dtype, max_model_len=max_model_len, **(DEFAULTS | options))


def run_in_new_process(script: str, request: dict[str, Any]) -> Any:
    """Run `python script --worker REQUEST ANSWER` and return its answer.

    The script reads JSON from the file REQUEST and writes JSON to the file ANSWER. Variables of the environment take
    precedence over ENVIRONMENT. Raises VllmFailedError if the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("request.json", "answer.json")]
        Path(files[0]).write_text(json.dumps(request))
        command = [sys.executable, script, "--worker", *files]
        result = subprocess.run(
            command, env=ENVIRONMENT | os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if result.returncode:
            raise VllmFailedError(cause(result.stdout) or f"exit code {result.returncode}")
        return json.loads(Path(files[1]).read_text())


def cause(output: str) -> str:
    """The first exception in the output, or else the last line.

    Later exceptions only report that a process has ended.
    """
    match = EXCEPTION.search(output)
    return match.group(1) if match else "".join(output.strip().splitlines()[-1:])
