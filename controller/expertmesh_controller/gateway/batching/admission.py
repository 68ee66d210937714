"""Whether a request may join: bounded in number, by client and by deadline here, in length by the context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from expertmesh_common.errors import Exhausted, InvalidInput
from expertmesh_controller.gateway.batching.fairness import requests_ahead, within_share
from expertmesh_controller.gateway.batching.pace import Pace

__all__ = ["AdmissionLimits", "Crowd", "Newcomer", "Refusal", "RefusalReason", "granted_tokens", "refusal"]

_SHORTEST_RETRY_MS = 100


class RefusalReason(Enum):
    """Why a request may not join, as counted."""

    QUEUE = "queue"
    SHARE = "share"
    DEADLINE = "deadline"
    UNREAD = "unread"


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """`slots` requests run, `queue` more may wait, `unread` answers may be complete and still to be read."""

    slots: int
    queue: int
    unread: int


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who is here: requests in all, those of them that have begun, and by client those that have not.

    `unread` are answers, by client, that are complete and that somebody still reads.
    """

    outstanding: int = 0
    started: int = 0
    unstarted: Mapping[str, int] = field(default_factory=dict)
    unread: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Who asks, for how much, and how many seconds there are for it."""

    client: str
    prompt_tokens: int
    left_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not, and when to come back."""

    reason: RefusalReason
    message: str
    retry_after_s: float

    def error(self) -> Exhausted:
        """What the caller is told."""
        retry_after_ms = max(_SHORTEST_RETRY_MS, round(1000 * self.retry_after_s))
        return Exhausted(f"{self.message}: try again in {retry_after_ms} ms", retry_after_ms)


def refusal(newcomer: Newcomer, crowd: Crowd, limits: AdmissionLimits, pace: Pace) -> Refusal | None:
    """Why `newcomer` may not join, or None.

    It may not if the queue is full, if its client has its share of the queue or of the unread answers already, or if
    its first token cannot come before its deadline. Whoever finds a free slot is always let in.
    """
    return _unread(newcomer, crowd, limits, pace) or _too_many(newcomer, crowd, limits, pace)


def _unread(newcomer: Newcomer, crowd: Crowd, limits: AdmissionLimits, pace: Pace) -> Refusal | None:
    everybodys, own = sum(crowd.unread.values()), crowd.unread.get(newcomer.client, 0)
    if within_share(own, limits.unread - everybodys):
        return None
    message = (
        f"{everybodys} answers are complete and not read, {own} of them those of {newcomer.client or 'this client'}"
    )
    return Refusal(RefusalReason.UNREAD, message, pace.assumed_service_s)


def _too_many(newcomer: Newcomer, crowd: Crowd, limits: AdmissionLimits, pace: Pace) -> Refusal | None:
    waiting = max(0, crowd.outstanding - limits.slots)
    place_s = pace.assumed_service_s / limits.slots
    if crowd.outstanding < limits.slots:
        return None
    if waiting >= limits.queue:
        return Refusal(RefusalReason.QUEUE, f"{limits.slots} requests are running and {waiting} waiting", place_s)
    own = max(0, crowd.unstarted.get(newcomer.client, 0) - (limits.slots - crowd.started))
    if not within_share(own, limits.queue - waiting):
        message = (
            f"{own} requests of {newcomer.client or 'this client'} are waiting, its share of {limits.queue} places"
        )
        return Refusal(RefusalReason.SHARE, message, place_s * len(crowd.unstarted))
    return _too_late(newcomer, requests_ahead(newcomer.client, crowd.unstarted), limits, pace)


def _too_late(newcomer: Newcomer, ahead: int, limits: AdmissionLimits, pace: Pace) -> Refusal | None:
    if pace.service_s is None:
        return None
    start_s = (ahead + 1) * pace.service_s / limits.slots
    first_token_s = start_s + newcomer.prompt_tokens * (pace.prompt_token_s or 0.0)
    if first_token_s <= newcomer.left_s:
        return None
    message = (
        f"the first token is expected in {first_token_s:.2f} s, behind {ahead} requests, and the deadline is in "
        f"{newcomer.left_s:.2f} s"
    )
    return Refusal(RefusalReason.DEADLINE, message, min(first_token_s - newcomer.left_s, start_s))


def granted_tokens(prompt_tokens: int, max_tokens: int, context_tokens: int, field: str) -> int:
    """How many tokens may be generated; `max_tokens` 0 asks for all that fit. `field` names the prompt in errors.

    Raises:
        InvalidInput: the prompt is empty or leaves no room, or `max_tokens` is more than fits.

    """
    room = context_tokens - prompt_tokens
    if prompt_tokens < 1:
        raise InvalidInput(f"{field} has no tokens: send at least one")
    if room < 1:
        allowed = f"this gateway's context allows prompts of up to {context_tokens - 1}"
        raise InvalidInput(f"{field} has {prompt_tokens} tokens: {allowed}")
    if max_tokens > room:
        raise InvalidInput(
            f"max_tokens is {max_tokens}: beside a prompt of {prompt_tokens} tokens the context of {context_tokens} "
            f"leaves room for 1 to {room} (0 takes all of it)"
        )
    return max_tokens or room
