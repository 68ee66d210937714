"""The text of one answer while it grows: tokens in, safe text out."""

from __future__ import annotations

from collections.abc import Sequence

from expertmesh_controller.gateway.text.detokenising import Detokeniser
from expertmesh_controller.gateway.text.stopping import StopFilter

__all__ = ["AnswerText"]


class AnswerText:
    """Depends on the tokens only: replaying them brings a resumed answer to the same state."""

    def __init__(self, detokeniser: Detokeniser, stops: tuple[str, ...]) -> None:
        self._detokeniser = detokeniser
        self._filter = StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """A stop string is complete; no more text will come."""
        return self._filter.stopped

    def feed(self, token_id: int) -> str:
        """Text that is certain with this token."""
        return self._filter.feed(self._detokeniser.feed(token_id))

    def replay(self, token_ids: Sequence[int]) -> None:
        """Take tokens whose text the caller has already been sent."""
        for token_id in token_ids:
            self.feed(token_id)

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        return self._filter.feed(self._detokeniser.flush()) + self._filter.flush()
