"""The process of the generated code: it defines the function, and calls it when the process of the tests requests this.

It receives arguments and sends values. It never receives a test or the verdict. So generated code passes a test only by
sending the right value.
"""

import builtins
import json
from collections.abc import Callable, Sequence
from typing import Any

from compress.sandbox.values import Tree, decode, encode, receive, send

MUTABLE = (list, dict, set, bytearray)


def serve(data: bytes) -> bytes:
    """Run the code of the request, then answer calls until the tests end."""
    request = json.loads(data)
    calls, replies = request["descriptors"]
    names: dict[str, Any] = {"__name__": "answer", "__builtins__": builtins}
    send_reply(replies, reply(lambda: define(request["code"], request["function"], names)))
    while True:
        try:
            call = receive(calls)
        except EOFError:
            return b""
        send_reply(replies, reply_to(names[request["function"]], call))


def define(code: str, function: str, names: dict[str, Any]) -> None:
    """Run the code with the global names `names`. Raises NameError if the code does not define the function."""
    exec(compile(code, "<answer>", "exec"), names)
    if function not in names:
        raise NameError(f"name {function!r} is not defined")


def send_reply(replies: int, message: dict[str, Tree]) -> None:
    """Send a reply, or the reason why it cannot be sent."""
    try:
        send(replies, message)
    except (ValueError, RecursionError) as error:
        send(replies, {"raised": "ValueError", "arguments": [str(error)]})


def reply_to(function: Any, call: dict[str, Tree]) -> dict[str, Tree]:
    """The reply to one call: the function's value, and the new values of the arguments that the call changed.

    If the value is one of the arguments, "same" is the index of this argument.
    """
    arguments = [decode(tree) for tree in call["arguments"]]
    options = {name: decode(tree) for name, tree in call["options"].items()}
    values = [*arguments, *options.values()]
    before = [encode(value) if type(value) in MUTABLE else None for value in values]

    def result() -> dict[str, Tree]:
        value = function(*arguments, **options)
        same = next((place for place, other in enumerate(values) if other is value and type(value) in MUTABLE), None)
        return {"value": encode(value), "same": same, "changed": changes(values, before)}

    return reply(result)


def changes(values: Sequence[Any], before: Sequence[Tree]) -> list[list[Tree]]:
    """The index and the new value of every mutable argument that differs from `before`."""
    after = [encode(value) if type(value) in MUTABLE else None for value in values]
    return [[place, tree] for place, (tree, old) in enumerate(zip(after, before, strict=True)) if tree != old]


def reply(action: Callable[[], dict[str, Tree] | None]) -> dict[str, Tree]:
    """The result of an action. If it raises: the exception's arguments, and the name of its nearest built-in class."""
    try:
        return action() or {}
    except BaseException as error:  # also SystemExit and KeyboardInterrupt
        names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
        return {"raised": names[0], "arguments": [plain(argument) for argument in error.args[:5]]}


def plain(argument: Any) -> Tree:
    """An exception's argument, encoded. If it cannot be encoded, its text."""
    try:
        return encode(argument)
    except (TypeError, ValueError, RecursionError):
        return str(argument)[:1000]
