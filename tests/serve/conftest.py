"""The tests of the chat page need the packages of qcompress[serve], which qcompress[dev] includes."""

from importlib.util import find_spec

if find_spec("starlette"):
    from tests.serve.services import client, engine, engine_server, start

    __all__ = ["client", "engine", "engine_server", "start"]
else:
    collect_ignore_glob = ["*"]
