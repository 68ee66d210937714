"""Never run: what a type checker must see of the SDK. `test_sdk_types.py` checks it strictly."""

from __future__ import annotations

from typing import assert_type

from expertmesh import (
    AsyncClient,
    AsyncTokenStream,
    Client,
    Completion,
    ExpertPlacement,
    Node,
    Overloaded,
    Readiness,
    ResumePolicy,
    Score,
    ScoredToken,
    ServedModel,
    Tls,
    Token,
    Tokenization,
    TokenStream,
    TopLogprob,
)


def made_in_every_way() -> None:
    Client()
    Client("a:1,b:2")
    Client(["a:1", "b:2"], token="t", tls=Tls.in_folder("tls"), deadline_s=5, resume=ResumePolicy(attempts=3))
    Client(("a:1",))
    Client(7070)  # type: ignore[arg-type]


def sync() -> None:
    with Client() as client:
        assert_type(client, Client)
        stream = client.generate("x", max_tokens=5, temperature=0.5, stop="END", stops=1)  # type: ignore[call-arg]
        stream = client.generate(prompt_ids=(1, 2), stop=["a", "b"], seed=1)
        assert_type(stream, TokenStream)
        for token in stream:
            assert_type(token, Token)
            assert_type(token.logprob, float | None)
            assert_type(token.top_logprobs, tuple[TopLogprob, ...])
        for text in client.chat([{"role": "user", "content": "hi"}]).texts():
            assert_type(text, str)
        assert_type(stream.result, Completion)
        assert_type(stream.address, str)
        assert_type(client.complete("x", max_tokens="5"), Completion)  # type: ignore[arg-type]
        assert_type(client.complete("x").token_ids, tuple[int, ...])
        score = client.score("x", prompt="y", top_logprobs=2, deadline_s=1)
        assert_type(score, Score)
        assert_type(score.tokens, tuple[ScoredToken, ...])
        assert_type(score.logprobs, tuple[float | None, ...])
        assert_type(client.tokenize("x"), Tokenization)
        assert_type(client.models(), tuple[ServedModel, ...])
        assert_type(client.nodes(), tuple[Node, ...])
        assert_type(client.experts("m"), tuple[ExpertPlacement, ...])
        assert_type(client.wait_ready(deadline_s=5), Readiness)


async def aio() -> None:
    async with AsyncClient() as client:
        assert_type(client, AsyncClient)
        stream = client.generate("x")
        assert_type(stream, AsyncTokenStream)
        async for token in stream:
            assert_type(token, Token)
        async for text in stream.texts():
            assert_type(text, str)
        assert_type(await stream.complete(), Completion)
        assert_type(await client.complete("x"), Completion)
        assert_type(await client.score(ids=[1, 2]), Score)
        assert_type(await client.tokenize("x"), Tokenization)
        assert_type(await client.models(), tuple[ServedModel, ...])


def results_are_frozen(token: Token, error: Overloaded) -> None:
    token.id = 3  # type: ignore[misc]
    assert_type(error.retry_after_ms, int)
