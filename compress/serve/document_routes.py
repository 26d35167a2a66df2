"""Routes for files: a file as text, the tokens of a conversation, and a part of a file that fits.

Nothing is stored. The text goes back to the page, which sends it again with each message of the conversation.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from compress.sandbox.run import SandboxError
from compress.serve.documents.content import MOST_CHARACTERS, DocumentError
from compress.serve.documents.parse import parse
from compress.serve.documents.parts import best_parts, first_part
from compress.serve.errors import RefusedError
from compress.serve.messages import label, read_messages
from compress.serve.requests import read_body, read_object
from compress.serve.service import Service, in_thread

UPLOAD_SECONDS = 120.0
QUESTION_LENGTH = 20_000  # characters


async def document(request: Request) -> Response:
    """The file in the body, as {"name", "kind", "text", "notes", "pages"}. ?name= is only a label."""
    service: Service = request.app.state.service
    async with service.uploads.slot():
        data = await read_body(request, "application/octet-stream", UPLOAD_SECONDS)
    async with service.children.slot():
        try:
            row = await in_thread(lambda: parse(data))
        except DocumentError as error:
            raise RefusedError(400, str(error)) from None
        except SandboxError as error:
            raise RefusedError(502, f"this machine cannot read files safely: {error}") from None
    return JSONResponse({"name": label(request.query_params.get("name", "")), **row})


async def tokens(request: Request) -> Response:
    """The number of tokens of a conversation, as {"tokens", "context", "exact"}. The body is {"model", "messages"}."""
    body = await read_object(request)
    model = request.app.state.service.model(body.get("model"))
    try:
        messages = read_messages(body.get("messages"))
    except ValueError as error:
        raise RefusedError(400, str(error)) from None
    count = await model.count(messages)
    return JSONResponse({"tokens": count, "context": model.context, "exact": model.counter.exact})


async def fit(request: Request) -> Response:
    """The first or the best parts of a text that fit in `room` tokens, as {"text", "tokens", "parts", "of"}."""
    body = await read_object(request)
    model = request.app.state.service.model(body.get("model"))
    text, room, how, question = fit_fields(body)
    count = model.counter.text
    if how == "first":
        fitted = await model.measured(lambda: first_part(text, room, count))
    else:
        fitted = await model.measured(lambda: best_parts(text, question, room, count))
    size = await model.measured(lambda: count(fitted.text))
    return JSONResponse({"text": fitted.text, "tokens": size, "parts": fitted.parts, "of": fitted.of})


def fit_fields(body: dict[str, Any]) -> tuple[str, int, str, str]:
    """The fields text, room, how and question of a request. Raises RefusedError 400 if a field has another type."""
    text, room, how, question = (body.get(name) for name in ("text", "room", "how", "question"))
    text, question = limited(text, "text", MOST_CHARACTERS), limited(question or "", "question", QUESTION_LENGTH)
    if isinstance(room, bool) or not isinstance(room, int) or room < 0 or how not in ("first", "best"):
        raise RefusedError(400, "room: must be a number of tokens; how: must be first or best")
    return text, room, how, question


def limited(value: Any, name: str, most: int) -> str:
    """The value of a field if it is a text of at most `most` characters. Raises RefusedError 400 otherwise."""
    if not isinstance(value, str) or len(value) > most:
        raise RefusedError(400, f"{name}: must be a text of at most {most:,} characters")
    return value
