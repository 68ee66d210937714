"""One generation over however many streams it takes; it does no input or output itself."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from expertmesh import replies
from expertmesh.errors import DeadlineExceeded, ExpertmeshError, Internal, StreamNotFinished, Unavailable
from expertmesh.resuming import ResumePolicy, resume_delay_s
from expertmesh.types import Completion, Token
from expertmesh_api.v1 import inference_pb2 as pb


class Generation:
    """What has arrived so far, and what to ask for next."""

    def __init__(
        self,
        request: pb.GenerateRequest,
        deadline_s: float,
        policy: ResumePolicy,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._request = request
        self._policy = policy
        self._now = now
        self._chance = chance
        self._deadline_s = deadline_s
        self._deadline = now() + deadline_s
        self._tokens: list[Token] = []
        self._failures = 0
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

    def next_request(self) -> tuple[pb.GenerateRequest, float]:
        """The request for the next stream and the seconds that it may take.

        Raises:
            DeadlineExceeded: there are none left.

        """
        remaining_s = self._deadline - self._now()
        if remaining_s <= 0:
            raise DeadlineExceeded(
                f"no complete answer within deadline_s={self._deadline_s:g}; {len(self._tokens)} tokens arrived"
            )
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        request.resume_token_ids.extend(token.id for token in self._tokens)
        return request, remaining_s

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
        self._failures = 0
        return token

    def broken(self, error: ExpertmeshError | None) -> float:
        """Seconds to wait before `next_request` after a stream that ended early; None means: without a status.

        Raises:
            ExpertmeshError: no further attempt makes sense.

        """
        error = error or Unavailable("the stream ended before the answer was complete")
        self._failures += 1
        started = bool(self._tokens)
        delay_s = resume_delay_s(
            self._policy,
            error,
            failures=self._failures,
            started=started,
            remaining_s=self._deadline - self._now(),
            chance=self._chance(),
        )
        if delay_s is None:
            raise error
        self._resumed += started
        return delay_s
