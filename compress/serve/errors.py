"""Errors that a client sees: a status, and the JSON body of OpenAI's API."""

import json

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    415: "unsupported_media_type",
    502: "engine_error",
    503: "overloaded_error",
}
UNREAD = (401, 403, 413, 415)


class RefusedError(Exception):
    """A request that is not answered. `retry_after` is in seconds."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After if the client may try again, and `close` if the request's body was not read.

        An open connection would still receive the whole body.
        """
        wait = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return wait | ({"connection": "close"} if self.status in UNREAD else {})

    @property
    def body(self) -> bytes:
        """The JSON object {"error": {"message", "type", "code"}}."""
        error = {"message": self.message, "type": KINDS.get(self.status, "error"), "code": self.status}
        return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")
