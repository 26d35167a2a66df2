"""Routes for JSON answers: is a schema accepted, and is an answer valid?"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from compress.sandbox.run import SandboxError
from compress.serve.errors import RefusedError
from compress.serve.requests import read_object
from compress.serve.schema.rules import check_schema
from compress.serve.schema.validate import validate
from compress.serve.service import Service, in_thread


async def schema(request: Request) -> Response:
    """{"accepted": true} if the schema in the body is accepted, or else an error with the reason."""
    body = await read_object(request)
    refuse_bad_schema(body.get("schema"))
    return JSONResponse({"accepted": True})


async def validated(request: Request) -> Response:
    """{"valid", "value", "errors"} for {"schema", "answer"}. A schema of null accepts every JSON value."""
    body = await read_object(request)
    service: Service = request.app.state.service
    answer, rules = body.get("answer"), body.get("schema")
    if not isinstance(answer, str):
        raise RefusedError(400, "answer: must be a text")
    if rules is not None:
        refuse_bad_schema(rules)
    async with service.children.slot():
        try:
            return JSONResponse(await in_thread(lambda: validate(rules, answer)))
        except SandboxError as error:
            raise RefusedError(502, f"this machine cannot validate answers safely: {error}") from None


def refuse_bad_schema(value: object) -> None:
    try:
        check_schema(value)
    except ValueError as error:
        raise RefusedError(400, str(error)) from None
