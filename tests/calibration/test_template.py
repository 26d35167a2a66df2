"""A chat template is foreign code: every failure is one line with the row, within limits of memory and time."""

import json
import resource
import time

import pytest

from calibration.bounded import bounded
from calibration.chat import encode_chat, encode_text, render_prompt
from calibration.errors import CalibrationError
from calibration.windows import build_windows

WHERE = "chats.jsonl: line 3"
TALK = [
    {"role": "user", "content": "how deep is it?"},
    {"role": "assistant", "content": "two fathoms"},
    {"role": "user", "content": "which?"},
    {"role": "assistant", "content": "it depends"},
]
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOLS = [TALK[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]
ITEMS = (
    "{% for m in messages %}{{ m.content }}{% for t in m.tool_calls or [] %}"
    "{% for key, value in t.function.arguments|items %}{{ key }}{% endfor %}{% endfor %}{% endfor %}"
)
QWEN3 = (  # as in Qwen3: only the last assistant turn begins with an empty thought
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BROKEN = {
    "division": ("{{ 1 / 0 }}", "division"),
    "division of values": ("{{ 1 / (messages|length - messages|length) }}", "division"),
    "a missing file": ("{% include 'x' %}", "loader"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "an undefined value": ("{{ messages[0].nothing.more }}", "no attribute"),
    "its own exception": ("{{ raise_exception('no\n system') }}", "no system"),
    "an unknown filter": ("{{ messages|no_such_filter }}", "no_such_filter"),
    "no text": ("{% for m in messages %}{% endfor %}", "no text"),
    "an indent of a gigabyte": ("{{ messages|tojson(indent=1000000000) }}", "memory"),
    "a multiplied text": ("{{ messages[0].content * 1000000000 }}", "memory"),
    "a wide field": ("{{ '%2000000000d' % (messages|length) }}", "memory"),
    "more text than the limit": ("{{ messages[0].content * 1000000 }}", "above the limit of"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("encode", [encode_chat, render_prompt])
def test_a_failing_template_is_one_line_with_the_row(make_tokenizer, name, encode):
    template, words = BROKEN[name]
    with pytest.raises(CalibrationError) as error:
        encode(make_tokenizer(template), TALK, WHERE)
    message = str(error.value)
    assert message.startswith(WHERE) and words in message and "\n" not in message and len(message) < 500


def test_a_template_that_loops_too_long_is_stopped(make_tokenizer, monkeypatch):
    monkeypatch.setattr("calibration.template.SECONDS", 0.2)
    loops = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
    started = time.monotonic()
    with pytest.raises(CalibrationError, match=r"line 3.*ran for more than 0\.2 seconds"):
        render_prompt(make_tokenizer(loops), TALK, WHERE)
    assert time.monotonic() - started < 5


def test_tool_call_arguments_as_text_have_a_cure_of_their_own(make_tokenizer):
    with pytest.raises(CalibrationError, match="write `arguments` as an object"):
        encode_chat(make_tokenizer(ITEMS), TOOLS, WHERE)
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    rows = [TALK[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    ids, _ = encode_chat(make_tokenizer(ITEMS), rows, WHERE, answers_only=False)
    assert ids == encode_text(make_tokenizer(ITEMS), "how deep is it?a")


def test_the_limits_end_with_the_context():
    before = resource.getrlimit(resource.RLIMIT_AS)
    with bounded(100_000_000, 5), pytest.raises(MemoryError):
        bytes(200_000_000)
    assert resource.getrlimit(resource.RLIMIT_AS) == before and len(bytes(200_000_000)) == 200_000_000


def test_without_a_mask_a_template_may_change_its_last_turn(make_tokenizer):
    tokenizer = make_tokenizer(QWEN3)
    with pytest.raises(CalibrationError, match="differently when later turns follow"):
        encode_chat(tokenizer, TALK, WHERE)
    ids, mask = encode_chat(tokenizer, TALK, WHERE, answers_only=False)
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(TALK, tokenize=False) and all(mask)


def test_windows_without_a_mask_have_the_same_ids(tokenizer, tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": TALK}) + "\n" for _ in range(4)))
    masked, plain = (
        build_windows([str(file)], tokenizer, n_samples=2, seq_len=16, answers_only=answers_only)
        for answers_only in (True, False)
    )
    assert masked.ids.equal(plain.ids) and plain.mask.all() and not masked.mask.all()
