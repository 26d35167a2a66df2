"""Python: a function to write, run against unit tests in the sandbox.

    expected: {"function": "double", "tests": ["assert double(2) == 4"]}

Tests run in another process than the answer: they only call its function, with plain values.
"""

import ast
import builtins
import re
from collections.abc import Sequence

from compress.evaluate.tasks.item import Expected, Item, Kind, Score, check_one_turn, check_texts
from compress.sandbox.python import run_python

FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
OPENING = re.compile(r"^(?:def|class|import|from|@|async def)\b", re.MULTILINE)


def check(item: Item) -> None:
    check_one_turn(item)
    if not str(item.expected.get("function", "")).isidentifier():
        raise ValueError("expected.function must be the name of a function")
    check_texts(item.expected.get("tests"), "expected.tests")
    for test in item.expected["tests"]:
        try:
            ast.parse(test)
        except SyntaxError as error:
            raise ValueError(f"expected.tests: {test!r} is not Python: {error.msg}") from None
        except (MemoryError, RecursionError):
            raise ValueError("expected.tests: a test is nested too deeply") from None
    _check_names(ast.parse("\n".join(item.expected["tests"])), item.expected["function"])


def _check_names(tests: ast.Module, function: str) -> None:
    """Raise ValueError for a test that a separate process cannot run.

    Such a test reads a name that only the answer defines, or passes a function as an argument.
    """
    nodes = list(ast.walk(tests))
    names = [(node.id, isinstance(node.ctx, ast.Load)) for node in nodes if isinstance(node, ast.Name)]
    imported = [node.asname or node.name.split(".")[0] for node in nodes if isinstance(node, ast.alias)]
    defined = {function, *imported, *(name for name, loaded in names if not loaded)}
    defined |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    defined |= {str(getattr(node, "name", "")) for node in nodes}
    undefined = {name for name, loaded in names if loaded} - defined - set(dir(builtins))
    if undefined and "*" not in imported:
        raise ValueError(f"expected.tests: name {min(undefined)} is undefined; call only {function} and built-ins")
    calls = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") == function]
    for value in [value for call in calls for value in (*call.args, *(option.value for option in call.keywords))]:
        name = value.id if isinstance(value, ast.Name) and value.id not in defined else ""
        if isinstance(value, ast.Lambda) or callable(getattr(builtins, name, None)):
            raise ValueError(f"expected.tests: a test passes a function to {function}; pass plain values only")


def find_code(answer: str, function: str) -> str:
    """The fenced block that defines the function, else the first block, else the text from its first definition."""
    blocks = FENCED.findall(answer)
    if blocks:
        return str(next((block for block in blocks if f"def {function}" in block), blocks[0]))
    opening = OPENING.search(answer)
    return answer[opening.start() :] if opening else answer


def whole_lines(code: str) -> str:
    """The longest beginning of the code that parses, in whole lines, or all of the code if no beginning parses.

    The rest is prose, or a line that the token limit cut off.
    """
    lines = code.split("\n")
    for end in range(len(lines), 0, -1):
        try:
            ast.parse("\n".join(lines[:end]))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return "\n".join(lines[:end])
    return code


def score(expected: Expected, answers: Sequence[str]) -> Score:
    """1 if every test passes. The reason begins with the sandbox's status, such as failed, error or timeout."""
    code = whole_lines(find_code(answers[0], expected["function"]))
    if f"def {expected['function']}" not in code:
        return Score(0.0, f"no function {expected['function']}")
    outcome = run_python(code, expected["function"], expected["tests"])
    if outcome.status == "tests":
        raise ValueError(outcome.detail)
    if outcome.status == "passed":
        return Score(1.0, f"{len(expected['tests'])} tests passed")
    return Score(0.0, f"{outcome.status}: {outcome.detail}")


KIND = Kind(
    name="python",
    max_tokens=320,
    instruction={
        "en": "Write the Python function. Reply with the code only.",
        "zh": "请编写 Python 函数，只回复代码。",
    },
    check=check,
    score=score,
    example=lambda expected: [f"def {expected['function']}(*values, **options): pass"],
)
