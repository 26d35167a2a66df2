"""The files of the page. A request selects one of FILES; no path of a client reaches the file system."""

from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

SCRIPTS = ("page", "answer", "api", "dialog", "files", "markdown", "state", "tree", "words")
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
} | {f"/{name}.js": (f"{name}.js", "text/javascript") for name in SCRIPTS}


@cache
def content(name: str) -> bytes:
    return files("compress.serve").joinpath("page", name).read_bytes()


async def page(request: Request) -> Response:
    name, kind = FILES[request.scope["path"]]
    return Response(content(name), media_type=kind)
