"""Sensitivity of each part of a model: KL(model ‖ model with only that part rounded), in nats per token.

A part is the head, the embedding, or one stage: the linears that share an input, such as q, k and v, taken from every
block. The KL of a part is measured for one grid, by plain rounding. For other grids the KL is scaled by their rounding
error ‖ΔW‖² / ‖W‖², because the KL of a small change grows with its square. The KLs of all parts are summed. The sum is
an estimate that ranks layouts. For the few layouts that are shown, `LayoutMeter.rounding_kl` rounds all parts at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compress.checkpoint.finite import check_finite
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import PathOrCheckpoint
from compress.core.grid import QuantizedWeight, Scheme
from compress.core.report import Report, silent
from compress.model.blocks import BlockModel, Weights
from compress.model.shapes import model_stages
from compress.quantize.calibrate import calibration_windows
from compress.quantize.layout.budget import Harm, Planned, rounding_error
from compress.quantize.layout.plan import LayoutPlan, SourceModel
from compress.quantize.layout.prediction import RoundingKl
from compress.quantize.layout.vocabulary import round_table
from compress.quantize.methods.rtn import rtn

Rounding = Callable[[Tensor, Scheme], QuantizedWeight]
WINDOWS, LENGTH = 4, 128
SAMPLE = 1024  # rows of a weight from which its rounding error is estimated


@dataclass
class ModelPart:
    """A part of a model: its modules, the KL of rounding them in nats, and their rounding error with each scheme."""

    name: str
    modules: tuple[str, ...]
    kl: float = 0.0
    errors: dict[Scheme, float] = field(default_factory=dict)

    def harm(self, schemes: dict[str, Scheme], measured: Scheme) -> float:
        """The KL in nats with these `schemes`. It is scaled from `kl`, the KL with the scheme `measured`.

        A module without a scheme stays unquantized.
        """
        packed = [schemes[module] for module in self.modules if module in schemes]
        if not packed:
            return 0.0
        mean = sum(self.errors[scheme] for scheme in packed) / len(self.modules)
        return self.kl * mean / self.errors[measured]


def find_parts(source: SourceModel) -> list[ModelPart]:
    """The parts of a model: the stages of its family, head, and embedding.

    An unknown family has a single stage with all linears.
    """
    stages = {name: [path for stage in group for path in stage] for name, group in model_stages(source.model).items()}
    parts = [ModelPart(name, tuple(paths)) for name, paths in (stages or {"linears": list(source.linears)}).items()]
    vocabulary = source.vocabulary
    return [*parts, ModelPart("head", (vocabulary.head,)), ModelPart("embedding", (vocabulary.embedding,))]


def measure_parts(
    source: SourceModel,
    weights: Weights,
    ids: Tensor,
    reference: Tensor,
    schemes: Iterable[Scheme],
    report: Report = silent,
) -> list[ModelPart]:
    """Measure every part: its KL on (n, seq) ids, and its rounding error with each scheme.

    `reference` holds the log-probabilities of the unquantized model. One block is in memory at a time. The model runs
    once per part, rounded with the coarsest scheme.
    """
    schemes = list(dict.fromkeys(schemes))
    coarsest = max(schemes, key=rounding_error)
    parts = find_parts(source)
    for number, part in enumerate(parts, 1):
        names = sorted({f"{source_module(source, module)}.weight" for module in part.modules})
        part.errors = mean_errors(weights, names, schemes)
        changed = rounded(weights, dict.fromkeys(names, coarsest))
        reads = tuple(
            changed if place in (part.name, "blocks") else weights for place in ("embedding", "blocks", "head")
        )
        part.kl = mean_kl(reference, log_probabilities(source, ids, reads, reference.device))
        report({"parts": f"{number}/{len(parts)}", "part": part.name, "kl": part.kl, "error": part.errors[coarsest]})
    return parts


def source_module(source: SourceModel, module: str) -> str:
    """The module that stores the weight of `module`: the embedding for a tied head, else `module` itself."""
    vocabulary = source.vocabulary
    return vocabulary.embedding if vocabulary.tied and module == vocabulary.head else module


def rounded(weights: Weights, schemes: Mapping[str, Scheme], rounding: Rounding = rtn) -> Weights:
    """The same weights, except that those called in `schemes` are rounded."""
    return lambda name: (
        rounding(weights(name).float(), schemes[name]).dequantize() if name in schemes else weights(name)
    )


def mean_errors(weights: Weights, names: Sequence[str], schemes: Sequence[Scheme]) -> dict[Scheme, float]:
    """‖ΔW‖² / ‖W‖² of the weights called `names`, by scheme, measured on about SAMPLE rows of each weight."""
    total, errors = 0.0, dict.fromkeys(schemes, 0.0)
    for name in names:
        weight = weights(name)
        sample = weight[:: -(-len(weight) // SAMPLE)].float()
        total += sample.square().sum().item()
        for scheme in schemes:
            errors[scheme] += (rtn(sample, scheme).dequantize() - sample).square().sum().item()
    return {scheme: error / (total or 1.0) for scheme, error in errors.items()}


@torch.no_grad()
def log_probabilities(
    source: SourceModel, ids: Tensor, reads: tuple[Weights, ...], device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """The log-probabilities (seq, vocab) of each window.

    `reads` are three functions that return a weight by its name: for the embedding, the blocks and the head.
    """
    embedding, body, head = reads
    model = BlockModel(source.model, embedding, device=device)
    with model.embedding_and_norm():
        hidden = model.embed(ids)
    model.source = body
    for index, block in model.in_order():
        hidden = model.runner(block, index)(hidden)
    model.source = head
    with model.embedding_and_norm(head=True):
        for window in hidden:
            yield model.logits(window[None])[0].float().log_softmax(-1)


def mean_kl(reference: Tensor, candidate: Iterable[Tensor]) -> float:
    """Mean KL(reference ‖ candidate) in nats per token, from log-probabilities.

    `reference` is (n, seq, vocab). `candidate` yields n windows, each (seq, vocab).
    """
    means = [(p.exp() * (p - q)).sum(-1).mean() for p, q in zip(reference, candidate, strict=True)]
    return torch.stack(means).mean().item()


def measured_harm(parts: Sequence[ModelPart], schemes: Iterable[Scheme]) -> Harm:
    """A function that returns a plan's harm: the sum of the KLs of all parts, in nats per token."""
    coarsest = max(schemes, key=rounding_error)
    return lambda plan: sum(part.harm(plan.schemes, coarsest) for part in parts)


class LayoutMeter:
    """Measures layouts on the weights of a model. Every measurement is made once.

    `harm` ranks layouts by the sum of the KLs of their parts. `rounding_kl` measures one layout as a whole.
    """

    def __init__(self, source: SourceModel, weights: Weights, ids: Tensor, device: str = "cpu") -> None:
        self.source, self.weights, self.ids, self.device = source, weights, ids, device
        self.reference = torch.stack(list(log_probabilities(source, ids, (weights, weights, weights), device)))
        self.measured: dict[frozenset[tuple[str, Scheme]], float] = {}

    def harm(self, plans: Sequence[Planned], report: Report = silent) -> Harm:
        """A function that returns the harm of each of `plans`."""
        schemes = dict.fromkeys(scheme for _, plan in plans for scheme in plan.schemes.values())
        parts = measure_parts(self.source, self.weights, self.ids, self.reference, schemes, report)
        return measured_harm(parts, schemes)

    def rounding_kl(self, plan: LayoutPlan) -> RoundingKl:
        """The KL of plainly rounding a layout, apart for its linears and for its packed head and embedding."""
        linears = self.kl({name: plan.schemes[name] for name in plan.linears})
        whole = self.kl(plan.schemes)
        return RoundingKl(linears, max(0.0, whole - linears))

    def kl(self, schemes: Mapping[str, Scheme]) -> float:
        """KL(model ‖ model with these modules rounded as method rtn stores them), in nats per token."""
        key = frozenset(schemes.items())
        if key not in self.measured:
            vocabulary = self.source.vocabulary
            tables = {
                name: {name: schemes[name]} if name in schemes else {}
                for name in (vocabulary.embedding, vocabulary.head)
            }
            linears = {name: scheme for name, scheme in schemes.items() if name not in tables}
            embedding, head = (self.read(tables[name], round_table) for name in tables)
            reads = (embedding, self.read(linears, rtn), head)
            self.measured[key] = mean_kl(self.reference, log_probabilities(self.source, self.ids, reads, self.device))
        return self.measured[key]

    def read(self, schemes: Mapping[str, Scheme], rounding: Rounding) -> Weights:
        """The weights, with those of these modules rounded."""
        names = {f"{source_module(self.source, name)}.weight": scheme for name, scheme in schemes.items()}
        return rounded(self.weights, names, rounding)


def open_meter(model: PathOrCheckpoint, source: SourceModel, device: str = "cpu") -> LayoutMeter:
    """A meter for `model`. It uses a few windows of the bundled text, and runs and rounds in float32 on `device`.

    Raises QCompressError if `model` has no weights.
    """
    checkpoint = open_causal_lm(model)

    def read(name: str) -> Tensor:
        return check_finite(name, checkpoint.tensor(name)).to(device)

    blocks = BlockModel(source.model, read, device=device)
    size = {"n_samples": WINDOWS, "seq_len": LENGTH, "seed": 0}
    windows, _ = calibration_windows(blocks, checkpoint.tokenizer, ("default",), **size)
    return LayoutMeter(source, read, windows.ids, device)
