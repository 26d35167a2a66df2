"""The process of the tests: it runs the tests, and calls the answer's function, which runs in another process.

Arguments and values are copied between the processes. The verdict is made here. The answer's process controls the
values and exceptions of its function, and nothing else.
"""

import ast
import builtins
import json
from collections.abc import Callable, Sequence
from typing import Any

from compress.sandbox.child import describe, status_of
from compress.sandbox.values import BadMessageError, Tree, decode, decode_all, encode, receive, send

STOPS = (StopIteration, StopAsyncIteration)  # they would end a loop of a test early
SETTLE = "settle the arguments"  # no Python name, so a test cannot hold it


class StoppedError(BaseException):
    """No further call is possible. This is a BaseException, because a test can catch an Exception."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class AnswerError(Exception):
    """Replaces an exception of the answer that has no built-in class, or that would end a loop of a test early."""


class Proxy:
    """Represents the answer's function in the process of the tests.

    A call can change its arguments. They change in this process at once or, with `late`, after the test's statement.
    With `late`, an expected value in that statement is computed from the unchanged arguments.
    """

    def __init__(self, calls: int, replies: int, *, late: bool = False) -> None:
        self.calls, self.replies, self.late = calls, replies, late
        self.changed = False
        self.waiting: list[tuple[Any, Any]] = []

    def call(self, *arguments: Any, **options: Any) -> Any:
        """Call the answer's function. Returns its value, or raises its exception."""
        try:
            sent_options = {name: encode(value) for name, value in options.items()}
            send(self.calls, {"arguments": [encode(value) for value in arguments], "options": sent_options})
        except BrokenPipeError:
            raise StoppedError("gone", "the answer's process has ended") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise StoppedError("tests", f"an argument of the tests cannot be sent: {error}") from None
        return self.take([*arguments, *options.values()], self.reply())

    def reply(self) -> dict[str, Tree]:
        """Receive the next reply. The first reply is about the code itself. Raises the exception in the reply."""
        try:
            reply = receive(self.replies)
        except EOFError:
            raise StoppedError("gone", "the answer's process has ended") from None
        except BadMessageError as error:
            raise StoppedError("error", f"the answer's process sent an invalid reply: {error}") from None
        if "raised" in reply:
            raise exception(reply)
        return reply

    def take(self, values: Sequence[Any], reply: dict[str, Tree]) -> Any:
        """The value in a reply. Changes to mutable arguments are applied now, or with `late` by the next `settle`."""
        try:
            value = decode(reply["value"])
            changed = [(values[place], decode(tree)) for place, tree in reply["changed"]]
            same = reply["same"]
            if any(type(old) is not type(new) or not hasattr(old, "clear") for old, new in changed):
                raise BadMessageError("the reply changes the type of an argument")
            if same is not None and type(values[same]) is not type(value):
                raise BadMessageError("the value should be an argument, but has another type")
        except (BadMessageError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise StoppedError("error", f"the answer's process sent an invalid reply: {error}") from None
        self.waiting += changed
        self.changed |= bool(changed) and value is not None
        if value is None or not self.late:
            self.settle()
            return value if same is None else values[same]
        return value

    def settle(self) -> None:
        """Apply the changes that earlier calls made to their arguments."""
        for old, new in self.waiting:
            old.clear()
            (old.extend if isinstance(old, list | bytearray) else old.update)(new)
        self.waiting.clear()


def exception(reply: dict[str, Tree]) -> BaseException:
    """The exception in a reply if its class is built in, else an AnswerError. A StoppedError if the code exited."""
    name = reply["raised"]
    kind = getattr(builtins, name, None) if type(name) is str else None
    try:
        arguments = decode_all(reply.get("arguments", []))
        if name in ("SystemExit", "KeyboardInterrupt", "GeneratorExit"):
            return StoppedError("exited", f"{name}: {arguments}")
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, STOPS):
            return kind(*arguments)
    except (BadMessageError, TypeError, ValueError, RecursionError) as error:
        return AnswerError(f"{name}: {error}")
    return AnswerError(f"{name}: {arguments}")


class Settling(ast.NodeTransformer):
    """Adds a call of `Proxy.settle` after every statement of a test."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, [new for old in statements for new in (old, self.settle(old))])
        return node

    def settle(self, after: ast.stmt) -> ast.stmt:
        call = ast.Call(ast.Name(SETTLE, ast.Load()), [], [])
        return ast.fix_missing_locations(ast.copy_location(ast.Expr(call), after))


def run_all(data: bytes) -> bytes:
    """The verdict as JSON: {"status", "detail"}. The status is "passed", or that of the first failure.

    If the tests pass although a call changed its arguments, they are run again with `late`, and must pass again.
    """
    request = json.loads(data)
    calls, replies = request["descriptors"]
    proxy = Proxy(calls, replies)
    verdict = attempt("", proxy.reply) or run_tests(request, proxy)
    if verdict is None and proxy.changed:
        verdict = run_tests(request, Proxy(calls, replies, late=True))
    return json.dumps(verdict or {"status": "passed", "detail": ""}).encode()


def run_tests(request: dict[str, Any], proxy: Proxy) -> dict[str, str] | None:
    """The first failure of the tests, or None. All tests share their global names, as in one file."""
    names: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins, SETTLE: proxy.settle}
    if failure := attempt("", lambda: exec(compile(request["setup"], "<setup>", "exec"), names)):
        return {"status": "tests", "detail": failure["detail"]}
    names[request["function"]] = lambda *arguments, **options: proxy.call(*arguments, **options)
    for test in request["tests"]:
        tree = ast.parse(test)
        code = compile(Settling().visit(tree) if proxy.late else tree, "<tests>", "exec")
        if failure := attempt(test, lambda code=code: exec(code, names)):  # type: ignore[misc]
            return failure
    return None


def attempt(where: str, action: Callable[[], Any]) -> dict[str, str] | None:
    """Run an action. If it raises, returns the failure as {"status", "detail"}, otherwise None."""
    try:
        action()
    except StoppedError as stopped:
        return {"status": stopped.status, "detail": str(stopped)}
    except BaseException as error:  # a test's own SystemExit is no pass
        return {"status": status_of(error), "detail": describe(error, where)}
    return None
