"""An OpenAI-compatible server on transformers: python -m compress.serve.fallback.server CHECKPOINT NAME SOCKET CONTEXT

It answers one request at a time. `qcompress serve` starts it if vLLM is not installed.
"""

import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from calibration.errors import CalibrationError
from compress.checkpoint.load import open_for_text
from compress.core.sampling import Ids
from compress.serve.connected import while_connected
from compress.serve.fallback.answer import Answered, FallbackModel

Row = dict[str, Any]


class FallbackServer:
    """The ASGI app of one model."""

    def __init__(self, model: FallbackModel, name: str) -> None:
        self.model, self.name = model, name
        self.turn = asyncio.Lock()
        chat = Route("/v1/chat/completions", self.chat, methods=["POST"])
        self.app = Starlette(routes=[chat, Route("/health", self.health)])

    async def health(self, request: Request) -> Response:
        return Response()

    async def chat(self, request: Request) -> Response:
        payload = await request.json()
        try:
            prompt = self.model.prompt(payload)
        except (ValueError, CalibrationError) as error:
            return JSONResponse({"error": {"message": str(error)}}, 400)
        if payload.get("stream"):
            return StreamingResponse(self.events(prompt, payload), media_type="text/event-stream")
        async with while_connected(request.receive):
            return await self.whole(prompt, payload)
        return Response(status_code=400)  # the client has left, so nobody reads it

    async def whole(self, prompt: Ids, payload: Row) -> Response:
        """The whole answer, in the form of OpenAI's API."""
        answered = Answered()
        text = "".join([piece async for piece in self.pieces(prompt, payload, answered)])
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": answered.finish_reason}
        return JSONResponse(self.row("chat.completion", choices=[choice], usage=usage(answered)))

    async def pieces(self, prompt: Ids, payload: Row, answered: Answered) -> AsyncIterator[str]:
        """The text of an answer. It begins when all earlier requests are answered."""
        async with self.turn:
            async for piece in iterate_in_threadpool(self.model.pieces(prompt, payload, answered)):
                yield piece

    async def events(self, prompt: Ids, payload: Row) -> AsyncIterator[str]:
        """The answer as server-sent events, in the form of OpenAI's API."""
        answered = Answered()
        about = self.row("chat.completion.chunk")
        async for piece in self.pieces(prompt, payload, answered):
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
            yield event(about | {"choices": [choice]})
        yield event(about | {"choices": [{"index": 0, "delta": {}, "finish_reason": answered.finish_reason}]})
        if (payload.get("stream_options") or {}).get("include_usage"):
            yield event(about | {"choices": [], "usage": usage(answered)})
        yield "data: [DONE]\n\n"

    def row(self, kind: str, **values: Any) -> Row:
        identifier = f"chatcmpl-{uuid.uuid4().hex}"
        return {"id": identifier, "object": kind, "created": int(time.time()), "model": self.name, **values}


def usage(answered: Answered) -> dict[str, int]:
    prompt, completion = answered.prompt_tokens, answered.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def event(row: Row) -> str:
    return f"data: {json.dumps(row)}\n\n"


def main(checkpoint: str, name: str, socket: str, context: str) -> None:
    model = FallbackModel(open_for_text(checkpoint), int(context))
    uvicorn.run(FallbackServer(model, name).app, uds=socket, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
