"""The table of divergences between a student's and a teacher's distribution, each with its gradient.

    kl           Σ p_t log(p_t / p_s)                        large if the student misses likely tokens of the teacher
    reverse_kl   Σ p_s log(p_s / p_t)                        large if the student favors unlikely tokens of the teacher
    jsd          β KL(p_t ‖ m) + (1 − β) KL(p_s ‖ m),        m = β p_t + (1 − β) p_s

The generalised JSD is defined by Agarwal et al. 2023, https://arxiv.org/abs/2306.13649, section 2. Every function takes
`ratio` = log(p_t / p_s), p_s and p_t, all (rows, vocab), and returns the value (rows,). It overwrites p_s with the
gradient with respect to logits / T of the student, and may overwrite `ratio`. If p_s = p_t, the value is exactly 0.
"""

from collections.abc import Callable
from functools import partial
from math import log

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor, Tensor], Tensor]


def forward_kl(ratio: Tensor, p_student: Tensor, p_teacher: Tensor) -> Tensor:
    """KL(p_t ‖ p_s); the gradient is p_s − p_t."""
    value = torch.linalg.vecdot(p_teacher, ratio)
    p_student.sub_(p_teacher)
    return value


def reverse_kl(ratio: Tensor, p_student: Tensor, p_teacher: Tensor) -> Tensor:
    """KL(p_s ‖ p_t); the gradient is −p_s (ratio + value)."""
    value = -torch.linalg.vecdot(p_student, ratio)
    p_student.mul_(ratio.add_(value[:, None]).neg_())
    return value


def jsd(ratio: Tensor, p_student: Tensor, p_teacher: Tensor, *, beta: float) -> Tensor:
    """β KL(p_t ‖ m) + (1 − β) KL(p_s ‖ m), from log(m / p_s) = log((1 − β) + β p_t / p_s).

    The gradient follows from dJSD/dp_s = (1 − β) log(p_s / m).
    """
    teacher_part = torch.linalg.vecdot(p_teacher, ratio)
    mixture = torch.logaddexp(ratio.add_(log(beta)), ratio.new_tensor(log(1 - beta)), out=ratio)
    teacher_part -= torch.linalg.vecdot(p_teacher, mixture)
    student_part = -torch.linalg.vecdot(p_student, mixture)
    p_student.mul_(mixture.add_(student_part[:, None])).mul_(beta - 1)
    return beta * teacher_part + (1 - beta) * student_part


DIVERGENCES: dict[str, Callable[[float], Divergence]] = {  # by name: a function that makes the divergence from beta
    "kl": lambda beta: forward_kl,
    "reverse_kl": lambda beta: reverse_kl,
    "jsd": lambda beta: partial(jsd, beta=beta),
}
