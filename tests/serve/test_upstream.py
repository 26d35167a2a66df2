"""Answers of a server that are errors."""

import asyncio

import httpx2
import pytest

from compress.serve.upstream import refusal


@pytest.mark.parametrize(
    ("status", "body", "expected", "words"),
    [
        (503, b'{"error": {"message": "Loading model"}}', 503, "cannot answer now: Loading model"),
        (503, b"", 503, "cannot answer now: status 503"),
        (400, b'{"error": {"message": "top_k is wrong"}}', 400, "refused the request: top_k is wrong"),
        (500, b"a traceback", 502, "status 500"),
    ],
)
def test_an_error_repeats_the_servers_own_reason(status, body, expected, words):
    error = asyncio.run(refusal(httpx2.Response(status, content=body)))
    assert error.status == expected and words in error.message
    assert (error.retry_after is not None) == (status == 503)
