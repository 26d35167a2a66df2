"""The validator: check a checkpoint against every rule that makes a loader stop or compute wrong text.

Each rule is a function from a Candidate to findings. This file opens the checkpoint and runs all rules:

    F   what every command checks first             P   tokenizer, chat template, generation_config.json
    C   config.json                                 D   the digests stored with the checkpoint
    T   tensors                                     O   older loaders
    TP  tensor parallelism                          S   keys that change the weights
    R   what another runtime than vLLM reads
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from compress.checkpoint.check import code_rules as code_rules
from compress.checkpoint.check import config_rules as config_rules
from compress.checkpoint.check import digest_rules as digest_rules
from compress.checkpoint.check import door_rules as door_rules
from compress.checkpoint.check import loader_rules as loader_rules
from compress.checkpoint.check import method_rules as method_rules
from compress.checkpoint.check import parallel_rules as parallel_rules
from compress.checkpoint.check import source_rules as source_rules
from compress.checkpoint.check import template_rules as template_rules
from compress.checkpoint.check import tensor_rules as tensor_rules
from compress.checkpoint.check import tokenizer_rules as tokenizer_rules
from compress.checkpoint.check import unpacked_rules as unpacked_rules
from compress.checkpoint.check import value_rules as value_rules
from compress.checkpoint.check.candidate import Candidate, Finding, Findings, error, warning
from compress.checkpoint.check.compared import comparisons
from compress.checkpoint.check.loaders import LOADERS, RUNTIMES, VLLM, Loader
from compress.checkpoint.check.table import EMPTY_TABLE, make_table
from compress.checkpoint.padding import SIZE, pad_mlp
from compress.checkpoint.read import (
    INDEX,
    Checkpoint,
    PathOrCheckpoint,
    open_checkpoint,
    read_header,
    read_json,
    weight_files,
)
from compress.core.errors import GateFailure, QCompressError
from compress.core.report import Report, Row, silent


@dataclass(frozen=True)
class Rule:
    """A rule: its id, its function, and whether the function needs the model's modules (`modules`)."""

    id: str
    find: Callable[[Candidate], Findings]
    modules: bool = True


def codes_match_source(candidate: Candidate) -> Findings:
    """T12: with a source, packed weights match it."""
    if candidate.source is not None:  # the arithmetic needs torch, which is imported only then
        from compress.checkpoint.check import fidelity_rules

        yield from fidelity_rules.codes_match_source(candidate)


def factors_match_source(candidate: Candidate) -> Findings:
    """T14: no linear, output, input or group is negated or scaled against the source, unless its feeder cancels it."""
    if candidate.compared_source is not None and candidate.format is not None:
        from compress.checkpoint.check import factor_rules

        yield from factor_rules.factors_match_source(candidate)


RULES = (
    Rule("F1", door_rules.passes_door, modules=False),
    Rule("C1", config_rules.supported_method),
    Rule("C2", config_rules.supported_model),
    Rule("C3", config_rules.single_quantization_config, modules=False),
    Rule("C4", method_rules.awq_keys, modules=False),
    Rule("C5", method_rules.gptq_keys, modules=False),
    Rule("C6", method_rules.ct_keys),
    Rule("C7", method_rules.skip_list),
    Rule("C8", method_rules.rules_by_name),
    Rule("C8", method_rules.groups_by_name),
    Rule("C9", config_rules.consistent_tie_flags, modules=False),
    Rule("C9", config_rules.tie_flag_matches_tensors),
    Rule("C10", source_rules.config_matches_source),
    Rule("S10", config_rules.no_unread_keys, modules=False),
    Rule("O1", config_rules.rope_in_both_spellings, modules=False),
    Rule("O2", config_rules.dtype_in_both_spellings, modules=False),
    Rule("O3", config_rules.tokenizer_for_both_versions, modules=False),
    Rule("T1", tensor_rules.complete_modules),
    Rule("T2", tensor_rules.dtypes),
    Rule("T3", tensor_rules.shapes),
    Rule("T4", tensor_rules.divisible_shapes),
    Rule("T5", value_rules.gptq_order),
    Rule("T6", tensor_rules.awq_zeros),
    Rule("T7", value_rules.valid_scales),
    Rule("T8", tensor_rules.fused_layers_match),
    Rule("T10", tensor_rules.unpacked_parameters),
    Rule("T10", value_rules.finite_parameters),
    Rule("T11", tensor_rules.no_unknown_tensors),
    Rule("T12", code_rules.plausible_codes),
    Rule("T12", codes_match_source),
    Rule("T13", unpacked_rules.tensors_match_source),
    Rule("T14", factors_match_source),
    Rule("TP", parallel_rules.tensor_parallel),
    Rule("P1", tokenizer_rules.readable_files, modules=False),
    Rule("P2", tokenizer_rules.ids_fit_vocabulary, modules=False),
    Rule("P3", tokenizer_rules.files_agree, modules=False),
    Rule("P4", template_rules.template_renders, modules=False),
    Rule("P5", template_rules.valid_generation, modules=False),
    Rule("P6", source_rules.prompts_match_source, modules=False),
    Rule("D1", digest_rules.tensors_match_digests, modules=False),
    Rule("D2", digest_rules.config_matches_digests, modules=False),
    Rule("D3", digest_rules.files_match_digests, modules=False),
    Rule("D4", digest_rules.digests_complete, modules=False),
)


GENERAL = {*("F1", "C10", "T1", "T2", "T3", "T6", "T7", "T10", "T12", "T13", "T14"), *("P1", "P2", "P3", "P4")}
GENERAL |= {*("P5", "P6", "D1", "D2", "D3", "D4")}  # rules whose faults every runtime shares


def bound(find: Callable[[Candidate, Loader], Findings], loader: Loader) -> Callable[[Candidate], Findings]:
    """A rule about a runtime as a rule about that one."""
    return lambda candidate: find(candidate, loader)


def rules_for(runs_in: str) -> tuple[Rule, ...]:
    """The rules for a runtime of RUNTIMES. Raises QCompressError if it is unknown."""
    if runs_in == VLLM:
        return RULES
    if runs_in not in LOADERS:
        raise QCompressError(f"--runs-in {runs_in}: unknown runtime; use {', '.join(RUNTIMES)}")
    loader = LOADERS[runs_in]
    special = [Rule(id, bound(find, loader)) for id, find in loader_rules.RULES]
    return (*special, *(rule for rule in RULES if rule.id in GENERAL))


def check_checkpoint(
    model: PathOrCheckpoint,
    *,
    tensor_parallel_size: int = 1,
    source: PathOrCheckpoint | None = None,
    runs_in: str = VLLM,
    report: Report = silent,
) -> list[Row]:
    """One row per broken rule, with its id, its tensor, key or file, and value, expected, consequence and level.

    `tensor_parallel_size` is the number of ranks that will serve the model. `source` is the 16-bit checkpoint that
    `model` was quantized from. Without `source`, the source in the record of `model` is used if its digest is
    unchanged. `runs_in` is a runtime of RUNTIMES. The rules of vLLM's loader apply to "vllm" only, and an error of
    another runtime may have a `cure`. The level is "error" or "warning". `report` receives a row {"compared": sentence}
    per comparison. Raises QCompressError if `model` is not a checkpoint.
    """
    path = model.path if isinstance(model, Checkpoint) else Path(model)
    if not path.is_dir():
        raise QCompressError(f"{path}: no such directory; give a folder with config.json and *.safetensors")
    read_json(path / "config.json")
    if not any(path.glob("*.safetensors")) and not (path / INDEX).is_file():
        weight_files(path)  # raises the error that explains what is missing
    try:
        checkpoint = model if isinstance(model, Checkpoint) else Checkpoint(path)
    except QCompressError as problem:
        stop = "loaders stop, or read the bytes of another tensor"
        unreadable = error(problem.message, "complete files that match the index", stop, file=path.name)
        return [stamp("T9", unreadable), *(stamp("T1", finding) for finding in single_names(path))]
    rows = [stamp("T9", finding) for finding in complete_files(checkpoint)]
    if any(row["level"] == "error" for row in rows):
        return rows + [stamp("T1", finding) for finding in single_names(path)]
    rules = rules_for(runs_in)
    table = EMPTY_TABLE
    try:
        table = make_table(checkpoint.config)
    except QCompressError as problem:
        stop = "transformers cannot build a causal language model from it, and vLLM stops"
        rows.append(stamp("C2", error(problem.message, "a supported architecture", stop, file="config.json")))
        rules = tuple(rule for rule in rules if not rule.modules)
    candidate = Candidate(checkpoint, table, tensor_parallel_size, find_source(checkpoint, source), source is not None)
    rows += [stamp(rule.id, finding) for rule in rules for finding in findings(rule, candidate)]
    for sentence in comparisons(candidate, rows):
        report({"compared": sentence})
    return rows


def check_written(folder: Path, copied: Checkpoint, source: Checkpoint | None = None) -> None:
    """Raises GateFailure if a checkpoint breaks a rule before it is published. `source` is that of `check_checkpoint`.

    A fault in the tokenizer's files does not count if `copied`, from which they were copied, has the same fault.
    """
    errors = error_rows(check_checkpoint(folder, source=source))
    if any(map(prompt_fault, errors)):
        faults = {prompt_fault(row) for row in prompt_findings(copied)} - {None}
        errors = [row for row in errors if prompt_fault(row) not in faults]
    if errors:
        raise GateFailure(f"{folder}: the checkpoint was removed: {describe_errors(errors)}")


def error_rows(rows: list[Row]) -> list[Row]:
    """The rows of the level "error"."""
    return [row for row in rows if row["level"] == "error"]


def describe_errors(errors: list[Row]) -> str:
    """The number of errors, and the first one in words."""
    first = errors[0]
    place = "".join(f" {first[key]}" for key in ("tensor", "key", "file") if key in first)
    count = "1 error is" if len(errors) == 1 else f"{len(errors)} errors, the first is"
    return f"{count} {first['rule']}{place}: {first['value']} (expected: {first['expected']})"


def prompt_fault(row: Row) -> tuple[str, str] | None:
    """The rule, and the file or key, of a fault in the tokenizer's files; None for a fault elsewhere."""
    return (row["rule"], str(row.get("key", row.get("file")))) if row["rule"].startswith("P") else None


def prompt_findings(checkpoint: Checkpoint) -> list[Row]:
    """The rows of the P rules alone: the tokenizer's files, the chat template and generation_config.json."""
    candidate = Candidate(checkpoint, EMPTY_TABLE, source=find_source(checkpoint, None))
    rules = [rule for rule in RULES if rule.id.startswith("P")]
    return [stamp(rule.id, finding) for rule in rules for finding in findings(rule, candidate)]


def stamp(rule: str, finding: Finding) -> Row:
    """The row of a finding. Its first keys are the rule's id and the tensor, key or file."""
    where = [key for key in ("tensor", "key", "file") if key in finding]
    return {"rule": rule, **{key: finding[key] for key in where}, **finding}


def findings(rule: Rule, candidate: Candidate) -> Findings:
    """The findings of a rule. An unreadable file is a finding too."""
    try:
        yield from rule.find(candidate)
    except QCompressError as problem:
        yield error(
            problem.message, "a readable file", "loaders stop at this file", file=candidate.checkpoint.path.name
        )


def complete_files(checkpoint: Checkpoint) -> Findings:
    """T9: the index and the weight files list the same tensors, and no other weights lie beside them."""
    path = checkpoint.path
    index, files = path / INDEX, sorted(path.glob("*.safetensors"))
    listed: dict[str, str] = read_json(index)["weight_map"] if index.is_file() else {}
    if not listed and [file.name for file in files] != ["model.safetensors"]:
        names = ", ".join(file.name for file in files[:3])
        stop = "transformers finds no weights; vLLM loads every file in the folder"
        yield error(names, f"model.safetensors alone, or {INDEX}", stop, file=INDEX)
    for file in files if listed else ():
        unlisted = sorted(read_header(file).keys() - {name for name, place in listed.items() if place == file.name})
        if unlisted:
            value = f"{file.name} holds {unlisted[0]}" + (f" and {len(unlisted) - 1} more" * (len(unlisted) > 1))
            silent = "transformers ignores them; vLLM counts them in its search for quantized modules (no error)"
            yield error(value, "every tensor in the index", silent, file=INDEX)
        elif file.name not in listed.values():
            yield warning(file.name, "only files of the index", "none: the file is empty", file=file.name)
    for file in sorted(path.glob("*model*.bin")):
        yield warning(file.name, "safetensors only", "some loaders load this file instead", file=file.name)


def single_names(path: Path) -> Iterator[Finding]:
    """T1: no tensor is in two files."""
    seen: dict[str, str] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            names = read_header(file)
        except QCompressError:
            continue  # T9
        for name in names:
            if name in seen:
                yield error(f"{seen[name]} and {file.name}", "one file", "vLLM uses the last one", tensor=name)
            seen[name] = file.name


def find_source(checkpoint: Checkpoint, source: PathOrCheckpoint | None) -> Checkpoint | None:
    """The checkpoint to compare weights with: `source`, else the record's if its digest is unchanged, else None.

    If the record names several GPUs, the MLPs may have zeros that the source lacks. The source then gets them too.
    """
    original = recorded_source(checkpoint) if source is None else open_checkpoint(source)
    settings = checkpoint.record.get("settings")
    ranks = settings.get("tensor_parallel_size") if isinstance(settings, dict) else None
    size = checkpoint.config.get(SIZE)
    if original is None or ranks in (None, 1) or not isinstance(size, int) or size <= original.config.get(SIZE, size):
        return original
    return pad_mlp(original, size)


def recorded_source(checkpoint: Checkpoint) -> Checkpoint | None:
    """The source in the record. None if its digest has changed."""
    origin = checkpoint.record.get("source")
    if not isinstance(origin, dict) or not isinstance(origin.get("path"), str) or not Path(origin["path"]).is_dir():
        return None
    try:
        recorded = Checkpoint(origin["path"])
        return recorded if recorded.digest == origin.get("digest") else None
    except QCompressError:
        return None
