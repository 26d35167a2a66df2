"""Evaluation of a student: its KL to the teacher, and its nll, on the evaluation text."""

from typing import NamedTuple

import torch

from calibration.windows import Windows
from compress.distill.model import Model, micro_batch
from compress.distill.text.packing import Batch, as_batch
from compress.losses import LogitSource, cross_entropy, distill_loss, next_tokens


class Scores(NamedTuple):
    """Mean KL(teacher ‖ student) at temperature 1, and the student's nll, on the evaluation text. Nats per token."""

    kl: float
    nll: float


class StudentEvaluator:
    """Measures a student on evaluation windows. The teacher's hidden states are computed once and kept."""

    @torch.no_grad()
    def __init__(self, teacher: Model, windows: Windows, vocab: int):
        device = teacher.model.device
        self.vocab, micro = vocab, micro_batch(windows.ids.shape[1], device)
        self.parts: list[tuple[Batch, LogitSource]] = []
        nll = 0.0
        self.tokens = int(windows.mask[:, 1:].sum())
        for part in as_batch(windows).to(device).split(micro):
            side = teacher.side(part.ids, part.documents)
            self.parts.append((part, side))
            nll += cross_entropy(side, *next_tokens(part.ids, part.mask), vocab=vocab).sum().item()
        self.teacher_nll = nll / self.tokens

    @torch.no_grad()
    def measure(self, student: Model) -> Scores:
        """The student's KL to the teacher, and its nll, on the evaluation windows."""
        kl = nll = 0.0
        for part, teacher in self.parts:
            side = student.side(part.ids, part.documents)
            loss = distill_loss(side, teacher, *next_tokens(part.ids, part.mask), vocab=self.vocab)
            kl, nll = kl + loss.kl.sum().item(), nll + loss.ce.sum().item()
        return Scores(kl / self.tokens, nll / self.tokens)
