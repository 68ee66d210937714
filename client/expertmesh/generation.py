"""One generation over however many streams it takes; it does no input or output itself."""

from __future__ import annotations

from expertmesh import replies
from expertmesh.attempts import Attempts
from expertmesh.errors import ExpertmeshError, Internal, StreamNotFinished, Unavailable
from expertmesh.types import Completion, Token
from expertmesh_api.v1 import inference_pb2 as pb


class Generation:
    """What has arrived so far, and what to ask for next."""

    def __init__(self, request: pb.GenerateRequest, attempts: Attempts) -> None:
        self._request = request
        self._attempts = attempts
        self._tokens: list[Token] = []
        self._resumed = 0
        self._result: Completion | None = None

    @property
    def tokens(self) -> tuple[Token, ...]:
        return tuple(self._tokens)

    @property
    def finished(self) -> bool:
        return self._result is not None

    @property
    def request_id(self) -> str:
        return self._request.request_id

    @property
    def result(self) -> Completion:
        """The whole answer.

        Raises:
            StreamNotFinished: tokens are still to come.

        """
        if self._result is None:
            raise StreamNotFinished("the answer is not complete: read the stream to its end, or call complete()")
        return self._result

    def next_request(self) -> tuple[int, pb.GenerateRequest, float]:
        """(place of the address, the request for the next stream, the seconds that it may take).

        Raises:
            DeadlineExceeded: there are none left.

        """
        place, remaining_s = self._attempts.next(f"; {len(self._tokens)} tokens arrived")
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        request.resume_token_ids.extend(token.id for token in self._tokens)
        return place, request, remaining_s

    def accept(self, response: pb.GenerateResponse) -> Token | None:
        """Take one message; the token that is new to the caller, if it brought one."""
        if response.WhichOneof("event") == "finished":
            self._result = replies.completion(response.finished, self.tokens, self.request_id, self._resumed)
            return None
        token = replies.token(response.token)
        if token.position < len(self._tokens):
            return None
        if token.position > len(self._tokens):
            raise Internal(f"token {len(self._tokens)} is missing from the stream: {token.position} came next")
        self._tokens.append(token)
        self._attempts.worked()
        return token

    def broken(self, error: ExpertmeshError | None) -> float:
        """Seconds to wait before `next_request` after a stream that ended early; None means: without a status.

        Raises:
            ExpertmeshError: no further attempt makes sense.

        """
        error = error or Unavailable("the stream ended before the answer was complete")
        delay_s = self._attempts.failed(error, started=bool(self._tokens))
        self._resumed += bool(self._tokens)
        return delay_s
