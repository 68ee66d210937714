"""Text to tokens and back, as the served model does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.errors import CorruptData, InvalidInput
from expertmesh_controller.gateway.text.chat import ChatTemplate
from expertmesh_controller.gateway.text.detokenising import Detokeniser
from expertmesh_controller.gateway.text.spelling import Spelling

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TextCodec"]


class TextCodec:
    """The tokenizer and the chat template of a bundle.

    Raises:
        NotHere: a blob is missing.
        CorruptData: the tokenizer or the template cannot be read.

    """

    def __init__(self, bundle: Bundle) -> None:
        about = bundle.manifest.tokenizer
        self._tokenizer = _read_tokenizer(bundle)
        self._spelling = Spelling(self._tokenizer.to_str(), self._tokenizer.id_to_token)
        self.eos_ids = frozenset(about.eos_ids)
        self._chat: ChatTemplate | None = None
        if about.chat_template is not None:
            source = bundle.path(about.chat_template).read_text(encoding="utf-8")
            self._chat = ChatTemplate(source, self._special_names(about.bos_id, about.eos_ids))

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt."""
        return list(self._tokenizer.encode(text).ids)

    def encode_more(self, text: str) -> list[int]:
        """Token ids of a text that goes on after another: nothing marks its beginning."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant goes on; each message has `role` and `content`.

        Raises:
            InvalidInput: the model has no chat template, or it refuses the messages.

        """
        if self._chat is None:
            raise InvalidInput("chat: this model has no chat template; send `prompt` or `prompt_ids`")
        return list(self._tokenizer.encode(self._chat.render(messages), add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens; special tokens have none."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's own spelling of each token."""
        return [self._tokenizer.id_to_token(i) or "" for i in token_ids]

    def text_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token's own text; they may be a part of a character."""
        return self._spelling.text_bytes(token_id)

    def detokeniser(self) -> Detokeniser:
        return Detokeniser(self.decode)

    def _special_names(self, bos_id: int | None, eos_ids: Sequence[int]) -> dict[str, str]:
        ids = {"bos_token": bos_id, "eos_token": eos_ids[0] if eos_ids else None}
        return {name: self.pieces([i])[0] for name, i in ids.items() if i is not None}


def _read_tokenizer(bundle: Bundle) -> Tokenizer:
    from tokenizers import Tokenizer  # noqa: PLC0415 - heavy, and only here

    path = bundle.path(bundle.manifest.tokenizer.vocabulary)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise CorruptData(f"{path} is not a tokenizer: {error}") from error
