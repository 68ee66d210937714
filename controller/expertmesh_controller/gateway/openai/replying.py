"""One request's answers as pieces, from the gateway's streams."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable

from expertmesh_api.v1 import inference_pb2
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.gateway.answering import Answering, Caller
from expertmesh_controller.gateway.openai.answers import AnswerPieces, Echoed, Piece, Usage
from expertmesh_controller.gateway.openai.asking import Ask, Echo
from expertmesh_controller.gateway.openai.failures import named_limit
from expertmesh_controller.gateway.openai.held_logprobs import HeldEntries
from expertmesh_controller.gateway.openai.logprobs import WaitingEntries, entry_of
from expertmesh_controller.gateway.openai.merging import merged

__all__ = ["Reply"]


class Reply:
    """`usage` is complete when the pieces have ended. `deadline_s` None takes the gateway's default."""

    def __init__(self, ask: Ask, answering: Answering, caller: Caller, deadline_s: float | None) -> None:
        self.usage = Usage()
        self._ask, self._answering, self._caller, self._deadline_s = ask, answering, caller, deadline_s
        self._echoes: list[Echoed] = []

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """(number of the answer, piece) as they come. Closing this gives every slot back.

        Raises:
            MeshError: what the gateway refuses or cannot go on with; the first error ends all answers.

        """
        for echo in self._ask.echoes:
            self._echoes.append(await self._echoed(echo))
        try:
            async with contextlib.aclosing(merged(self._answer, len(self._ask.calls))) as pieces:
                async for numbered in pieces:
                    yield numbered
        except InvalidInput as error:
            raise named_limit(error, self._ask.limit) from error

    async def _answer(self, number: int) -> AsyncGenerator[Piece, None]:
        prompt = self._ask.prompt_of(number)
        echoed = self._echoes[prompt] if self._echoes else None
        if echoed is not None:
            yield echoed.piece()
        if self._ask.only_echo and echoed is not None:
            self.usage.prompts[prompt] = echoed.tokens
            yield Piece("", finish="length", lossy=echoed.lossy)
            return
        call, start = self._ask.calls[number], 0 if echoed is None else len(echoed.text)
        entries = HeldEntries(start) if call.sampling.stop else WaitingEntries(start)
        pieces = AnswerPieces(entries if call.logprobs else None)
        answer = self._answering.generate(call, self._deadline_s, self._caller)
        async with contextlib.aclosing(answer) as events:
            async for event in events:
                if event.HasField("finished"):
                    self.usage.add(prompt, event.finished)
                yield pieces.take(event)

    async def _echoed(self, echo: Echo) -> Echoed:
        """The prompt's text; with log probabilities, as the model sees them."""
        if echo.top_logprobs is None:
            asked = inference_pb2.TokenizeRequest(model=self._ask.model)
            if isinstance(echo.prompt, str):
                asked.text = echo.prompt
            else:
                asked.token_ids.ids.extend(echo.prompt)
            spelled = await self._answering.tokenize(asked)
            return Echoed(_text(echo, spelled.text_bytes), (), len(spelled.ids))
        score = inference_pb2.ScoreRequest(
            model=self._ask.model, top_logprobs=echo.top_logprobs, request_id=self._caller.request_id
        )
        if isinstance(echo.prompt, str):
            score.text = echo.prompt
        else:
            score.ids.ids.extend(echo.prompt)
        scored = await self._answering.score(score, self._deadline_s, self._caller)
        entries = tuple(entry_of(token) for token in scored.tokens)
        return Echoed(_text(echo, [entry.text_bytes for entry in entries]), entries, len(entries), bool(scored.lossy))


def _text(echo: Echo, spelled: Iterable[bytes]) -> str:
    """As it was sent; of token ids, what they spell."""
    return echo.prompt if isinstance(echo.prompt, str) else b"".join(spelled).decode(errors="replace")
