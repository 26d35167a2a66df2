"""Rules P4 and P5: the chat template renders a plain conversation, and generation_config.json holds valid settings."""

import math
import re
from collections.abc import Callable
from typing import Any

from calibration.bounded import bounded
from compress.checkpoint.check.candidate import Candidate, Findings, error, short, warning
from compress.checkpoint.check.prompt_files import GENERATION, SETTINGS, TEMPLATE, TOKENIZER, PromptFiles
from compress.checkpoint.check.tokenizer_rules import readable
from compress.checkpoint.door.template import compile_template
from compress.core.errors import QCompressError

QUESTION, ANSWER, SECOND = "What is the capital of France?", "Paris is the capital.", "And how many people live there?"
ONE_TURN = [{"role": "user", "content": QUESTION}]
TWO_TURNS = [*ONE_TURN, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": SECOND}]
MARKER = re.compile(r"<\|[^|<>\s]+\|>|<(?:start|end)_of_turn>")
NO_PROMPT = "vLLM answers every chat request with an error"
LOST_TEXT = "vLLM sends the model a prompt without this text, and it answers something else (no error)"


def template_renders(candidate: Candidate) -> Findings:
    """P4: the chat template renders one and two turns without losing text, and each of its markers is one token."""
    files = candidate.prompt
    if files.has(SETTINGS) and not readable(files, SETTINGS):
        return
    try:
        template = files.template
    except QCompressError:
        return  # P1
    place = TEMPLATE if files.has(TEMPLATE) else f"{SETTINGS}: chat_template"
    if template is None:
        return
    if not template.strip():
        yield error("empty", "a template", "vLLM sends the model an empty prompt", file=place)
        return
    for turns, level in ((ONE_TURN, error), (TWO_TURNS, warning)):
        try:
            text = render(files, template, turns)
        except Exception as problem:  # a template can raise anything; P4 is about exactly that
            reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:160]
            yield level(reason, f"a prompt of {len(turns)} message(s)", NO_PROMPT, file=place)
            return
        for turn in turns:
            if turn["content"] not in text:
                yield error(f"lacks {turn['content']!r} of the {turn['role']}", "all text", LOST_TEXT, file=place)
                return
    yield from unknown_markers(files, text, place)


def render(files: PromptFiles, template: str, turns: list[dict[str, str]]) -> str:
    """The prompt of a conversation, as transformers and vLLM render it."""
    inputs = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True}
    with bounded():
        return compile_template(template).render(**inputs, **files.specials)


def unknown_markers(files: PromptFiles, text: str, place: str) -> Findings:
    """P4: markers such as <|im_start|> are single tokens."""
    if not readable(files, TOKENIZER):
        return
    unknown = sorted({marker for marker in MARKER.findall(text) if marker not in files.ids})
    if unknown:
        split = (
            "vLLM splits the marker into ordinary tokens; unless the model was trained so, it answers worse (no error)"
        )
        yield warning(", ".join(unknown[:4]), f"tokens of {TOKENIZER}", split, file=place)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


SAMPLING: dict[str, tuple[Callable[[Any], bool], str]] = {  # vLLM: SamplingParams._verify_args
    "temperature": (lambda value: is_number(value) and 0 <= value <= 2, "0 to 2"),
    "top_p": (lambda value: is_number(value) and 0 < value <= 1, "more than 0, at most 1"),
    "min_p": (lambda value: is_number(value) and 0 <= value <= 1, "0 to 1"),
    "top_k": (lambda value: is_whole(value) and value >= -1, "a whole number, at least -1"),
    "repetition_penalty": (lambda value: is_number(value) and value > 0, "more than 0"),
    "presence_penalty": (lambda value: is_number(value) and -2 <= value <= 2, "-2 to 2"),
    "frequency_penalty": (lambda value: is_number(value) and -2 <= value <= 2, "-2 to 2"),
    "max_new_tokens": (lambda value: is_whole(value) and value >= 1, "a whole number, at least 1"),
}


def valid_generation(candidate: Candidate) -> Findings:
    """P5: the sampling settings in generation_config.json are in the ranges that vLLM accepts."""
    files = candidate.prompt
    if not readable(files, GENERATION):
        return
    for key, (is_valid, expected) in SAMPLING.items():
        value = files.generation.get(key)
        if value is not None and not is_valid(value):
            stop = "vLLM uses it as a default and answers every request with an error"
            yield error(short(value), expected, stop, key=f"{GENERATION}: {key}")
