"""Score answers in a separate process. An answer that makes a scorer hang or crash scores 0, and scoring continues.

The process reads lines {"kind", "expected", "answers"} and writes lines {"value", "reason"}.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from compress.core.guard import worker_command
from compress.evaluate.tasks.item import Item, Score, blame, score_answers
from compress.evaluate.tasks.suite import KINDS
from compress.sandbox.run import SandboxError

SECONDS = 30  # for one answer; generated code has 10 of them
ENDED = Score(None, f"error: ended the scorer, or took more than {SECONDS} s")
MODULE = "compress.evaluate.tasks.scoring"


class Scorer:
    """The scoring process. It is started at the first answer, and again after an answer has ended it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def score(self, item: Item, answers: Sequence[str]) -> Score:
        """The score of a model's answers, one per turn.

        An answer that makes the scorer fail scores 0. The value is None only if the scorer fails on its example too.
        Raises SandboxError if generated code cannot run.
        """
        return blame(self._ask(item, answers), lambda: self._ask(item, KINDS[item.kind].example(item.expected)))

    def close(self) -> None:
        """End the scoring process."""
        if self.process:
            self.process.kill()
            self.process.communicate()
        self.process = None

    def _ask(self, item: Item, answers: Sequence[str]) -> Score:
        """The score from the scoring process, or ENDED if that process has ended."""
        if self.process is None:
            self.process = subprocess.Popen(worker_command(MODULE), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin and self.process.stdout
        request = {"kind": item.kind, "expected": item.expected, "answers": list(answers)}
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended, which the next line reads
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            self.close()
            return ENDED
        reply = json.loads(line)
        if "sandbox" in reply:
            raise SandboxError(reply["sandbox"])
        return Score(**reply)


def main() -> None:
    """The scoring process: read one request per line of stdin, write one reply per line of stdout.

    An answer that takes longer than SECONDS ends the process by SIGALRM.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and then this process by the end of stdin
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in sys.stdin.buffer:
        request: dict[str, Any] = json.loads(line)
        signal.alarm(SECONDS)
        try:
            reply = asdict(score_answers(KINDS[request["kind"]], request["expected"], request["answers"]))
        except SandboxError as error:
            reply = {"sandbox": str(error)}
        signal.alarm(0)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
