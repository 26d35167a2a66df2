"""The validator: a checkpoint against everything that a loader would trip over, and what it would load in silence.

Rules are functions in a table, from a Subject to findings; this file opens the checkpoint and runs them. C rules read
config.json, T rules the tensors, TP the ranks, O what older loaders need, D the digests taken at writing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.checkpoint.check import config_rules as check_config
from compress.checkpoint.check import fidelity_rules as check_meaning
from compress.checkpoint.check import method_rules as check_methods
from compress.checkpoint.check import tensor_rules as check_tensors
from compress.checkpoint.check import value_rules as check_bodies
from compress.checkpoint.check.subject import EMPTY, Finding, Findings, Subject, error, make_table, warning
from compress.checkpoint.read import INDEX, Checkpoint, read_header, read_json, weight_files
from compress.core.errors import QCompressError

Row = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """A rule's id in the loading contract, the function that finds where it is broken, and whether that needs to know
    which modules the model has."""

    id: str
    find: Callable[[Subject], Findings]
    modules: bool = True


RULES = (
    Rule("C1", check_config.known_method),
    Rule("C2", check_config.known_model),
    Rule("C3", check_config.no_second_opinion, modules=False),
    Rule("C4", check_methods.awq_keys, modules=False),
    Rule("C5", check_methods.gptq_keys, modules=False),
    Rule("C6", check_methods.ct_keys),
    Rule("C7", check_methods.skip_list),
    Rule("C8", check_methods.rules_by_name),
    Rule("C8", check_methods.groups_by_name),
    Rule("C9", check_config.one_tie, modules=False),
    Rule("C9", check_config.ends_agree),
    Rule("S10", check_config.ignored_keys, modules=False),
    Rule("O1", check_config.rope_in_both, modules=False),
    Rule("O2", check_config.dtype_in_both, modules=False),
    Rule("O3", check_config.tokenizer_in_both, modules=False),
    Rule("T1", check_tensors.all_parts),
    Rule("T2", check_tensors.dtypes),
    Rule("T3", check_tensors.shapes),
    Rule("T4", check_tensors.whole_groups),
    Rule("T5", check_bodies.gptq_order),
    Rule("T6", check_tensors.awq_zeros),
    Rule("T7", check_bodies.scales_sane),
    Rule("T8", check_tensors.fused_alike),
    Rule("T10", check_tensors.plain_parameters),
    Rule("T10", check_bodies.finite_parameters),
    Rule("T11", check_tensors.known_names),
    Rule("T12", check_meaning.codes_mean_weights),
    Rule("TP", check_tensors.ranks),
    Rule("D1", check_bodies.same_as_written, modules=False),
    Rule("D2", check_bodies.config_as_written, modules=False),
)


def check_checkpoint(path: str | Path, *, tp: int = 1, source: str | Path | None = None) -> list[Row]:
    """Every broken rule of a checkpoint as a row: rule, tensor or key or file, value, expected, consequence, level.

    `tp` asks for a number of ranks, `source` names the plain checkpoint it was made from; without one, that of the
    checkpoint's own record is used where it still lies there unchanged. Levels are "error" and "warning".
    QCompressError for a directory that is no checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        raise QCompressError(f"{path}: no such directory; give a folder with config.json and *.safetensors")
    config = read_json(path / "config.json")
    if not any(path.glob("*.safetensors")) and not (path / INDEX).is_file():
        weight_files(path)  # tells what is wrong
    rows = [stamp("T9", finding) for finding in files_whole(path)]
    if any(row["level"] == "error" for row in rows):
        return rows + [stamp("T1", finding) for finding in names_once(path)]
    rules: tuple[Rule, ...] = RULES
    table = EMPTY
    try:
        table = make_table(config)
    except QCompressError as problem:
        stop = "transformers can make no causal language model of it, and vLLM stops"
        rows.append(stamp("C2", error(problem.message, "a known architecture", stop, file="config.json")))
        rules = tuple(rule for rule in RULES if not rule.modules)
    checkpoint = Checkpoint(path)
    subject = Subject(checkpoint, table, tp, find_source(checkpoint, source))
    return rows + [stamp(rule.id, finding) for rule in rules for finding in findings(rule, subject)]


def stamp(rule: str, finding: Finding) -> Row:
    where = [key for key in ("tensor", "key", "file") if key in finding]
    return {"rule": rule, **{key: finding[key] for key in where}, **finding}


def findings(rule: Rule, subject: Subject) -> Findings:
    """What a rule finds; a file that it cannot read is a finding too."""
    try:
        yield from rule.find(subject)
    except QCompressError as problem:
        yield error(problem.message, "a readable file", "loaders stop at it", file=subject.checkpoint.path.name)


def files_whole(path: Path) -> Findings:
    """T9: every weight file is whole and inside the directory, and the index and the files tell the same names."""
    index, files = path / INDEX, sorted(path.glob("*.safetensors"))
    try:
        Checkpoint(path)
    except QCompressError as problem:
        stop = "loaders stop, or read what does not belong to it"
        yield error(problem.message, "whole files inside that the index agrees with", stop, file=path.name)
        return
    listed: dict[str, str] = read_json(index)["weight_map"] if index.is_file() else {}
    if not listed and [file.name for file in files] != ["model.safetensors"]:
        names = ", ".join(file.name for file in files[:3])
        stop = "transformers finds no weights; vLLM loads whatever lies there"
        yield error(names, f"model.safetensors alone, or {INDEX}", stop, file=INDEX)
    for file in files if listed else ():
        unlisted = sorted(read_header(file).keys() - {name for name, place in listed.items() if place == file.name})
        if unlisted:
            told = f"{file.name} holds {unlisted[0]}" + (f" and {len(unlisted) - 1} more" * (len(unlisted) > 1))
            silent = "transformers leaves them unset, vLLM counts them when it looks for quantized modules (silent)"
            yield error(told, "every tensor in the index", silent, file=INDEX)
        elif file.name not in listed.values():
            yield warning(file.name, "only files of the index", "nothing: it is empty", file=file.name)
    for file in sorted(path.glob("*model*.bin")):
        yield warning(file.name, "safetensors alone", "loaders that prefer pickles load the other one", file=file.name)


def names_once(path: Path) -> Iterator[Finding]:
    """T1: no tensor is in two files."""
    seen: dict[str, str] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            names = read_header(file)
        except QCompressError:
            continue  # T9
        for name in names:
            if name in seen:
                yield error(f"{seen[name]} and {file.name}", "one file", "vLLM keeps whichever comes last", tensor=name)
            seen[name] = file.name


def find_source(checkpoint: Checkpoint, given: str | Path | None) -> Checkpoint | None:
    """The checkpoint to compare with: the given one, else the record's when it is still what it was, else None."""
    if given is not None:
        return Checkpoint(given)
    noted = Checkpoint(checkpoint.path).record.get("source")
    if not isinstance(noted, dict) or not isinstance(noted.get("path"), str) or not Path(noted["path"]).is_dir():
        return None
    try:
        return Checkpoint(noted["path"]) if Checkpoint(Path(noted["path"])).digest == noted.get("digest") else None
    except QCompressError:
        return None
