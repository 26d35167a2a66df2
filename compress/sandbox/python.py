"""Run generated Python against tests, in two contained processes: one has the code, one the tests and the verdict."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from compress.sandbox.layers import Limits
from compress.sandbox.run import DEFAULT, PATIENCE, Contained, Result, describe_exit

ANSWER, TESTS = "compress.sandbox.answer:serve", "compress.sandbox.verdict:run_all"


@dataclass(frozen=True)
class Outcome:
    """How the tests ended.

    `status` is passed, failed (a test), error (an exception), refused (a forbidden action), exited, memory, cpu,
    timeout, output or killed. It is "tests" if the tests themselves cannot run.
    """

    status: str
    detail: str


def run_python(code: str, function: str, tests: Sequence[str], limits: Limits = DEFAULT, *, setup: str = "") -> Outcome:
    """Define `function` by `code`, then run `tests`, statements that call it and raise on failure.

    Arguments and results pass between the processes by value. `setup` is run before the tests, in their process. Each
    process has these limits; `seconds` is for both together. Raises SandboxError.
    """
    calls, replies = os.pipe(), os.pipe()
    ours, theirs = (calls[0], replies[1]), (calls[1], replies[0])  # of the answer, of the tests
    answers = json.dumps({"code": code, "function": function, "descriptors": ours})
    verdicts = json.dumps({"tests": list(tests), "function": function, "setup": setup, "descriptors": theirs})
    try:
        answer = Contained(ANSWER, answers.encode(), limits, descriptors=ours)
        verdict = Contained(TESTS, verdicts.encode(), limits, descriptors=theirs)
    finally:
        for descriptor in (*calls, *replies):
            os.close(descriptor)
    with answer, verdict:
        answer.start()
        return outcome(verdict.result(verdict.start()), answer)


def outcome(verdict: Result, answer: Contained) -> Outcome:
    """The outcome of the tests; if the answer's process ended before them, how the kernel ended it.

    Only the process of the tests can pass them: what the answer's process wrote into its channel is not read.
    """
    if verdict.status != "returned":
        return Outcome(verdict.status, f"in the tests: {verdict.detail}")
    row = json.loads(verdict.output)
    if row["status"] != "gone":
        return Outcome(row["status"], row["detail"])
    return Outcome(*describe_exit(answer.exit_code(PATIENCE)))
