"""Run a service until it is interrupted, or until all its engines have ended for good."""

import asyncio
import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from compress.checkpoint.load import open_for_text
from compress.core.errors import QCompressError
from compress.core.interrupt import on_interrupt
from compress.core.report import Report, silent
from compress.serve.access import Access
from compress.serve.app import make_app
from compress.serve.engine.process import EngineProcess
from compress.serve.errors import RefusedError
from compress.serve.gate import Gate
from compress.serve.plan import PlannedEngine
from compress.serve.service import ServedModel, Service
from compress.serve.settings import KEY_VARIABLE, Address, Engines
from compress.serve.tokens import TokenCounter
from compress.serve.upstream import Upstream, list_models

UPSTREAM_SEQUENCES = 64  # requests at once; what a foreign server runs at once is not known
MOST_CONNECTIONS = 1000
CLOSE_SECONDS = 5
PORT_ERRORS = (errno.EADDRINUSE, errno.EACCES)


def serve_engines(
    planned: Sequence[PlannedEngine],
    address: Address,
    access: Access,
    engines: Engines,
    *,
    report: Report = silent,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Start the engines and answer requests. `started` is called when the port is open.

    Raises QCompressError if the port is not free, and when the last engine has ended for good.
    """
    with private_folder() as folder:
        models = [served(one, folder / f"{number}.sock", report) for number, one in enumerate(planned)]
        run(make_service(models, address, engines), address, access, started)
    causes = "; ".join(f"{model.name}: {model.cause()}" for model in models)
    raise QCompressError(f"all engines have ended: {causes}; their output is in {engines.log_folder}")


def serve_upstream(
    paths: Sequence[Path],
    address: Address,
    access: Access,
    engines: Engines,
    *,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests by another server. A checkpoint in `paths` is only read for its tokenizer."""
    if len(paths) > 1:
        raise QCompressError("--upstream: give at most one CKPT, whose tokenizer counts tokens")
    tokenizer = open_for_text(paths[0], readable=False).tokenizer if paths else None
    models = upstream_models(engines, TokenCounter(tokenizer))
    run(make_service(models, address, engines), address, access, started)


def upstream_models(engines: Engines, counter: TokenCounter) -> list[ServedModel]:
    """The models of the upstream. Raises QCompressError if it does not answer."""
    url, key = str(engines.upstream), os.environ.get(KEY_VARIABLE)
    try:
        rows = asyncio.run(list_models(url, key))
    except RefusedError as error:
        raise QCompressError(f"--upstream {url}: no models: {error.message}; start the server first") from None
    if not rows:
        raise QCompressError(f"--upstream {url}: the server has no models; load one there")
    queue = 4 * UPSTREAM_SEQUENCES if engines.queue is None else engines.queue
    models = []
    for row in rows:
        length = row.get("max_model_len")
        context = min(filter(None, (length, engines.context)), default=None)
        gate = Gate(UPSTREAM_SEQUENCES, queue)
        models.append(ServedModel(row["id"], Upstream(url, row["id"], key=key), gate, counter, "upstream", context))
    return models


def served(planned: PlannedEngine, path: Path, report: Report) -> ServedModel:
    """The model of a planned engine that listens on the socket `path`."""
    command = planned.command(path)
    upstream = Upstream("http://engine", planned.name, socket=str(path), key=command.key)
    engine = EngineProcess(planned.name, command, planned.log, upstream.healthy, report)
    gate = Gate(planned.sizes.sequences, planned.sizes.queue)
    counter = TokenCounter(planned.checkpoint.tokenizer)
    return ServedModel(planned.name, upstream, gate, counter, planned.runtime, planned.sizes.context, engine)


def make_service(models: Sequence[ServedModel], address: Address, engines: Engines) -> Service:
    return Service({model.name: model for model in models}, engines.max_tokens, address.api_only)


def run(service: Service, address: Address, access: Access, started: Callable[[], None]) -> None:
    """Answer requests until the process is interrupted or the service ends itself."""
    config: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False, "ws": "none"}
    config |= {"timeout_graceful_shutdown": CLOSE_SECONDS, "limit_concurrency": MOST_CONNECTIONS, "lifespan": "on"}
    server = uvicorn.Server(uvicorn.Config(make_app(service, access), **config))
    service.on_end = lambda: setattr(server, "should_exit", True)
    with open_port(address) as listener, on_interrupt(lambda: "the service has ended"):
        started()
        asyncio.run(server.serve([listener]))
        if not service.ended:
            raise KeyboardInterrupt  # the signal was ignored before this process started, as in a background shell


@contextmanager
def open_port(address: Address) -> Iterator[socket.socket]:
    """A listening socket. Raises QCompressError if the port is in use or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listener = socket.create_server((address.host, address.port), family=family, backlog=1024)
    except OSError as error:
        fault = f"--host {address.host} --port {address.port}: cannot be opened: {error.strerror}"
        cure = "use another --port" if error.errno in PORT_ERRORS else "correct --host"
        raise QCompressError(f"{fault}; {cure}") from None
    with listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it on its own sockets only
        yield listener


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for sockets that only this user can enter. It is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="qcompress-serve-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
