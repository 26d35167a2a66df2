"""The models of a running service, and the functions that its routes call."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio.to_thread
import httpx2

from calibration.errors import CalibrationError
from compress.serve.chat_request import ChatRequest
from compress.serve.errors import RefusedError
from compress.serve.gate import Gate
from compress.serve.messages import ChatMessage, plain
from compress.serve.tokens import MARGIN, TokenCounter
from compress.serve.upstream import Upstream

Row = dict[str, Any]
UPLOADS = 16  # at once; each holds at most security.UPLOAD_BYTES
CHILDREN, CHILDREN_QUEUE = 2, 32  # sandboxed processes at once, and requests that wait for one
COUNTS, COUNTS_QUEUE = 4, 256  # requests at once whose tokens are counted, and those that wait
TOKEN_LENGTH = 128  # characters per token, far more than ordinary text has


class Engine(Protocol):
    """A process that runs a model. `status` is starting, ready, restarting or ended; `cause` explains an end."""

    status: str
    cause: str

    async def run(self) -> None:
        """Start the process and watch it. Returns when it has ended for good."""

    async def close(self) -> None:
        """End the process and all its children."""


@dataclass
class ServedModel:
    """A model that clients can choose by its name. `context` is in tokens, or None if only the engine has this number.

    `runtime` is vllm, transformers or upstream. With upstream, `engine` is None.
    """

    name: str
    upstream: Upstream
    gate: Gate
    counter: TokenCounter
    runtime: str
    context: int | None = None
    engine: Engine | None = None
    counting: Gate = field(default_factory=lambda: Gate(COUNTS, COUNTS_QUEUE))

    @property
    def status(self) -> str:
        return self.engine.status if self.engine else "ready"

    def cause(self) -> str:
        """Why the engine ended, or an empty text."""
        return self.engine.cause if self.engine else ""

    def state(self) -> Row:
        """The figures and the status of this model that the page shows."""
        return {
            "name": self.name,
            "runtime": self.runtime,
            "context": self.context,
            "exact_tokens": self.counter.exact,
            "status": self.status,
            "cause": self.cause(),
            "running": self.gate.running,
            "waiting": self.gate.waiting,
        }

    def check_ready(self) -> None:
        """Raises RefusedError 503 unless the engine can answer."""
        if self.status == "ended":
            raise RefusedError(503, f"{self.name} has stopped: {self.cause()}", retry_after=60)
        if self.status != "ready":
            reason = f": {self.cause()}" if self.cause() else ""
            raise RefusedError(503, f"{self.name} is {self.status}{reason}; try again soon", retry_after=5)

    async def count(self, messages: list[ChatMessage]) -> int:
        """The number of tokens of a conversation. Raises RefusedError for text that the model cannot read."""
        return await self.measured(lambda: self.counter.messages(messages))

    async def measured(self, call: Any) -> Any:
        """The value of `call`, which counts tokens in a thread. Raises RefusedError 503 if too many requests wait."""
        async with self.counting.slot():
            return await in_thread(call)

    def check_length(self, messages: list[ChatMessage]) -> None:
        """Raises RefusedError 400, before any token is counted, if a conversation is far too long."""
        length = sum(len(one.content) + sum(len(file.text) for file in one.documents) for one in messages)
        if self.context is not None and length > TOKEN_LENGTH * self.context:
            message = f"the conversation has {length:,} characters, but the model takes {self.context:,} tokens"
            raise RefusedError(400, f"{message}; shorten it or its documents")


@dataclass
class Service:
    """All models, by name. `max_tokens` limits every answer; 0 means that the context is the only limit."""

    models: dict[str, ServedModel] = field(default_factory=dict)
    max_tokens: int = 0
    api_only: bool = False
    on_end: Callable[[], None] = lambda: None  # called when the last engine has ended for good
    ended: bool = False
    uploads: Gate = field(default_factory=lambda: Gate(UPLOADS, 0))
    children: Gate = field(default_factory=lambda: Gate(CHILDREN, CHILDREN_QUEUE))

    def end(self) -> None:
        """The last engine has ended for good."""
        self.ended = True
        self.on_end()

    def model(self, name: Any) -> ServedModel:
        """The model with this name. Raises RefusedError 404."""
        if not isinstance(name, str) or name not in self.models:
            raise RefusedError(404, f"no model is named {name!r:.80}; there are {', '.join(self.models)}")
        return self.models[name]

    @asynccontextmanager
    async def answer(self, request: ChatRequest) -> AsyncIterator[httpx2.Response]:
        """A context with the engine's answer. Waits for a slot, and keeps it to the last byte. Raises RefusedError."""
        model = self.model(request.model)
        model.check_ready()
        payload = await self.payload(model, request)
        async with model.gate.slot():
            model.check_ready()
            async with model.upstream.chat(payload) as response:
                yield response

    async def payload(self, model: ServedModel, request: ChatRequest) -> Row:
        """The request for the engine. Raises RefusedError 400 if the conversation does not fit.

        No part of the conversation is ever cut off.
        """
        payload = {"messages": plain(request.messages), **request.options}
        limit = self.max_tokens or None
        if model.context is not None and model.counter.exact:
            model.check_length(request.messages)
            tokens = await model.count(request.messages)
            if (room := model.context - tokens) < 1:
                raise RefusedError(400, too_long(tokens, model.context))
            limit = min(limit or room, max(1, room - MARGIN))
        asked = request.max_tokens or limit
        return payload if asked is None else payload | {"max_tokens": min(asked, limit or asked)}


def too_long(tokens: int, context: int) -> str:
    return f"the conversation has {tokens:,} tokens, but the model takes {context:,}; shorten it or its documents"


async def in_thread(call: Any) -> Any:
    """The value of `call`, run in a thread.

    Raises RefusedError 400 in place of a CalibrationError, which names a fault of the text.
    """
    try:
        return await anyio.to_thread.run_sync(call)
    except CalibrationError as error:
        raise RefusedError(400, str(error)) from None
