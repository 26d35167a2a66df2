"""Rules C10 and P6: config.json and the prompt files are those of the source checkpoint; quantizing copies them."""

from typing import Any

from compress.checkpoint.check.candidate import ABSENT, Candidate, Findings, error, short, warning
from compress.checkpoint.check.prompt_files import (
    ADDED,
    GENERATION,
    MERGES,
    SETTINGS,
    SPECIAL_MAP,
    TOKENIZER,
    VOCABULARY,
    PromptFiles,
    canonical,
    merge_lines,
    merge_pairs,
    token_text,
)
from compress.checkpoint.check.tokenizer_rules import OTHER_TOKENS, readable
from compress.core.errors import QCompressError
from compress.model.architectures import find_architecture

IGNORED = frozenset(  # keys of config.json that do not change what the model computes, or that other rules compare
    {
        *("quantization_config", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache"),
        *("rope_theta", "rope_scaling", "output_attentions", "output_hidden_states", "return_dict", "problem_type"),
        *("id2label", "label2id", "initializer_range", "attention_dropout", "hidden_dropout", "_model_name_or_path"),
        *("pretraining_tp", "chunk_size_feed_forward", "_attn_implementation", "_attn_implementation_autoset"),
        *("return_dict_in_generate", "torchscript", "auto_map", "tie_encoder_decoder", "license", "finetuning_task"),
    }
)
OTHER_MODEL = "vLLM computes another function than the source, and answers worse (no error)"
UNCOMPARED = frozenset(  # keys that no runtime follows, or that P3 and P4 compare
    {
        *("tokenizer_class", "transformers_version", "_from_model_config", "name_or_path", "is_local", "backend"),
        *("local_files_only", "special_tokens_map_file", "tokenizer_file", "auto_map", "processor_class"),
        *("chat_template", "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"),
    }
)
FOLLOWED: dict[str, tuple[frozenset[str], str]] = {  # keys that vLLM follows, and what another value leads to
    SETTINGS: (
        frozenset(
            {
                *("bos_token", "eos_token", "pad_token", "unk_token", "add_bos_token", "add_eos_token"),
                *("add_prefix_space", "split_special_tokens", "clean_up_tokenization_spaces", "do_lower_case"),
            }
        ),
        "vLLM uses another special token or setting of the tokenizer (no error)",
    ),
    GENERATION: (
        frozenset(
            {
                *("bos_token_id", "eos_token_id", "pad_token_id", "temperature", "top_k", "top_p", "min_p"),
                *("repetition_penalty", "presence_penalty", "frequency_penalty", "max_new_tokens"),
            }
        ),
        "vLLM samples or ends answers in another way (no error)",
    ),
}


def config_matches_source(candidate: Candidate) -> Findings:
    """C10: config.json describes the model of the source: sizes, activation, eps, rope, special tokens."""
    source = candidate.compared_source
    if source is None or same_keys(candidate.config, source.config):
        return
    try:
        ours, theirs = resolved(candidate.config), resolved(source.config)
    except (ValueError, TypeError, KeyError, AttributeError):
        return  # C2
    skipped = IGNORED | ({"tie_word_embeddings"} if candidate.packed_tables else set())
    for key in sorted((ours.keys() | theirs.keys()) - skipped):
        if ours.get(key) != theirs.get(key):
            value, expected = (short(one.get(key, ABSENT)) for one in (ours, theirs))
            yield error(value, f"{expected}, as in the source", OTHER_MODEL, key=key)


def same_keys(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether two config.json must resolve to the same values, since their keys are equal and rope is not scaled."""
    if find_architecture(ours) is None or find_architecture(theirs) is None:
        return False
    skipped = {*IGNORED, "rope_parameters"}
    kept, others = ({key: value for key, value in one.items() if key not in skipped} for one in (ours, theirs))
    theta, other = (default_theta(config) for config in (ours, theirs))
    return kept == others and theta is not None and theta == other


def default_theta(config: dict[str, Any]) -> float | None:
    """The rope_theta of a config.json whose rope type is "default"; None for other rope types."""
    rope = config.get("rope_parameters") or {"rope_type": "default"}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    return theta if rope.get("rope_type") == "default" and not config.get("rope_scaling") else None


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers resolves it: defaults filled in, one spelling of rope."""
    from compress.model.blocks import make_config

    return make_config(config).to_dict() | {"architectures": config.get("architectures")}


def prompts_match_source(candidate: Candidate) -> Findings:
    """P6: tokenizer, special tokens, chat template and generation settings are those of the source."""
    source = candidate.prompt_source
    if source is None:
        return
    ours, theirs = candidate.prompt, PromptFiles(source.path)
    yield from missing_files(ours, theirs)
    if readable(ours, TOKENIZER) and readable(theirs, TOKENIZER):
        yield from same_tokenizer(ours, theirs)
    for name in (SETTINGS, GENERATION, SPECIAL_MAP, ADDED, VOCABULARY):
        if readable(ours, name) and readable(theirs, name):
            yield from same_values(name, ours.read(name), theirs.read(name))
    try:
        yield from same_texts(ours, theirs)
    except QCompressError:
        return  # P1


def missing_files(ours: PromptFiles, theirs: PromptFiles) -> Findings:
    """P6: the checkpoint has the prompt files of the source and no others."""
    for name in (TOKENIZER, "tokenizer.model", SETTINGS, GENERATION, SPECIAL_MAP, ADDED, VOCABULARY, MERGES):
        row = error if name in (TOKENIZER, SETTINGS, GENERATION) else warning
        other = "vLLM uses defaults in its place (no error), or stops" if row is error else "older loaders need it"
        if theirs.has(name) and not ours.has(name):
            yield row("missing", "present, as in the source", other, file=name)
        elif ours.has(name) and not theirs.has(name):
            yield warning("present", "absent, as in the source", "loaders take settings from it", file=name)


def same_tokenizer(ours: PromptFiles, theirs: PromptFiles) -> Findings:
    """P6: every part of tokenizer.json equals that of the source. A merge may be stored as "a b" or as ["a", "b"]."""
    parts = {key: value for key, value in ours.tokenizer.items() if key not in ("model", "version")}
    others = {key: value for key, value in theirs.tokenizer.items() if key not in ("model", "version")}
    model, other = ours.tokenizer.get("model") or {}, theirs.tokenizer.get("model") or {}
    parts |= {f"model.{key}": value for key, value in model.items() if key != "merges"}
    others |= {f"model.{key}": value for key, value in other.items() if key != "merges"}
    parts["model.merges"], others["model.merges"] = merge_pairs(model.get("merges")), merge_pairs(other.get("merges"))
    for key in sorted(parts.keys() | others.keys()):
        if canonical(parts.get(key)) != canonical(others.get(key)):
            row = warning if key in ("truncation", "padding") else error
            yield row("differs", "as in the source", OTHER_TOKENS, key=f"{TOKENIZER}: {key}")


def same_values(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Findings:
    """P6: a JSON file has the same values as in the source. Special tokens may be stored as text or as an object."""
    followed, consequence = FOLLOWED.get(name, (None, "older loaders split text into other tokens (no error)"))
    keys = [key for key in sorted(ours.keys() | theirs.keys()) if followed is None or key not in UNCOMPARED]
    changed = [key for key in keys if plain(ours.get(key)) != plain(theirs.get(key))]
    for key in changed:
        value, expected = (short(one.get(key, ABSENT)) for one in (ours, theirs))
        row = error if followed is None or key in followed else warning
        yield row(value, f"{expected}, as in the source", consequence, key=f"{name}: {key}")


def plain(value: Any) -> str:
    """A JSON value in the form to compare. A special token is reduced to its text."""
    text = token_text(value)
    return canonical(value if text is None else text)


def same_texts(ours: PromptFiles, theirs: PromptFiles) -> Findings:
    """P6: the chat template and merges.txt are those of the source."""
    if (ours.template or "").strip() != (theirs.template or "").strip():
        value = ABSENT if ours.template is None else "another template"
        other = "vLLM writes other prompts than those of the source, and the model answers worse (no error)"
        yield error(value, "the chat template of the source", other, file="chat_template.jinja")
    first, second = ours.text(MERGES), theirs.text(MERGES)
    if first is not None and second is not None and merge_lines(first) != merge_lines(second):
        yield error("differs", "as in the source", "older loaders split text into other tokens (no error)", file=MERGES)
