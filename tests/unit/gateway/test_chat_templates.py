"""Chat templates: rendered as the model wants, in a sandbox."""

from datetime import datetime

import pytest

from expertmesh_common.errors import CorruptData, InvalidInput
from expertmesh_controller.gateway.text.chat import ChatTemplate

HELLO = [{"role": "user", "content": "hello"}]


def test_messages_names_and_the_prompt_for_the_assistant_are_there() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m.content }};{% endfor %}{{ add_generation_prompt }}"
    )
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(HELLO) == "<s>user:hello;True"


def test_a_refusal_of_the_template_reaches_the_caller() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InvalidInput, match=r"chat\.messages.*roles must alternate"):
        template.render(HELLO)


def test_no_messages_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"chat\.messages is empty"):
        ChatTemplate("", {}).render([])


def test_the_date_comes_from_the_clock_that_was_given() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, now=lambda: datetime(2026, 11, 23))
    assert template.render(HELLO) == "23 Nov 2026"


@pytest.mark.parametrize(
    "source",
    ["{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__base__.__subclasses__() }}", "{{ messages.append(1) }}"],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(InvalidInput, match="refuses"):
        ChatTemplate(source, {}).render(HELLO)


def test_a_broken_template_is_corrupt_data() -> None:
    with pytest.raises(CorruptData, match="line 1"):
        ChatTemplate("{% for %}", {})
