"""Softmax and cross-entropy of a chunk of logits (rows, vocab), written to buffers that all chunks share."""

import torch
from torch import Tensor


def softmax_into(out: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Write softmax(logits / temperature) to `out`. Returns the log-sum-exp (rows,) of logits / temperature."""
    largest = logits.amax(-1, keepdim=True)
    torch.sub(logits, largest, out=out).div_(temperature).exp_()
    total = out.sum(-1, keepdim=True)
    out.div_(total)
    return (largest / temperature + total.log()).squeeze(-1)


def cross_entropy_into(logits: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
    """Write softmax(logits) to `probabilities`. Returns −log of each row's probability of its label, (rows,)."""
    lse = softmax_into(probabilities, logits, 1.0)
    return lse - logits.gather(-1, labels[:, None]).squeeze(-1)
