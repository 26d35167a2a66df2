"""What each part of a model is worth: KL(whole ‖ model with that part alone rounded), in nats per token, measured.

A part is a stage of all blocks (the linears that share an input), the head, or the embedding. Each is rounded once, by
plain rounding; other grids are scaled by their measured rounding error ‖ΔW‖² / ‖W‖², because the KL of a small
disturbance grows with its square. Parts are added up. Both make it an estimate: it ranks layouts, the finished
checkpoint is judged by `qcompress verify`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.finite import check_finite
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint
from compress.core.grid import Scheme
from compress.model.blocks import BlockModel, Weights
from compress.model.families import find_family
from compress.quantize.calibrate import calibration_windows
from compress.quantize.layout.budget import Harm, Planned, rounding_error
from compress.quantize.layout.plan import SourceModel
from compress.quantize.methods.rtn import rtn

Row = dict[str, Any]
Report = Callable[[Row], None]
WINDOWS, LENGTH = 4, 128
SAMPLE = 1024  # rows of a weight that tell its rounding error


@dataclass
class ModelPart:
    """Some modules of a model: what rounding them costs in nats, and their rounding errors by scheme."""

    name: str
    modules: tuple[str, ...]
    kl: float = 0.0
    errors: dict[Scheme, float] = field(default_factory=dict)

    def harm(self, schemes: dict[str, Scheme], measured: Scheme) -> float:
        """KL in nats where each module has one of these schemes, or stays as it is."""
        packed = [schemes[module] for module in self.modules if module in schemes]
        if not packed:
            return 0.0
        mean = sum(self.errors[scheme] for scheme in packed) / len(self.modules)
        return self.kl * mean / self.errors[measured]


def find_parts(source: SourceModel) -> list[ModelPart]:
    """Stages of the family's table, over all blocks (all linears together where it has none), head and embedding."""
    family = find_family(str(source.model.get("model_type")))
    stages = [stage.linears for stage in family.stages] if family else [("",)]
    parts = [ModelPart(names[0] or "linears", tuple(in_stage(source, names))) for names in stages]
    vocabulary = source.vocabulary
    return [*parts, ModelPart("head", (vocabulary.head,)), ModelPart("embedding", (vocabulary.embedding,))]


def in_stage(source: SourceModel, names: Sequence[str]) -> Iterator[str]:
    return (module for module in source.linears if any(module.endswith(name) for name in names))


def measure_parts(
    source: SourceModel,
    weights: Weights,
    ids: Tensor,
    schemes: Iterable[Scheme],
    report: Report = lambda row: None,
) -> list[ModelPart]:
    """Every part with its KL on (n, seq) ids, and its errors under every one of `schemes`.

    One block is in memory at a time; the model runs once as it is, and once per part under the coarsest scheme.
    """
    schemes = list(dict.fromkeys(schemes))
    coarsest = max(schemes, key=rounding_error)
    whole = torch.stack(list(log_probabilities(source, ids, (weights, weights, weights))))
    parts = find_parts(source)
    for part in parts:
        names = sorted({f"{source_module(source, module)}.weight" for module in part.modules})
        part.errors = mean_errors(weights, names, schemes)
        changed = rounded(weights, names, coarsest)
        reads = tuple(
            changed if place in (part.name, "blocks") else weights for place in ("embedding", "blocks", "head")
        )
        part.kl = mean_kl(whole, log_probabilities(source, ids, reads))
        report({"part": part.name, "kl": part.kl, "error": part.errors[coarsest]})
    return parts


def source_module(source: SourceModel, module: str) -> str:
    """Where a module's weight is stored: a tied head is the embedding."""
    vocabulary = source.vocabulary
    return vocabulary.embedding if vocabulary.tied and module == vocabulary.head else module


def rounded(weights: Weights, names: Sequence[str], scheme: Scheme) -> Weights:
    """The same weights, those of `names` as plain rounding leaves them."""
    chosen = set(names)
    return lambda name: rtn(weights(name), scheme).dequantize() if name in chosen else weights(name)


def mean_errors(weights: Weights, names: Sequence[str], schemes: Sequence[Scheme]) -> dict[Scheme, float]:
    """‖ΔW‖² / ‖W‖² over all of `names` by scheme, of at most SAMPLE rows of each."""
    total, errors = 0.0, dict.fromkeys(schemes, 0.0)
    for name in names:
        weight = weights(name)
        sample = weight[:: -(-len(weight) // SAMPLE)].float()
        total += sample.square().sum().item()
        for scheme in schemes:
            errors[scheme] += (rtn(sample, scheme).dequantize() - sample).square().sum().item()
    return {scheme: error / (total or 1.0) for scheme, error in errors.items()}


@torch.no_grad()
def log_probabilities(source: SourceModel, ids: Tensor, reads: tuple[Weights, ...]) -> Iterator[Tensor]:
    """(seq, vocab) log-probabilities of each window; `reads` give the embedding, the blocks and the head."""
    embedding, body, head = reads
    model = BlockModel(source.model, embedding)
    with model.embedding_and_norm():
        hidden = model.embed(ids)
    model.source = body
    for index, block in model.in_order():
        hidden = model.runner(block, index)(hidden)
    model.source = head
    with model.embedding_and_norm(head=True):
        for window in hidden:
            yield model.logits(window[None])[0].float().log_softmax(-1)


def mean_kl(whole: Tensor, found: Iterable[Tensor]) -> float:
    """Mean KL(whole ‖ found) in nats per token, of (n, seq, vocab) and as many (seq, vocab) log-probabilities."""
    means = [(p.exp() * (p - q)).sum(-1).mean() for p, q in zip(whole, found, strict=True)]
    return torch.stack(means).mean().item()


def measured_harm(parts: Sequence[ModelPart], schemes: Iterable[Scheme]) -> Harm:
    """The parts' KL under a plan's schemes, added up, in nats per token."""
    coarsest = max(schemes, key=rounding_error)
    return lambda plan: sum(part.harm(plan.schemes, coarsest) for part in parts)


def measure_harm(path: Path, source: SourceModel, plans: Sequence[Planned], report: Report = lambda row: None) -> Harm:
    """The harm of these plans, measured on the weights at `path` and a few windows of the embedded text.

    QCompressError when there are no weights.
    """
    checkpoint = open_causal_lm(path)

    def read(name: str) -> Tensor:
        return check_finite(name, checkpoint.tensor(name))

    windows, _ = calibration_windows(
        BlockModel(source.model, read),
        Checkpoint(path).tokenizer,
        ("default",),
        n_samples=WINDOWS,
        seq_len=LENGTH,
        seed=0,
    )
    schemes = dict.fromkeys(scheme for _, plan in plans for scheme in plan.schemes.values())
    return measured_harm(measure_parts(source, read, windows.ids, schemes, report), schemes)
