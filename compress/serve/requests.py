"""Read the body of a request, within a time."""

from typing import Any

import anyio
from starlette.requests import Request

from compress.serve.errors import RefusedError
from compress.serve.schema import strict_json

SECONDS = 60.0


async def read_body(request: Request, kind: str, seconds: float = SECONDS) -> bytes:
    """The whole body. Raises RefusedError for another content type, or if the body does not arrive in time.

    A form of another site cannot have these content types, so no form can send anything that is accepted.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
        raise RefusedError(415, f"the content type must be {kind}")
    try:
        with anyio.fail_after(seconds):
            return await request.body()
    except TimeoutError:
        raise RefusedError(400, f"the body did not arrive within {seconds:g} s") from None


async def read_json(request: Request) -> Any:
    """The JSON value of the body. Raises RefusedError if the body is not JSON."""
    body = await read_body(request, "application/json")
    try:
        return strict_json.loads(body)
    except ValueError as error:
        raise RefusedError(400, f"the body is no JSON: {str(error)[:120]}") from None


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object of the body. Raises RefusedError for any other value."""
    value = await read_json(request)
    if not isinstance(value, dict):
        raise RefusedError(400, "the body must be a JSON object")
    return value
