"""The distance of a student from its teacher on held-out windows, in the same figures as `verify` and `compare`.

Teacher and student run in float32, as in those commands, even if the teacher had another dtype during training. The
teacher runs block by block, so that one of its blocks is in memory at a time.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.heldout import START, heldout_start, heldout_windows
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.core.perplexity import Estimate, exponential, sums_mean
from compress.core.report import Report, Row, silent
from compress.distill.model import Model, micro_batch
from compress.losses import LogitSource, cross_entropy, distill_loss, find_head, next_tokens
from compress.model.blocks import BlockModel


class Distance(NamedTuple):
    """Mean KL(teacher ‖ student) in nats per token, and the student's perplexity. Both have a standard error."""

    kl: Estimate
    perplexity: Estimate


class Yardstick:
    """Measures students on `windows`. Only the token ids below `vocab` are compared.

    The teacher's states after the final norm are computed once and kept on the CPU.
    """

    @torch.no_grad()
    def __init__(
        self, teacher: Checkpoint, windows: Windows, vocab: int, device: torch.device, report: Report = silent
    ) -> None:
        started = time.perf_counter()
        self.windows, self.vocab, self.device = windows, vocab, device
        self.tokens = windows.mask[:, 1:].sum(1).double()
        self.micro = micro_batch(windows.ids.shape[1], device)
        self.blocks = BlockModel(teacher.config, weight_reader(teacher), device=device)
        self.report, name, count = report, teacher.path.name, len(self.blocks)
        report({"reads": name, "block": f"0/{count}"})
        self.states = normed_states(
            self.blocks, windows.ids, self.micro, lambda index: report({"reads": name, "block": f"{index + 1}/{count}"})
        )
        self.head = find_head(teacher.config)
        self.teacher_perplexity = self.measure_teacher()
        self.teacher_seconds, self.student_seconds = time.perf_counter() - started, 0.0

    def measure_teacher(self) -> Estimate:
        """The teacher's perplexity."""
        weight, sums = self.head_weight(), []
        for ids, mask, states in self.parts():
            side = LogitSource(states, weight, self.head)
            sums.append(cross_entropy(side, *next_tokens(ids, mask), vocab=self.vocab).double().sum(1).cpu())
        return exponential(sums_mean(torch.cat(sums), self.tokens))

    @torch.no_grad()
    def measure(self, student: Model) -> Distance:
        """The distance of a student from the teacher. The student must be on `self.device`."""
        weight, kl, nll, started = self.head_weight(), [], [], time.perf_counter()
        for done, (ids, mask, states) in enumerate(self.parts(), 1):
            teacher = LogitSource(states, weight, self.head)
            loss = distill_loss(student.side(ids), teacher, *next_tokens(ids, mask), vocab=self.vocab)
            kl.append(loss.kl.double().sum(1).cpu())
            nll.append(loss.ce.double().sum(1).cpu())
            windows = min(done * self.micro, len(self.tokens))
            self.report({"measures": "student", "windows": f"{windows}/{len(self.tokens)}"})
        self.student_seconds = time.perf_counter() - started
        return Distance(sums_mean(torch.cat(kl), self.tokens), exponential(sums_mean(torch.cat(nll), self.tokens)))

    def head_weight(self) -> Tensor:
        """The (vocab, width) float32 weight of the teacher's head, on the device."""
        return self.blocks.weights(self.blocks.head_name).float()

    def parts(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields micro-batches on the device: ids, mask, and the teacher's states at all positions except the last."""
        columns = (self.windows.ids, self.windows.mask, self.states[:, :-1])
        for ids, mask, states in zip(*(column.split(self.micro) for column in columns), strict=True):
            yield ids.to(self.device), mask.to(self.device), states.to(self.device)

    def training_seconds(self, tokens: int, *, teacher: bool) -> float:
        """The expected seconds of training on this many tokens, after a student was measured.

        A training step costs about three forward passes of the student. With `teacher`, it also runs the teacher.
        """
        seconds = 3 * self.student_seconds + (self.teacher_seconds if teacher else 0)
        return tokens * seconds / self.windows.ids.numel()

    def row(self) -> Row:
        """The evaluation data as a row: text, windows, and number of scored tokens."""
        n_samples, seq_len = self.windows.ids.shape
        text = " + ".join(source["name"] for source in self.windows.manifest["sources"])
        sizes = {"eval_samples": n_samples, "eval_seq_len": seq_len, "tokens_scored": int(self.tokens.sum())}
        return {"eval_text": text, **sizes}


def normed_states(blocks: BlockModel, ids: Tensor, micro: int, done: Callable[[int], None]) -> Tensor:
    """The states after the final norm, (n, seq, width) float32 on the CPU, of token ids (n, seq).

    `micro` windows run at a time. `done` is called with the index of each finished block.
    """
    states = torch.empty(*ids.shape, int(blocks.model.config.hidden_size))
    blocks.read(ids, states, micro, done)
    with blocks.embedding_and_norm():
        for place in states.split(micro):
            place.copy_(blocks.final_norm(place.to(blocks.device)))
    return states


def yardstick_windows(teacher: Checkpoint, text: str, n_samples: int, seq_len: int, device: torch.device) -> Windows:
    """The held-out windows of a teacher. A short text gives fewer or shorter windows.

    The manifest stores the start token under "start". Raises QCompressError if no token of the windows is scored.
    """
    start = heldout_start(teacher, str(device))
    windows = heldout_windows(text, teacher.tokenizer, start["token"], n_samples=n_samples, seq_len=seq_len, fit=True)
    if not windows.mask[:, 1:].any():
        raise QCompressError(
            f"{text}: 0 of {windows.ids.numel():,} tokens are scored, because only the assistant's answers are scored "
            "in a conversation; use another --eval-text"
        )
    windows.manifest[START] = start
    return windows


def with_errors(**estimates: Estimate) -> Row:
    """A row with each estimate's value under NAME, and its standard error, or None, under NAME_se."""
    return {key: value for name, one in estimates.items() for key, value in ((name, one.value), (f"{name}_se", one.se))}
