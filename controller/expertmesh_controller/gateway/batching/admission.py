"""Whether a request may join: bounded in number here, bounded in length by the context."""

from __future__ import annotations

from dataclasses import dataclass

from expertmesh_common.errors import Exhausted, InvalidInput

__all__ = ["AdmissionLimits", "admit", "granted_tokens"]

_SHORTEST_RETRY_MS = 100


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """`slots` requests run and `queue` more may wait."""

    slots: int
    queue: int


def admit(outstanding: int, limits: AdmissionLimits, mean_request_s: float) -> None:
    """Let one more in.

    Raises:
        Exhausted: `outstanding` requests already fill the slots and the queue; it says when a place may be free.

    """
    if outstanding < limits.slots + limits.queue:
        return
    retry_after_ms = max(_SHORTEST_RETRY_MS, round(1000 * mean_request_s / limits.slots))
    full = f"{limits.slots} requests are running and {limits.queue} waiting"
    raise Exhausted(f"{full}: try again in {retry_after_ms} ms", retry_after_ms)


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
