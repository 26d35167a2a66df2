"""The ASGI app: the chat API for all clients, and the routes of the page.

POST /v1/chat/completions   OpenAI's chat API, text only            POST /api/document   a file as text
GET  /v1/models             the models                              POST /api/tokens     tokens of a conversation
GET  /health                200 while at least one engine is ready  POST /api/fit        a part of a long document
GET  /  /page.js /page.css  the page                                POST /api/schema     is a JSON schema accepted?
GET  /api/state             the models and their queues             POST /api/validate   an answer against a schema
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from compress.serve.chat_request import read_chat
from compress.serve.document_routes import document, fit, tokens
from compress.serve.errors import RefusedError
from compress.serve.page_files import FILES, page
from compress.serve.relay import Relay
from compress.serve.requests import read_json
from compress.serve.schema_routes import schema, validated
from compress.serve.security import Access, Guarded
from compress.serve.service import ServedModel, Service

POSTS = {"document": document, "tokens": tokens, "fit": fit, "schema": schema, "validate": validated}


def make_app(service: Service, access: Access) -> ASGIApp:
    """The ASGI app for these models. Their engines start with the app and end with it."""
    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
    ]
    if not service.api_only:
        routes += [Route(f"/api/{name}", endpoint, methods=["POST"]) for name, endpoint in POSTS.items()]
        routes += [Route("/api/state", state, methods=["GET"])]
        routes += [Route(path, page, methods=["GET"]) for path in FILES]
    handlers = {RefusedError: refused, ClientDisconnect: left, 404: no_route, 405: no_route}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)  # type: ignore[arg-type]
    app.state.service = service
    return Guarded(app, access)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Run the engines. At the end, close them, and the connections to them."""
    service: Service = app.state.service
    async with anyio.create_task_group() as tasks:
        for model in service.models.values():
            tasks.start_soon(watch, service, model)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                for model in service.models.values():
                    await close(model)
            tasks.cancel_scope.cancel()


async def watch(service: Service, model: ServedModel) -> None:
    """Run the engine of a model until it ends for good. When the last engine has ended, the service ends."""
    if model.engine is None:
        return
    await model.engine.run()
    if all(one.status == "ended" for one in service.models.values()):
        service.end()


async def close(model: ServedModel) -> None:
    if model.engine is not None:
        await model.engine.close()
    await model.upstream.close()


async def chat(request: Request) -> Relay:
    service: Service = request.app.state.service
    try:
        parsed = read_chat(await read_json(request))
    except ValueError as error:
        raise RefusedError(400, str(error)) from None
    model = service.model(parsed.model)
    return Relay(lambda: service.answer(parsed), model.cause)


async def models(request: Request) -> Response:
    rows = [
        {"id": one.name, "object": "model", "created": 0, "owned_by": "qcompress", "max_model_len": one.context}
        for one in request.app.state.service.models.values()
    ]
    return JSONResponse({"object": "list", "data": rows})


async def health(request: Request) -> Response:
    ready = any(one.status == "ready" for one in request.app.state.service.models.values())
    return JSONResponse({"ready": ready}, 200 if ready else 503)


async def state(request: Request) -> Response:
    service: Service = request.app.state.service
    rows = [model.state() for model in service.models.values()]
    return JSONResponse({"models": rows, "max_tokens": service.max_tokens})


async def refused(request: Request, error: RefusedError) -> Response:
    return Response(error.body, error.status, error.headers, "application/json")


async def left(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody reads it


async def no_route(request: Request, error: Exception) -> Response:
    missing = RefusedError(404, f"there is no {request.method} {request.url.path[:80]}")
    return await refused(request, missing)
