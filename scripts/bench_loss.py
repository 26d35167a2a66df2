"""Compare the chunked loss with a plain loss: python scripts/bench_loss.py

Measures time and extra memory of the loss and its gradient. The targets are at most a fifth of the plain loss's memory,
and at most 1.1 times its time. Each loss runs in its own process. Its extra memory is the peak of the process minus the
memory before the loss.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import click
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from compress.cli.console import emit
from compress.cli.options import json_option
from compress.losses import LogitSource, distill_loss

ALPHA, TEMPERATURE = 0.7, 2.0
TARGETS = {"extra_bytes": 1 / 5, "seconds": 1.1}  # largest ratio to the plain loss
SMALL = {"tokens": 256, "hidden": 64, "vocab": 20_000}


def plain(student: LogitSource, teacher: LogitSource, labels: Tensor) -> Tensor:
    """The loss computed from whole logits, as most trainers do."""
    ours, theirs = student.hidden @ student.weight.T, teacher.hidden @ teacher.weight.T
    log_s, log_t = log_softmax(ours / TEMPERATURE, -1), log_softmax(theirs / TEMPERATURE, -1)
    kl = kl_div(log_s, log_t, reduction="batchmean", log_target=True)
    return ALPHA * TEMPERATURE**2 * kl + (1 - ALPHA) * cross_entropy(ours, labels)


def chunked(student: LogitSource, teacher: LogitSource, labels: Tensor) -> Tensor:
    mask = torch.ones_like(labels, dtype=torch.bool)
    return distill_loss(student, teacher, labels, mask, alpha=ALPHA, temperature=TEMPERATURE).loss


LOSSES: dict[str, Callable[[LogitSource, LogitSource, Tensor], Tensor]] = {"plain": plain, "chunked": chunked}


def make_side(seed: int, tokens: int, hidden: int, vocab: int) -> LogitSource:
    generator = torch.Generator().manual_seed(seed)
    return LogitSource(
        torch.randn(tokens, hidden, generator=generator), torch.randn(vocab, hidden, generator=generator) / hidden**0.5
    )


def measure(name: str, tokens: int, hidden: int, vocab: int) -> dict[str, float]:
    """Measure a loss: extra bytes, the shortest of three times in seconds, and the norms of its gradients."""
    student, teacher = make_side(1, tokens, hidden, vocab), make_side(2, tokens, hidden, vocab)
    labels = torch.arange(tokens) % vocab
    for tensor in student[:2]:
        tensor.requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        loss = LOSSES[name](student, teacher, labels)
        d_hidden, d_weight = torch.autograd.grad(loss, (student.hidden, student.weight))
        seconds.append(time.perf_counter() - started)
        figures = {"loss": loss.item(), "gradient": d_hidden.norm().item(), "head_gradient": d_weight.norm().item()}
        del loss, d_hidden, d_weight
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return {"extra_bytes": peak, "seconds": min(seconds), **figures}


@click.command()
@click.option("--tokens", default=4096, show_default=True, help="Number of tokens.")
@click.option("--hidden", default=1536, show_default=True, help="Width of the hidden states.")
@click.option("--vocab", default=151_936, show_default=True, help="Tokens in the vocabulary.")
@click.option(
    "--small",
    is_flag=True,
    help="Measure a small case, which takes seconds: " + ", ".join(f"{k} {v:,}" for k, v in SMALL.items()) + ".",
)
@click.option("--only", type=click.Choice(list(LOSSES)), help="Measure one loss in this process, and print JSON.")
@json_option
def main(small: bool, only: str | None, as_json: bool, **sizes: int) -> None:
    """Measure both losses, and compare the ratios of memory and time with their targets."""
    sizes = SMALL if small else sizes
    if only:
        click.echo(json.dumps(measure(only, **sizes)))
        return
    flags = [f"--{key}={value}" for key, value in sizes.items()]
    rows = []
    for name in LOSSES:
        shown = subprocess.run([sys.executable, __file__, "--only", name, *flags], check=True, stdout=subprocess.PIPE)
        rows.append({"name": name, **json.loads(shown.stdout)})
    whole, part = rows
    ratio = {key: part[key] / whole[key] for key in whole if key != "name"}
    verdicts = {key: "met" if ratio[key] <= limit else "MISSED" for key, limit in TARGETS.items()}
    targets = [] if small else [{"name": "target_at_most", **TARGETS}, {"name": "measured", **verdicts}]
    emit([*rows, {"name": "chunked / plain", **ratio}, *targets], as_json=as_json, title=str(sizes))


if __name__ == "__main__":
    main()
