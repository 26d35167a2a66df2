import pytest

from calibration.chat import encode_chat, encode_text
from calibration.errors import CalibrationError

TALK = [
    {"role": "system", "content": "the miller speaks"},
    {"role": "user", "content": "how deep is it?"},
    {"role": "assistant", "content": "two fathoms\n\nor three"},
    {"role": "user", "content": "which?"},
    {"role": "assistant", "content": "it depends"},
]
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
)
FORGETFUL = (  # like templates that drop earlier reasoning: a turn is rendered differently if another one follows
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] if loop.last or message['role'] == 'user' else '...' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLON = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system\n turn') }}{% endif %}"


def assistant_text(tokenizer, ids, mask):
    return tokenizer.decode([token for token, counts in zip(ids, mask, strict=True) if counts])


def test_the_ids_equal_those_of_the_rendered_conversation(tokenizer):
    ids, mask = encode_chat(tokenizer, TALK, "here")
    assert ids == tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
    assert len(mask) == len(ids)


def test_the_mask_covers_exactly_the_answers_with_their_end_of_turn(tokenizer):
    ids, mask = encode_chat(tokenizer, TALK, "here")
    assert assistant_text(tokenizer, ids, mask) == "two fathoms\n\nor three<|im_end|>it depends<|im_end|>"


def test_a_template_that_marks_its_answers_gives_the_same_mask(make_tokenizer, tokenizer):
    assert encode_chat(make_tokenizer(MARKED), TALK, "here") == encode_chat(tokenizer, TALK, "here")


def test_generation_marks_take_precedence_over_prefixes(make_tokenizer):
    only_content = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    marked = make_tokenizer(only_content)
    ids, mask = encode_chat(marked, TALK, "here")
    assert assistant_text(marked, ids, mask) == "two fathoms\n\nor threeit depends"


def test_a_token_across_the_header_and_the_answer_belongs_to_the_answer(make_tokenizer):
    colon = make_tokenizer(COLON)
    ids, mask = encode_chat(colon, TALK, "here")
    assert len(encode_text(colon, "assistant: ")) + len(encode_text(colon, "it")) > len(
        encode_text(colon, "assistant: it")
    )
    assert assistant_text(colon, ids, mask).split() == ["two", "fathoms", "or", "three", "it", "depends"]


def test_a_turn_without_a_special_token_ends_with_its_last_character(make_tokenizer):
    colon = make_tokenizer(COLON)
    ids, mask = encode_chat(colon, TALK, "here")
    assert assistant_text(colon, ids, mask).endswith("it depends\n")


def test_an_assistant_turn_without_a_question_is_not_counted(tokenizer):
    ids, mask = encode_chat(tokenizer, [{"role": "assistant", "content": "well"}, *TALK[1:3]], "here")
    assert assistant_text(tokenizer, ids, mask) == "two fathoms\n\nor three<|im_end|>"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, ["notes.jsonl: line 7", "no chat template", "`text`"]),
        (FORGETFUL, ["notes.jsonl: line 7", "message 3", "differently", "{% generation %}"]),
        (STRICT, ["notes.jsonl: line 7", "rejects", "no system turn"]),
    ],
)
def test_an_unusable_template_is_an_error_with_the_place_and_the_cure(make_tokenizer, template, words):
    with pytest.raises(CalibrationError) as error:
        encode_chat(make_tokenizer(template), TALK, "notes.jsonl: line 7")
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
