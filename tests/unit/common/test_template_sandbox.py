"""Templates of models render here as transformers renders them."""

from datetime import datetime

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from expertmesh_common.chat_templates import chat_template
from expertmesh_common.errors import CorruptData

MESSAGES = [
    {"role": "user", "content": "hear the <stone>"},
    {"role": "assistant", "content": "naïve"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "no"},
]
MARKED = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
<a>
        {% generation %}
{{ message.content }}<end>
        {% endgeneration %}
</a>
    {%- else %}
<u>{{ message.content }}</u>
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<a>{% endif %}"""
TRIMMED = MARKED.replace("{% generation %}", "{%- generation -%}").replace("{% endgeneration", "{%- endgeneration")
AS_TRANSFORMERS = {
    "marked": MARKED,
    "marked and trimmed": TRIMMED,
    "a variable of the loop inside": (
        "{% for m in messages %}{% set name = loop.index ~ m.role %}"
        "{% generation %}{{ name }}{% endgeneration %}{% endfor %}"
    ),
    "a variable that was set inside": (
        "{% set x = 'out' %}{% generation %}{% set x = 'in' %}{{ x }}{% endgeneration %}{{ x }}"
    ),
    "a namespace that is changed inside": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% generation %}{% set ns.n = ns.n + 1 %}"
        "{% endgeneration %}{% endfor %}{{ ns.n }}"
    ),
    "loops that are left": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% continue %}{% endif %}{{ m.content }}"
        "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"
    ),
    "JSON": "{{ messages | tojson }}",
    "indented JSON": "{{ messages | tojson(indent=2) }}",
    "dense JSON": "{{ messages[1] | tojson(separators=(',', ':'), sort_keys=True) }}",
    "ASCII JSON": "{{ messages[1] | tojson(ensure_ascii=True) }}",
    "JSON by place": "{{ messages[1] | tojson(true, 1) }}",
}


def rendered(template: str, **names: object) -> str:
    return chat_template(template).render(messages=MESSAGES, **names)


@pytest.mark.parametrize("name", AS_TRANSFORMERS)
def test_a_template_renders_as_transformers_renders_it(name: str) -> None:
    theirs, _ = render_jinja_template([MESSAGES], chat_template=AS_TRANSFORMERS[name], add_generation_prompt=True)

    assert rendered(AS_TRANSFORMERS[name], add_generation_prompt=True) == theirs[0]


def test_marks_of_what_was_generated_leave_nothing_behind() -> None:
    plain = TRIMMED.replace("{%- generation -%}", "{#- -#}").replace("{%- endgeneration %}", "{#- #}")

    assert rendered(TRIMMED) == rendered(plain)


def test_a_loop_can_be_left_from_inside_a_mark() -> None:
    assert rendered(
        "{% for m in messages %}{% generation %}{{ m.role }}{% break %}{% endgeneration %}{% endfor %}"
    ) == ("user")


def test_a_mark_that_does_not_end_is_an_error() -> None:
    with pytest.raises(CorruptData, match=r"error in line 1: .*endgeneration"):
        rendered("{% generation %}x")


@pytest.mark.parametrize("text", ["{% break %}", "{{ x | no_such_filter }}", "{% for x %}", "{{" + "(" * 5000])
def test_what_is_no_template_is_corrupt_data_whoever_finds_out(text: str) -> None:
    with pytest.raises(CorruptData, match=r"^the chat template "):
        rendered(text)


def test_dates_take_their_pattern_by_place_and_by_name() -> None:
    for call in ("strftime_now('%d %b %Y')", "strftime_now(format='%d %b %Y')"):
        assert chat_template(f"{{{{ {call} }}}}", lambda: datetime(2026, 11, 23)).render() == "23 Nov 2026"


@pytest.mark.parametrize("call", ["raise_exception('no tools')", "raise_exception(message='no tools')"])
def test_a_template_refuses_in_its_own_words(call: str) -> None:
    with pytest.raises(TemplateError, match=r"^no tools$"):
        rendered(f"{{{{ {call} }}}}")
