"""Chat templates are compiled as transformers compiles them."""

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from transformers.utils.chat_template_utils import render_jinja_template

from compress.checkpoint.door.template import compile_template

TURNS = [{"role": "user", "content": "1 < 2 & é"}, {"role": "assistant", "content": "yes"}]
TEMPLATES = {
    "loop": "{% for m in messages %}\n  {%- if loop.index > 1 %}{% break %}{% endif %}\n{{ m.content }}\n{% endfor %}",
    "generation": "{% generation %}{% set x = 1 %}{{ messages[0].role }}{% endgeneration %}{{ x }}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "trimmed": "  {% if add_generation_prompt %}\n  go\n  {% endif %}\n{{ bos_token }}{{ tools }}{{ documents }}",
    "year": "{{ strftime_now('%Y') }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_the_text_of_transformers(name):
    options = {"add_generation_prompt": True, "bos_token": "<s>"}
    expected, _ = render_jinja_template([TURNS], chat_template=TEMPLATES[name], **options)
    rendered = compile_template(TEMPLATES[name]).render(messages=TURNS, tools=None, documents=None, **options)
    assert rendered == expected[0]


def test_a_template_can_refuse_a_conversation():
    with pytest.raises(TemplateError, match="no system role"):
        compile_template("{{ raise_exception('no system role') }}").render()


def test_a_template_cannot_leave_the_sandbox():
    with pytest.raises(SecurityError):
        compile_template("{{ messages.append(1) }}").render(messages=[])
    with pytest.raises(SecurityError):
        compile_template("{{ ''.__class__.__mro__ }}{{ ''.__class__() }}").render()
