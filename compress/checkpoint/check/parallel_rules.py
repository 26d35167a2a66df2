"""Rule TP: the weights divide over the ranks of tensor parallelism.

`parallel_findings` needs config.json and the schemes of the packed modules, so predictions for planned checkpoints use
it too.
"""

from collections.abc import Mapping
from typing import Any

from compress.checkpoint.check.candidate import Candidate, Finding, Findings, error, warning
from compress.checkpoint.check.table import Table
from compress.core.scheme import Scheme
from compress.model.shapes import Linear


def tensor_parallel(candidate: Candidate) -> Findings:
    """TP: heads, groups, words and vocabulary can be divided over `tensor_parallel_size` ranks."""
    if candidate.tensor_parallel_size == 1:
        return
    schemes = {name: scheme for name, scheme in candidate.schemes.items() if scheme}
    one_group = candidate.format is not None and candidate.format.name == "awq"
    yield from parallel_findings(
        candidate.config, candidate.table, schemes, candidate.tensor_parallel_size, scales_per_group=one_group
    )
    if not candidate.table.row_parallel:
        yield warning(
            "unknown family",
            "a supported family",
            "qcompress cannot check which linears are split along their inputs",
            key="model_type",
        )


def parallel_findings(
    config: dict[str, Any], table: Table, schemes: Mapping[str, Scheme], ranks: int, *, scales_per_group: bool
) -> Findings:
    """What does not divide over `ranks`. With `scales_per_group`, vLLM has no scales for one group per output (awq)."""
    heads = config.get("num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or heads
    if isinstance(heads, int) and heads % ranks:
        yield error(heads, f"a multiple of {ranks}", "vLLM stops: heads do not divide", key="num_attention_heads")
    if isinstance(kv_heads, int) and kv_heads % ranks and ranks % kv_heads:
        yield error(kv_heads, f"a multiple or divisor of {ranks}", "vLLM stops", key="num_key_value_heads")
    padded = -(-table.vocabulary.out // 64) * 64
    if padded % ranks:
        yield error(padded, f"a multiple of {ranks}", "vLLM stops: the vocabulary does not divide", key="vocab_size")
    replicated = isinstance(kv_heads, int) and kv_heads < ranks
    for name, scheme in schemes.items():
        matrix = table.linears.get(name, table.vocabulary)
        if name in table.row_parallel:
            yield from input_slices(name, matrix, scheme, ranks, scales_per_group=scales_per_group)
        elif not (replicated and name.endswith((".k_proj", ".v_proj"))):
            yield from output_slices(name, matrix, scheme, ranks)


def input_slices(name: str, matrix: Linear, scheme: Scheme, ranks: int, *, scales_per_group: bool) -> Findings:
    """TP for a packed module that is split along its inputs: each rank needs whole groups and words."""
    share, one_group = matrix.inn // ranks, scheme.group_size == matrix.inn
    if one_group and scales_per_group:
        yield error("one group per output", "groups", "vLLM stops: it allocates no scales", tensor=name)
    elif matrix.inn % ranks or share % (32 // scheme.bits) or (not one_group and share % scheme.group_size):
        expected = f"a multiple of group_size {scheme.group_size}"
        yield error(f"{matrix.inn}/{ranks} = {matrix.inn / ranks:g} inputs", expected, "vLLM stops", tensor=name)


def output_slices(name: str, matrix: Linear, scheme: Scheme, ranks: int) -> Findings:
    """TP for a packed module that is split along its outputs: each rank needs whole words."""
    per_word = 32 // scheme.bits
    if matrix.out % (ranks * per_word):
        value = f"{matrix.out}/{ranks} = {matrix.out / ranks:g} outputs"
        stop = "vLLM stops: the outputs do not divide into whole words"
        yield error(value, f"a multiple of {per_word}", stop, tensor=name)


def split_fault(config: dict[str, Any], table: Table, schemes: Mapping[str, Scheme], ranks: int) -> str | None:
    """The first finding of `parallel_findings` in words, or None if the model divides over `ranks` GPUs."""
    per_group = config.get("quantization_config", {}).get("quant_method") == "awq"
    first: Finding | None = next(parallel_findings(config, table, schemes, ranks, scales_per_group=per_group), None)
    if first is None:
        return None
    place = first.get("tensor") or first.get("key")
    return f"{place}: {first['value']} is not {first['expected']}, so {ranks} GPUs cannot share the model"
