"""Rules D1–D4: tensors, config.json and files are those that were written, by the digests of qcompress.sha256.json.

Each key of config.json and each tensor has its own digest. So a file whose values are unchanged, but formatted or
ordered differently, gives only a warning. Checkpoints of qcompress's first version have no digests of other files.
"""

from fnmatch import fnmatch

from compress.checkpoint.arrays import stored_digest
from compress.checkpoint.check.candidate import Candidate, Findings, error, short, warning
from compress.checkpoint.read import INDEX, RECORD
from compress.checkpoint.record import (
    DIGESTS,
    FIRST_PARTS,
    config_digests,
    file_digest,
    published_files,
    shape_texts,
)

WRITTEN = f"the digest in {DIGESTS}"
CHANGED = "differs from what was written"
OTHER_OUTPUTS = "vLLM loads it, and its outputs differ from the measured ones (no error)"
CONSEQUENCES = {  # file name or pattern -> what a changed, missing or added file leads to
    "tokenizer.json": "vLLM splits text into other tokens, and the model answers wrongly (no error), or vLLM stops",
    "tokenizer.model": "loaders without tokenizer.json split text into other tokens (no error)",
    "tokenizer_config.json": "vLLM uses other special tokens or another template (no error), or stops",
    "special_tokens_map.json": "transformers 4 uses other special tokens (no error)",
    "added_tokens.json": "transformers 4 uses other added tokens (no error)",
    "vocab.json": "loaders without tokenizer.json split text into other tokens (no error)",
    "merges.txt": "loaders without tokenizer.json split text into other tokens (no error)",
    "chat_template*": "vLLM writes other prompts than the model was trained on, and it answers worse (no error)",
    "additional_chat_templates/*": "transformers offers other chat templates (no error)",
    "generation_config.json": "vLLM stops answers at other tokens or samples in another way (no error)",
    "*.safetensors": "vLLM loads every weight file of the folder",
    INDEX: "loaders look for tensors in other files and stop, or load other tensors",
    "*.bin": "some loaders load this file in place of the safetensors files",
    "*.py": "a loader that trusts remote code runs it",
    "*config.json": "loaders may take settings from it",
    RECORD: "qcompress reports other settings and another source than those of this checkpoint",
}
HARMLESS = "runtimes do not read this file"


def tensors_match_digests(candidate: Candidate) -> Findings:
    """D1: every tensor has the bytes, the dtype and the shape that were written."""
    digests = candidate.digests
    if digests is None:
        return
    stored, tensors = digests["tensors"], candidate.checkpoint.stored
    shapes = shape_texts({name: (info.dtype, info.shape) for name, info in tensors.items()})
    for name in sorted(stored.keys() - tensors.keys()):
        yield error("missing", "as written", OTHER_OUTPUTS, tensor=name)
    for name in sorted(tensors.keys() - stored.keys()):
        yield error("present", "absent, as written", OTHER_OUTPUTS, tensor=name)
    for name in sorted(tensors.keys() & stored.keys()):
        shape = digests.get("shapes", {}).get(name, shapes[name])
        if shape != shapes[name]:
            yield error(shapes[name], f"{short(shape)}, as written", OTHER_OUTPUTS, tensor=name)
        elif stored_digest(name, tensors[name]) != stored[name]:
            yield error(CHANGED, WRITTEN, OTHER_OUTPUTS, tensor=name)


def config_matches_digests(candidate: Candidate) -> Findings:
    """D2: every key of config.json has the value that was written."""
    digests = candidate.digests
    if digests is None:
        return
    stored, current = digests["config"], config_digests(candidate.checkpoint.stored_config)
    for key in sorted(stored.keys() | current.keys()):
        if stored.get(key) != current.get(key):
            value = "missing" if key not in current else "new" if key not in stored else CHANGED
            yield error(value, WRITTEN, "loaders build another model than the one measured", key=key)


def files_match_digests(candidate: Candidate) -> Findings:
    """D3: every published file is unchanged, and no file was added."""
    folder = candidate.checkpoint.path
    digests = candidate.digests
    if digests is None or "files" not in digests:
        return
    stored, files = digests["files"], published_files(folder)
    for name in sorted(stored.keys() - files.keys()):
        yield file_finding(name, "missing", "as written")
    for name in sorted(files.keys() - stored.keys()):
        yield file_finding(name, "added", "absent, as written")
    for name in sorted(files.keys() & stored.keys()):
        if file_digest(files[name]) != stored[name]:
            if name == "config.json" and config_digests(candidate.checkpoint.stored_config) != digests["config"]:
                continue  # D2
            if has_own_digests(name):
                yield warning("stored in another form", WRITTEN, "none: D1 and D2 compare its values", file=name)
            else:
                yield file_finding(name, CHANGED, WRITTEN)


def has_own_digests(name: str) -> bool:
    """Whether the values in a file have digests of their own: config.json and the weight files."""
    return name == "config.json" or name.endswith(".safetensors")


def file_finding(name: str, value: str, expected: str) -> dict[str, str]:
    """An error for a file that loaders read, a warning for another one."""
    consequence = next((text for pattern, text in CONSEQUENCES.items() if fnmatch(name, pattern)), None)
    if consequence is None:
        return warning(value, expected, HARMLESS, file=name)
    return error(value, expected, consequence, file=name)


def digests_complete(candidate: Candidate) -> Findings:
    """D4: the digest file has every part that the record lists, so that no change goes unnoticed."""
    record = candidate.checkpoint.record
    if not record:
        return
    listed = record.get("digests")
    expected = [str(part) for part in listed] if isinstance(listed, list) else list(FIRST_PARTS)
    digests = candidate.digests or {}
    missing = [part for part in expected if part not in digests]
    row = error if candidate.source or digests else warning
    if missing:
        unseen = "qcompress cannot detect changes; vLLM would load changed files without an error"
        yield row(f"no {', '.join(missing)}", "all digests that the record lists", unseen, file=DIGESTS)
