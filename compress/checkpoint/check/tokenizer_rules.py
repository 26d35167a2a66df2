"""Rules P1–P3: the tokenizer files can be read, their ids fit the vocabulary, and they agree with one another.

Every rule is a generator: it takes a Candidate and yields its findings. A file that cannot be read is reported by P1
alone; the other rules then leave it out.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from compress.checkpoint.check.candidate import ABSENT, Candidate, Findings, error, short, warning
from compress.checkpoint.check.prompt_files import (
    ADDED,
    GENERATION,
    JSON_FILES,
    MERGES,
    SETTINGS,
    SPECIAL_MAP,
    TEXT_FILES,
    TOKENIZER,
    VOCABULARY,
    PromptFiles,
    merge_lines,
    merge_pairs,
    token_text,
)
from compress.checkpoint.door.fault import Faults
from compress.checkpoint.door.tokenizer import id_faults
from compress.core.errors import QCompressError

MOST_UNREACHABLE = 0.001  # share of a vocabulary; 0 in the BPE tokenizers of the supported families
NO_ROW = "vLLM looks up a row that the embedding lacks: it stops, or reads other memory"
OTHER_TOKENS = "vLLM splits text into other tokens, and the model answers wrongly (no error)"
TYPES: dict[str, type | tuple[type, ...]] = {  # of keys that loaders read in tokenizer_config.json
    **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), (str, dict)),
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces"), bool),
    "added_tokens_decoder": dict,
    "chat_template": (str, list),
    "model_max_length": (int, float),
    "tokenizer_class": str,
    "padding_side": str,
    "auto_map": dict,
}


def readable_files(candidate: Candidate) -> Findings:
    """P1: the tokenizer's files, the chat template and generation_config.json can be read and loaded."""
    files, stop = candidate.prompt, "vLLM stops when it loads the tokenizer"
    for name in JSON_FILES:
        ignored = "vLLM ignores the file and samples with other settings (no error); transformers stops"
        yield from problems(name, files.read, name, ignored if name == GENERATION else stop)
    for name in TEXT_FILES:
        yield from problems(name, files.text, name, stop)
    if not any(problems(TOKENIZER, files.read, TOKENIZER, stop)):
        yield from problems(TOKENIZER, lambda _: files.backend, TOKENIZER, stop)
    for key, kinds in TYPES.items() if readable(files, SETTINGS) else ():
        value = files.settings.get(key)
        if value is not None and not isinstance(value, kinds):
            wrong = "vLLM stops when it loads the tokenizer, or ignores the value"
            yield error(short(value), "a value of the right type", wrong, key=f"{SETTINGS}: {key}")


def problems(name: str, read: Any, argument: str, consequence: str) -> Findings:
    """A finding if `read(argument)` fails. The finding names the file `name`."""
    try:
        read(argument)
    except QCompressError as problem:
        yield error(problem.message, "a readable file", consequence, file=name)


def readable(files: PromptFiles, name: str) -> bool:
    """Whether a JSON file exists and can be read; for tokenizer.json also whether it can be loaded."""
    if not files.has(name):
        return False
    reads = [lambda: files.read(name), *([lambda: files.backend] if name == TOKENIZER else [])]
    return not any(finding for read in reads for finding in problems(name, lambda _, read=read: read(), name, ""))


def ids_fit_vocabulary(candidate: Candidate) -> Findings:
    """P2: every token has one id below vocab_size, every id has a token, and merges produce the vocabulary."""
    files = candidate.prompt
    if not readable(files, TOKENIZER):
        return
    ids = files.ids
    faults = list(rowless_ids(candidate))
    if faults:
        more = f", and {len(faults) - 1} more" * (len(faults) > 1)
        yield error(f"{faults[0].text}{more}", "a row for every token", NO_ROW, file=TOKENIZER)
    yield from shared_ids(files)
    missing = set(range(max(ids.values(), default=-1) + 1)) - set(ids.values())
    if missing:
        value = f"no token has id {min(missing)}" + (f", and {len(missing) - 1} more ids" * (len(missing) > 1))
        nothing = "vLLM prints nothing for such an id; other tools pad the vocabulary or stop"
        yield warning(value, f"a token for every id up to {max(ids.values())}", nothing, file=TOKENIZER)
    yield from unreachable_tokens(files)


def rowless_ids(candidate: Candidate) -> Faults:
    """Tokens that texts can contain and that have no row in the embedding."""
    files, rows = candidate.prompt, candidate.checkpoint.vocabulary_rows
    if rows is None or (files.has(SETTINGS) and not readable(files, SETTINGS)):
        return
    added = {str(token.get("content")): bool(token.get("special")) for token in added_tokens(files)}
    roles = [files.ids.get(token) for token in files.specials.values()]
    yield from id_faults(files.ids, rows, added, roles, files.template or "")


def vocabulary_size(config: dict[str, Any]) -> int | None:
    """vocab_size of config.json or of its text_config; None if it is missing."""
    text = config.get("text_config")
    value = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def shared_ids(files: PromptFiles) -> Findings:
    """P2: no two tokens share an id, and added tokens have the id that tokenizer.json lists."""
    listed = (files.tokenizer.get("model") or {}).get("vocab")
    vocabulary = listed if isinstance(listed, dict) else {}
    counts = Counter(vocabulary.values())
    double = [number for number, count in counts.items() if count > 1]
    if double:
        tokens = [token for token, number in vocabulary.items() if number == double[0]]
        yield error(f"id {double[0]} of {short(tokens)}", "one token for each id", OTHER_TOKENS, file=TOKENIZER)
    by_id: dict[Any, str] = {}
    for token in added_tokens(files):
        content, number = token.get("content"), token.get("id")
        actual = files.ids.get(str(content))
        if actual != number:
            value = f"{short(content)!r} is listed with id {number}, but has id {actual}"
            yield error(value, "one id", OTHER_TOKENS, file=TOKENIZER)
        if number in by_id:
            value = f"id {number} of {by_id[number]!r} and {short(content)!r}"
            yield error(value, "one token for each id", OTHER_TOKENS, file=TOKENIZER)
        by_id[number] = short(content)


def added_tokens(files: PromptFiles) -> list[dict[str, Any]]:
    listed = files.tokenizer.get("added_tokens")
    return [token for token in listed if isinstance(token, dict)] if isinstance(listed, list) else []


def unreachable_tokens(files: PromptFiles) -> Findings:
    """P2: each token of a BPE vocabulary is the result of a merge, a single character, a byte or an added token."""
    model = files.tokenizer.get("model") or {}
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return
    vocabulary, pairs = model["vocab"], merge_pairs(model.get("merges"))
    reachable = {left + right for left, right in pairs} | {str(token.get("content")) for token in added_tokens(files)}
    lost = [t for t in vocabulary if len(t) > 1 and t not in reachable and not (t[:3] == "<0x" and len(t) == 6)]
    if len(lost) > max(1, MOST_UNREACHABLE * len(vocabulary)):
        value = f"{len(lost)} of {len(vocabulary)} tokens, such as {short(lost[0])!r}, are not produced by any merge"
        yield error(value, "a merge for each token", OTHER_TOKENS, file=TOKENIZER)


def files_agree(candidate: Candidate) -> Findings:
    """P3: special tokens, added tokens and vocabulary are the same in all files and in config.json."""
    files = candidate.prompt
    generation = files.generation if readable(files, GENERATION) else {}
    sources = {"config.json": candidate.config, GENERATION: generation}
    for file, values in sources.items():
        yield from ids_in_range(file, values, vocabulary_size(candidate.config))
    if not readable(files, TOKENIZER) or (files.has(SETTINGS) and not readable(files, SETTINGS)):
        return
    if files.has(SPECIAL_MAP) and not readable(files, SPECIAL_MAP):
        return
    yield from special_tokens(files)
    yield from stop_ids(files, candidate.config, generation)
    yield from other_ids(files, sources)
    yield from older_files(files)


def ids_in_range(file: str, values: dict[str, Any], rows: int | None) -> Findings:
    """P3: token ids in a config file are whole numbers below vocab_size. -1 stands for "unset" in older files."""
    for role in ("bos", "eos", "pad"):
        value = values.get(f"{role}_token_id")
        for number in value if isinstance(value, list) else [value]:
            if number is not None and (type(number) is not int or number < -1 or (rows is not None and number >= rows)):
                stop = "vLLM stops, or never ends an answer" if role == "eos" else "transformers stops"
                yield error(short(number), f"an id below {rows}", stop, key=f"{file}: {role}_token_id")


def token_numbers(value: Any) -> list[int]:
    """The valid token ids in a value, which is one id or a list of ids."""
    values = value if isinstance(value, list) else [value]
    return [number for number in values if type(number) is int and number >= 0]


def special_tokens(files: PromptFiles) -> Findings:
    """P3: special tokens are in the vocabulary; special_tokens_map.json and added_tokens_decoder list the same ones."""
    for role, token in files.specials.items():
        if token not in files.ids:
            new = "transformers adds it with an id after the last, which the embedding may lack"
            yield error(f"{short(token)!r}", f"a token of {TOKENIZER}", new, key=f"{SETTINGS}: {role}")
    listed = files.read(SPECIAL_MAP) if files.has(SPECIAL_MAP) else {}
    for role, token in files.specials.items():
        other = token_text(listed.get(role))
        if other is not None and other != token:
            old = "transformers 4 may use this token in place of the other"
            yield error(f"{short(other)!r}", f"{token!r}, as in {SETTINGS}", old, key=f"{SPECIAL_MAP}: {role}")
    decoder = files.settings.get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        content = token_text(entry)
        if content is not None and files.ids.get(content) != as_number(number):
            value = f"{short(content)!r} has id {number}"
            expected = f"{files.ids.get(content, ABSENT)}, as in {TOKENIZER}"
            yield error(value, expected, OTHER_TOKENS, key=f"{SETTINGS}: added_tokens_decoder")


def as_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def stop_ids(files: PromptFiles, config: dict[str, Any], generation: dict[str, Any]) -> Findings:
    """P3: the tokenizer's end-of-sequence token ends answers in all runtimes."""
    token = files.specials.get("eos_token")
    number = files.ids.get(token) if token else None
    places = {"config.json": token_numbers(config.get("eos_token_id"))}
    places[GENERATION] = token_numbers(generation.get("eos_token_id"))
    for file, listed in places.items():
        for unknown in sorted(set(listed) - set(files.ids.values())):
            never = "no token has this id, so it never ends an answer"
            yield error(unknown, f"an id of {TOKENIZER}", never, key=f"{file}: eos_token_id")
    if number is None:
        return
    file = GENERATION if places[GENERATION] else "config.json"
    if places[file] and number not in places[file]:
        never = "transformers does not end answers there and generates until its limit; vLLM also ends at other tokens"
        expected = f"{number} ({token}), the eos_token of {SETTINGS}"
        yield error(
            short(generation.get("eos_token_id", config.get("eos_token_id"))),
            expected,
            never,
            key=f"{file}: eos_token_id",
        )
    if places[GENERATION] and places["config.json"] and not set(places[GENERATION]) & set(places["config.json"]):
        two = "loaders that read only one of the two files end answers at other tokens"
        value = short(config.get("eos_token_id"))
        yield warning(value, f"one of {places[GENERATION]}, as in {GENERATION}", two, key="config.json: eos_token_id")


def other_ids(files: PromptFiles, sources: dict[str, dict[str, Any]]) -> Findings:
    """P3: bos and pad have the tokenizer's ids in config.json and generation_config.json."""
    for role in ("bos", "pad"):
        token = files.specials.get(f"{role}_token")
        number = files.ids.get(token) if token else None
        for file, values in sources.items() if number is not None else ():
            listed = token_numbers(values.get(f"{role}_token_id"))
            if listed and number not in listed:
                other = "vLLM uses the token of the tokenizer; tools that read this file use another one"
                yield warning(listed[0], f"{number} ({token})", other, key=f"{file}: {role}_token_id")


def older_files(files: PromptFiles) -> Findings:
    """P3: vocab.json, merges.txt and added_tokens.json, which older loaders read, repeat tokenizer.json."""
    old = "loaders that read this file split text into other tokens (no error)"
    for name in (VOCABULARY, ADDED):
        for token, number in list(differing(files, name))[:1]:
            expected = f"{files.ids.get(token, ABSENT)}, as in {TOKENIZER}"
            yield error(f"{short(token)!r} has id {number}", expected, old, file=name)
    model = files.tokenizer.get("model") or {}
    text = files.text(MERGES) if files.has(MERGES) else None
    if text is not None and model.get("type") == "BPE":
        merges = [" ".join(pair) for pair in merge_pairs(model.get("merges"))]
        lines = merge_lines(text)
        if lines != merges:
            yield error(f"{len(lines)} merges", f"the {len(merges)} of {TOKENIZER}", old, file=MERGES)


def differing(files: PromptFiles, name: str) -> Iterator[tuple[str, Any]]:
    """The (token, id) pairs of the file `name` that tokenizer.json does not contain."""
    for token, number in files.read(name).items() if readable(files, name) else ():
        if files.ids.get(token) != number:
            yield token, number
