"""Test generated Python in two contained processes: one runs the code, the other runs the tests."""

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
    """Run `code`, which defines `function`. Then run `tests`: statements that call the function and raise on failure.

    Arguments and results are copied between the two processes. `setup` is run before the tests, in their process.
    `limits` apply to each process; `limits.seconds` apply to both together. Raises SandboxError if a process does not
    start.
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
    """The outcome of the tests. If the answer's process ended before the tests, the outcome says how it ended.

    Only the process of the tests decides whether they pass. The channel of the answer's process is not read.
    """
    if verdict.status != "returned":
        return Outcome(verdict.status, f"in the tests: {verdict.detail}")
    row = json.loads(verdict.output)
    if row["status"] != "gone":
        return Outcome(row["status"], row["detail"])
    return Outcome(*describe_exit(answer.exit_code(PATIENCE)))
