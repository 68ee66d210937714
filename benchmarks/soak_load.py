"""The callers of the soak: several clients that ask for everything the mesh offers, and check what comes back."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from expertmesh import AsyncClient, ExpertmeshError, InvalidRequest, NotFound, Overloaded

LONGEST = 300
PROMPTS = tuple(tuple((7 * n + 13 * i) % 256 for i in range(size)) for n, size in enumerate((1, 3, 11, 40, 90, 150)))
COUNTS = (5, 20, 60, LONGEST)
DEADLINE_S = 60.0
KINDS = {"answer": 50, "cancelled": 12, "sampled": 10, "score": 10, "tokenize": 8, "wrong": 10}
"""What is asked for, in parts of a hundred."""

WRONG = (
    {"prompt": ""},
    {"prompt": "x", "model": "nobody"},
    {"prompt": "x", "temperature": -1.0},
    {"prompt": "x", "max_tokens": 10**6},
    {"prompt_ids": [10**6]},
)


@dataclass(frozen=True, slots=True)
class Ended:
    """One call: when it began and ended (seconds since the start), what it was, and how it ended."""

    kind: str
    began_s: float
    took_s: float
    first_token_s: float | None
    outcome: str
    """`ok`, `shed` (told to come back), `lost` (an error that its caller saw) or `wrong` (other tokens)."""
    detail: str = ""


@dataclass
class Expected:
    """Greedy answers by model and prompt, as the mesh gave them before anything happened to it."""

    ids: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)

    async def learn(self, client: AsyncClient, models: Sequence[str]) -> None:
        for model in models:
            for number, prompt in enumerate(PROMPTS):
                answer = await client.complete(
                    prompt_ids=prompt, max_tokens=LONGEST, ignore_eos=True, model=model, deadline_s=DEADLINE_S
                )
                self.ids[model, number] = answer.token_ids


class Load:
    """`callers` ask in turns until `stop`; `ended` holds every call."""

    def __init__(self, addresses: Sequence[str], models: Sequence[str], callers: int, seed: int) -> None:
        self._addresses, self._models, self._callers = tuple(addresses), tuple(models), callers
        self._seed, self._began = seed, time.monotonic()
        self._expected = Expected()
        self._asks: dict[str, Callable[[AsyncClient, random.Random], Awaitable[tuple[float | None, str]]]] = {
            "answer": self._answer, "cancelled": self._cancelled, "sampled": self._sampled,
            "score": self._score, "tokenize": self._tokenize, "wrong": self._wrong,
        }  # fmt: skip
        self.ended: list[Ended] = []

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._began

    async def learn(self) -> None:
        """Ask once for every answer, undisturbed."""
        async with AsyncClient(self._addresses) as client:
            await self._expected.learn(client, self._models)
        self._began = time.monotonic()

    async def run(self, stop: asyncio.Event) -> None:
        await asyncio.gather(*(self._caller(number, stop) for number in range(self._callers)))

    def outcomes(self) -> Counter[str]:
        return Counter(call.outcome for call in self.ended)

    async def _caller(self, number: int, stop: asyncio.Event) -> None:
        chance = random.Random(self._seed * 1000 + number)
        async with AsyncClient(self._addresses, deadline_s=DEADLINE_S) as client:
            while not stop.is_set():
                (kind,) = chance.choices(list(KINDS), KINDS.values())
                self.ended.append(await self._timed(kind, client, chance))
                await asyncio.sleep(chance.expovariate(10))

    async def _timed(self, kind: str, client: AsyncClient, chance: random.Random) -> Ended:
        began = self.now_s
        first, outcome, detail = None, "ok", ""
        try:
            first, outcome = await self._asks[kind](client, chance)
        except Overloaded:
            outcome = "shed"
        except ExpertmeshError as error:
            outcome, detail = "lost", f"{type(error).__name__}: {error}"
        return Ended(kind, began, self.now_s - began, first, outcome, detail)

    async def _answer(self, client: AsyncClient, chance: random.Random) -> tuple[float | None, str]:
        model, number, count = chance.choice(self._models), chance.randrange(len(PROMPTS)), chance.choice(COUNTS)
        ids, first_s = await _streamed(client, model, PROMPTS[number], count)
        return first_s, "ok" if ids == self._expected.ids[model, number][:count] else "wrong"

    async def _cancelled(self, client: AsyncClient, chance: random.Random) -> tuple[float | None, str]:
        model, number = chance.choice(self._models), chance.randrange(len(PROMPTS))
        ids, _ = await _streamed(client, model, PROMPTS[number], LONGEST, stop_after=chance.randrange(1, 30))
        return None, "ok" if ids == self._expected.ids[model, number][: len(ids)] else "wrong"

    async def _sampled(self, client: AsyncClient, chance: random.Random) -> tuple[float | None, str]:
        asked = {"prompt_ids": PROMPTS[2], "max_tokens": 20, "temperature": 1.0, "seed": chance.randrange(10**6)}
        model = chance.choice(self._models)
        twice = [await client.complete(**asked, model=model, deadline_s=DEADLINE_S) for _ in range(2)]
        return None, "ok" if twice[0].token_ids == twice[1].token_ids else "wrong"

    async def _score(self, client: AsyncClient, chance: random.Random) -> tuple[float | None, str]:
        score = await client.score(ids=PROMPTS[3], model=chance.choice(self._models), deadline_s=DEADLINE_S)
        return None, "ok" if len(score.tokens) == len(PROMPTS[3]) else "wrong"

    async def _tokenize(self, client: AsyncClient, chance: random.Random) -> tuple[float | None, str]:
        found = await client.tokenize("the rain in Spain", model=chance.choice(self._models), deadline_s=DEADLINE_S)
        return None, "ok" if found.ids else "wrong"

    async def _wrong(self, client: AsyncClient, chance: random.Random) -> tuple[float | None, str]:
        asked = {"model": chance.choice(self._models)} | chance.choice(WRONG)
        try:
            await client.complete(**asked, deadline_s=DEADLINE_S)
        except (InvalidRequest, NotFound):
            return None, "ok"
        return None, "wrong"


async def _streamed(
    client: AsyncClient, model: str, prompt: Sequence[int], count: int, stop_after: int | None = None
) -> tuple[tuple[int, ...], float | None]:
    """The ids that came, and the seconds until the first one."""
    began, first_s, ids = time.monotonic(), None, []
    stream = client.generate(prompt_ids=prompt, max_tokens=count, ignore_eos=True, model=model, deadline_s=DEADLINE_S)
    async with stream:
        async for token in stream:
            first_s = first_s or time.monotonic() - began
            ids.append(token.id)
            if stop_after is not None and len(ids) >= stop_after:
                break
    return tuple(ids), first_s
