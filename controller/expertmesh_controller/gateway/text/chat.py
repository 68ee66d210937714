"""Chat messages to prompt text through the model's own template, in a sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from jinja2 import TemplateError

from expertmesh_common.chat_templates import chat_template
from expertmesh_common.errors import InvalidInput

__all__ = ["ChatTemplate"]


class ChatTemplate:
    """A template as models bring it: sees `messages`, `add_generation_prompt` and the special tokens of `names`.

    Raises:
        CorruptData: the text is not a template.

    """

    def __init__(self, source: str, names: Mapping[str, str], now: Callable[[], datetime] = datetime.now) -> None:
        self._names = dict(names)
        self._template = chat_template(source, now)

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
