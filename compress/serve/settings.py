"""The settings of `qcompress serve`."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from compress.core.errors import QCompressError
from compress.core.options import option
from compress.serve.access import Access, is_loopback

PACKAGES = {  # module: its package in the extra `serve`
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "httpx2": "httpx2",
    "pypdf": "pypdf",
    "docx": "python-docx",
    "python_calamine": "python-calamine",
    "bm25s": "bm25s",
}
NOT_UPSTREAM = ("runtime", "vllm_python", "tensor_parallel_size", "logs")  # settings of this command's own engines
SHORTEST_TOKEN = 12
TOKEN_VARIABLE, KEY_VARIABLE = "QCOMPRESS_SERVE_TOKEN", "QCOMPRESS_UPSTREAM_KEY"


@dataclass(frozen=True)
class Address:
    """The address and the port of the service, and the clients that may use it."""

    port: int = option(7860, "Port of the page and the API.", minimum=1, maximum=65535)
    host: str = option(
        "127.0.0.1", "Address to listen on. Every address except a loopback address needs --token.", metavar="ADDRESS"
    )
    allowed_host: tuple[str, ...] = option(
        (), "Host name by which clients reach the service, such as a name behind nginx. Repeatable.", metavar="NAME"
    )
    api_only: bool = option(False, "Serve only /v1 and /health: no page, no files.")

    def access(self, token: str | None) -> Access:
        """The rules for requests.

        Raises QCompressError if other machines can reach the host and there is no token, or if the token is too short.
        """
        if token is None and not is_loopback(self.host):
            raise QCompressError(
                f"--host {self.host}: other machines could use the service; set --token or {TOKEN_VARIABLE}"
            )
        if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
            raise QCompressError(f"--token: must have {SHORTEST_TOKEN} or more printable ASCII characters")
        return Access(self.host, token, self.allowed_host)


@dataclass(frozen=True)
class Engines:
    """How the models run: runtime, GPUs, limits and logs."""

    runtime: str = option(
        "auto",
        "Runtime that answers. auto: vLLM if it is installed, else transformers, which is slow.",
        group="Resources",
        choices=("auto", "vllm", "transformers"),
    )
    vllm_python: str | None = option(
        None, "Python program of the environment that has vLLM. [default: this one]", group="Resources"
    )
    upstream: str | None = option(
        None,
        "URL of a running OpenAI-compatible server. It runs the models in place of this command. "
        f"The environment variable {KEY_VARIABLE} holds its key.",
        group="Resources",
        metavar="URL",
    )
    tensor_parallel_size: int = option(1, "Number of GPUs that share each model.", group="Resources", minimum=1)
    context: int | None = option(
        None,
        "Largest number of tokens of a conversation, including its answer.",
        group="Limits",
        minimum=256,
        default_text="what fits in memory, at most the model's context",
    )
    queue: int | None = option(
        None,
        "Number of requests per model that may wait. Further requests are refused with status 503.",
        group="Limits",
        minimum=0,
        default_text="4 for each concurrent request",
    )
    max_tokens: int = option(
        0, "Largest number of tokens of an answer. 0: the context is the only limit.", group="Limits", minimum=0
    )
    logs: Path | None = option(
        None,
        "Folder for the logs of the servers that run the models.",
        default_text="~/.local/state/qcompress/serve",
        is_path=True,
    )

    @property
    def log_folder(self) -> Path:
        """The folder for logs: `logs`, or a folder of this user for the state of programs."""
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        return self.logs or state / "qcompress" / "serve"

    def __post_init__(self) -> None:
        if self.upstream is not None:
            check_url(self.upstream)
            self.check_unused(NOT_UPSTREAM, "--upstream")
        if self.runtime == "transformers":
            self.check_unused(("vllm_python",), "--runtime transformers")

    def check_unused(self, names: Sequence[str], cause: str) -> None:
        """Raises QCompressError if one of these settings is not its default. They have no effect with `cause`."""
        for name in names:
            if getattr(self, name) != getattr(Engines, name):
                raise QCompressError(f"--{name.replace('_', '-')}: has no effect with {cause}; leave it out")


def check_url(url: str) -> None:
    """Raises QCompressError unless this is an http or https URL without a user and a query."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise QCompressError(f"--upstream {url}: must be a URL such as http://127.0.0.1:8000")


def check_packages() -> None:
    """Raises QCompressError if a package of the extra `serve` is missing, or if the system is not Linux."""
    if missing := [package for module, package in PACKAGES.items() if find_spec(module) is None]:
        raise QCompressError(f"serve needs {', '.join(missing)}; install them with `pip install 'qcompress[serve]'`")
    if not sys.platform.startswith("linux"):
        raise QCompressError(f"serve needs Linux, not {sys.platform}: only there files can be read safely")
