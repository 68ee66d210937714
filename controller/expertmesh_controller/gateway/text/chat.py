"""Chat messages to prompt text through the model's own template, in a sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from jinja2 import TemplateError, TemplateSyntaxError

from expertmesh_common.chat_templates import template_sandbox
from expertmesh_common.errors import CorruptData, InvalidInput

__all__ = ["ChatTemplate"]


class ChatTemplate:
    """A template as models bring it: sees `messages`, `add_generation_prompt` and the special tokens of `names`.

    Raises:
        CorruptData: the text is not a template.

    """

    def __init__(self, source: str, names: Mapping[str, str], now: Callable[[], datetime] = datetime.now) -> None:
        self._names = dict(names)
        try:
            self._template = template_sandbox(now).from_string(source)
        except TemplateSyntaxError as error:
            raise CorruptData(f"the model's chat template has an error in line {error.lineno}: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that asks for the assistant's next message.

        Raises:
            InvalidInput: there are no messages, or the template refuses them.

        """
        if not messages:
            raise InvalidInput("chat.messages is empty: send at least one message")
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **self._names)
        except (TemplateError, ValueError, TypeError) as error:
            raise InvalidInput(f"chat.messages: the model's chat template refuses them: {error}") from error
