#!/usr/bin/env python
"""An OpenAI-compatible server that answers at a known speed: python scripts/fake_engine.py --port 8001

The answer repeats the last message, word by word, after "echo:". A message can control it: `words=N` sets the number of
words, `wait=S` the seconds between two of them, `say=TEXT` the answer itself, `die` ends the process in mid-answer.
GET /fake has what the server saw: requests, those that run, those that were aborted, and the last payload.
"""

import asyncio
import contextlib
import json
import os
import re
from typing import Any

import click
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

WAIT = 0.01  # seconds between two words


class FakeEngine:
    """The state of the server, and its ASGI app."""

    def __init__(self, names: tuple[str, ...] = ("fake",), wait: float = WAIT) -> None:
        self.names, self.wait = names, wait
        self.seen: dict[str, Any] = {"requests": 0, "running": 0, "aborted": 0, "payload": None}
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/health", self.health),
            Route("/fake", self.facts),
        ]
        self.app = Starlette(routes=routes)

    async def health(self, request: Request) -> Response:
        return Response()

    async def facts(self, request: Request) -> Response:
        return JSONResponse(self.seen)

    async def models(self, request: Request) -> Response:
        rows = [{"id": name, "object": "model", "max_model_len": 4096} for name in self.names]
        return JSONResponse({"object": "list", "data": rows})

    async def chat(self, request: Request) -> Response:
        payload = await request.json()
        self.seen |= {"requests": self.seen["requests"] + 1, "payload": payload}
        text = payload["messages"][-1]["content"]
        if "refuse" in text:
            return JSONResponse({"error": {"message": "this engine refuses"}}, 400)
        if payload.get("stream"):
            return StreamingResponse(self.stream(payload, text), media_type="text/event-stream")
        pieces = []
        async with contextlib.aclosing(self.words(payload, text)) as words:
            async for piece in words:
                pieces.append(piece)
                if await request.is_disconnected():
                    return Response()
        message = {"role": "assistant", "content": "".join(pieces)}
        return JSONResponse({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage(text, pieces)})

    async def stream(self, payload: dict[str, Any], text: str) -> Any:
        pieces = []
        async for piece in self.words(payload, text):
            pieces.append(piece)
            yield event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield event({"choices": [], "usage": usage(text, pieces)})
        yield "data: [DONE]\n\n"

    async def words(self, payload: dict[str, Any], text: str) -> Any:
        """The pieces of the answer, at the speed that the message or the server sets."""
        self.seen["running"] += 1
        try:
            wait = float(setting(text, "wait", str(self.wait)))
            for number, piece in enumerate(pieces_of(text)[: payload.get("max_tokens")]):
                await asyncio.sleep(wait)
                if number == 3 and text.endswith("die"):
                    os.kill(os.getpid(), 9)
                yield piece
        except (asyncio.CancelledError, GeneratorExit):
            self.seen["aborted"] += 1
            raise
        finally:
            self.seen["running"] -= 1


def setting(text: str, name: str, default: str) -> str:
    match = re.search(rf"\b{name}=(\S+)", text)
    return match[1] if match else default


def pieces_of(text: str) -> list[str]:
    """The answer to a message, in words that keep their spaces."""
    if said := re.search(r"say=(.*)", text, re.DOTALL):
        return re.findall(r"\s*\S+\s*", said[1])
    words = ["echo:", *text.split()]
    count = int(setting(text, "words", str(len(words))))
    return [f"{words[number % len(words)]} " for number in range(count)]


def usage(text: str, pieces: list[str]) -> dict[str, int]:
    return {"prompt_tokens": len(text.split()), "completion_tokens": len(pieces)}


def event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


@click.command(help=__doc__)
@click.option("--port", default=8001, show_default=True, help="Port on 127.0.0.1.")
@click.option("--uds", help="Unix socket to listen on, instead of a port.")
@click.option("--name", "names", multiple=True, default=("fake",), help="Name of a model. Repeatable.")
@click.option("--wait", default=WAIT, show_default=True, help="Seconds between two words.")
def main(port: int, uds: str | None, names: tuple[str, ...], wait: float) -> None:
    app = FakeEngine(names, wait).app
    if uds:
        uvicorn.run(app, uds=uds, log_level="warning")
    else:
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
