"""Rule T14: no packed linear is scaled against its source, except by AWQ's factors, which cancel.

No loader detects that a linear is negated, doubled, or has one scale twenty times too large. AWQ scales the inputs of a
linear, and divides the outputs of its feeder by the same factors. The feeder is the module that feeds the linear. The
record lists which linears AWQ has scaled. Without a record, AWQ may have scaled any linear of a known family.
These factors were measured on all linears of SmolLM2-135M, with groups of 64. Factors of very small weights are left
out:

                                             awq+gptq        gptq           rtn
    an output                                0.96 – 1.02     0.96 – 1.02    0.97 – 1.03
    an input, times the factor of its feeder 0.83 – 1.26     0.85 – 1.06    0.85 – 1.06
    a group                                  0.81 – 1.48     0.41 – 1.75    0.91 – 1.08
    the largest error of a code, in steps    12              12             0.7

gptq may give any weights to an input that is always near 0. The cosine between the column of such an input and its
source is below 0.1. So only inputs with a cosine above CLOSE are compared, and only they count in the factors of
outputs and groups. A wrong factor does not change the cosine.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.checkpoint.check.candidate import Candidate, Findings, error
from compress.checkpoint.check.factors import Factors, InputFactors, Pair, fit_inputs, fit_outputs
from compress.checkpoint.formats import format_of, quantized_as, weight_reader
from compress.checkpoint.read import Checkpoint
from compress.core.grid import Scheme, away_from_zero
from compress.model.families import Feeder, Stage

OUTPUT, INPUT = (0.5, 2.0), (0.67, 1.5)
TYPICAL = 0.04  # median distance of a factor from 1 over the inputs that a norm feeds; 0.01 in healthy checkpoints
CLOSE = 0.8  # cosine of an input's column with its source
FEW = 0.05  # share of the inputs; 33 of 1,536 were unlike their source in a healthy linear, calibrated on little text
GROUP = (0.2, 4.0)
ROUNDING = 0.75  # steps; rounding to nearest stays below 0.6, scales being rounded too
MATTERS = 0.01  # of the mean energy; a smaller change is lost in the rounding
WRONG = "vLLM loads it and computes with other weights than the source (no error)"


@dataclass(frozen=True)
class FactorFit:
    """A stage of one block: its linears, the factors of their inputs, and the factors of each linear's outputs."""

    stage: Stage
    pairs: list[Pair]
    inputs: InputFactors
    factors: dict[str, Factors]
    scaled: bool


def factors_match_source(candidate: Candidate) -> Findings:
    """T14: no linear, output, input or group is negated or scaled against the source, unless its feeder cancels it."""
    if candidate.compared_source is None or candidate.format is None:
        return
    sound = {name: scheme for name, _, scheme in candidate.sound()}
    staged: set[str] = set()
    for block, stages in candidate.table.stages.items():
        fits = [fit for stage in stages if (fit := fit_stage(candidate, block, stage, sound))]
        staged |= {pair.name for fit in fits for pair in fit.pairs}
        for fit in fits:
            yield from linear_findings(candidate, fit)
            yield from feeder_findings(candidate, block, fit, fits)
    for name in sound.keys() - staged:
        pair = make_pair(candidate, name, sound[name])
        if pair is not None:
            inputs, plain = fit_inputs([pair]), torch.ones(pair.source.shape[1])
            steps = candidate.provenance.rounded_to_nearest
            outputs = fit_outputs(pair, plain, comparable(inputs), measure_steps=steps)
            yield from linear_findings(candidate, FactorFit(Stage((name,)), [pair], inputs, {name: outputs}, False))


def make_pair(candidate: Candidate, name: str, scheme: Scheme, feeding: int = 0) -> Pair | None:
    """A packed module and its source; None if they cannot be compared, which T7 or T12 reports."""
    source = candidate.compared_source
    original = f"{candidate.source_name(name)}.weight"
    assert source is not None
    weight = quantized_as(candidate.checkpoint, name, scheme)
    if original not in source.tensors or not torch.isfinite(weight.scales).all():
        return None
    tensor = weight_reader(source)(original)
    return Pair(name, weight, tensor, feeding) if tensor.shape == weight.codes.shape else None


def fit_stage(candidate: Candidate, block: str, stage: Stage, sound: dict[str, Scheme]) -> FactorFit | None:
    """The factors of one stage of a block; None if not all of its linears can be compared."""
    names = [f"{block}.{name}" for name in stage.linears]
    if not all(name in sound for name in names):
        return None
    pairs = [make_pair(candidate, name, sound[name], candidate.provenance.feeding_rows.get(name, 0)) for name in names]
    whole = [pair for pair in pairs if pair is not None]
    if len(whole) < len(names):
        return None
    steps = candidate.provenance.rounded_to_nearest
    inputs, scaled = fit_inputs(whole), candidate.provenance.is_scaled(block, stage)
    used = inputs.factors if scaled else torch.ones_like(inputs.factors)
    counted = comparable(inputs)
    factors = {pair.name: fit_outputs(pair, used, counted, measure_steps=steps) for pair in whole}
    return FactorFit(stage, whole, inputs, factors, scaled)


def comparable(inputs: InputFactors) -> Tensor:
    """1 for each input that outputs and groups are compared on, 0 for one to which gptq gave weights of its own.

    If more than the share FEW of the inputs are unlike their source, that is no accident, and all are compared.
    """
    like = inputs.cosines.abs() > CLOSE
    return (like if like.float().mean() >= 1 - FEW else torch.ones_like(like)).float()


def linear_findings(candidate: Candidate, fit: FactorFit) -> Findings:
    """T14 for the outputs, groups and codes of each linear of a stage."""
    row = format_of(candidate.checkpoint)
    assert row is not None
    for pair in fit.pairs:
        one, tensor = fit.factors[pair.name], f"{pair.name}.{row.packed}"
        energy = one.energy.sum(1)
        free = slice(0, pair.free)
        yield from unlike_one(one.outputs[free], energy[free], OUTPUT, "output", tensor)
        yield from unlike_one(one.groups.flatten(), one.energy.flatten(), GROUP, "group", tensor)
        if candidate.provenance.rounded_to_nearest and one.furthest.max() > ROUNDING:
            place = int(one.furthest.argmax()) // one.furthest.shape[1]
            value = f"a code of output {place} is {one.furthest.max():.2f} steps from the source"
            yield error(value, "at most 0.5, as the method rtn rounds", WRONG, tensor=tensor)


def unlike_one(factors: Tensor, energy: Tensor, limits: tuple[float, float], what: str, tensor: str) -> Findings:
    """A finding if factors are outside `limits` and change more than the share MATTERS of the mean energy."""
    low, high = limits
    matters = (factors - 1).square() * energy > MATTERS * energy.mean()
    bad = ((factors < low) | (factors > high)) & matters
    if bad.any():
        first, count = int(bad.nonzero()[0]), int(bad.sum())
        value = f"{what} {first} is {factors[first]:.2f} times the source" + (f", and {count - 1} more" * (count > 1))
        yield error(value, f"{low:g} to {high:g} times", WRONG, tensor=tensor)


def feeder_findings(candidate: Candidate, block: str, fit: FactorFit, fits: list[FactorFit]) -> Findings:
    """T14 for the inputs of a stage: the factor of an input, times the factor of its feeder's output, is 1."""
    feeder = fit.stage.feeder
    if not fit.scaled or feeder is None:
        yield from unlike_inputs(fit, torch.ones(1), torch.ones(1), fit.pairs[0].name)
    elif feeder.kind == "norm":
        name = f"{block}.{feeder.module}.weight"
        ours, theirs = (norm_weight(one, name, feeder) for one in (candidate.checkpoint, candidate.compared_source))
        if ours is not None and theirs is not None and ours.shape == theirs.shape == fit.inputs.factors.shape:
            yield from unlike_norm(fit, ours, theirs, name)
    else:
        name = f"{block}.{feeder.module}"
        factors = next((one.factors[name] for one in fits if name in one.factors), None)
        if factors is not None:
            rows, inputs = candidate.provenance.feeding_rows[name], len(fit.inputs.factors)
            feeding = per_input(candidate, factors.outputs[-rows:], inputs)
            power = per_input(candidate, factors.energy.sum(1)[-rows:], inputs)
            yield from unlike_inputs(fit, feeding, power, name)
            yield from bias_findings(candidate, f"{name}.bias", fit, rows)


def unlike_inputs(fit: FactorFit, feeding: Tensor, power: Tensor, tensor: str) -> Findings:
    """A finding if the factor of an input, times the factor `feeding` of the output that feeds it, is not 1.

    `power` is the energy of that output.
    """
    close = fit.inputs.cosines.abs() > CLOSE
    product = fit.inputs.factors * feeding
    yield from unlike_one(product, fit.inputs.energy * power * close, INPUT, "input", tensor)


def unlike_norm(fit: FactorFit, ours: Tensor, theirs: Tensor, name: str) -> Findings:
    """A finding if a norm neither equals its source nor cancels the factors of the inputs that it feeds."""
    feeding = ours / away_from_zero(theirs)
    findings = list(unlike_inputs(fit, feeding, theirs.square(), name))
    yield from findings
    close = fit.inputs.cosines.abs() > CLOSE
    if not findings and close.any() and not torch.equal(ours, theirs):
        typical = (fit.inputs.factors * feeding - 1).abs()[close].median().item()
        if typical > TYPICAL:
            value = f"the median input is off the source by {typical:.0%}"
            yield error(value, f"at most {TYPICAL:.0%}", WRONG, tensor=name)


def per_input(candidate: Candidate, rows: Tensor, inputs: int) -> Tensor:
    """Expand one number per row of the feeder to one per input. A value head feeds several query heads."""
    kv_heads = candidate.provenance.heads[1]
    return rows if len(rows) == inputs else rows.view(kv_heads, 1, -1).expand(-1, inputs // len(rows), -1).reshape(-1)


def norm_weight(checkpoint: Checkpoint | None, name: str, feeder: Feeder) -> Tensor | None:
    """The numbers that a norm multiplies by; None if the checkpoint has no tensor `name`."""
    if checkpoint is None or name not in checkpoint.tensors:
        return None
    return checkpoint.tensor(name).float() + feeder.offset


def bias_findings(candidate: Candidate, name: str, fit: FactorFit, rows: int) -> Findings:
    """T14 for the bias of a feeder: its last `rows` numbers cancel the factors of the inputs, as its rows do."""
    source = candidate.compared_source
    if source is None or name not in candidate.checkpoint.tensors or name not in source.tensors:
        return
    ours, theirs = (one.tensor(name).float() for one in (candidate.checkpoint, source))
    if ours.shape == theirs.shape:
        inputs = len(fit.inputs.factors)
        feeding = per_input(candidate, ours[-rows:] / away_from_zero(theirs[-rows:]), inputs)
        yield from unlike_inputs(fit, feeding, per_input(candidate, theirs[-rows:].square(), inputs), name)
