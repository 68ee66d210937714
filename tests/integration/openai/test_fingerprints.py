"""With which weights, precision and numerics an answer was made: `system_fingerprint`, read by OpenAI's own client."""

from __future__ import annotations

import json

import pytest

from expertmesh_api.v1 import inference_pb2
from expertmesh_common.bundle.blobs import file_digest
from expertmesh_common.bundle.manifest import MANIFEST_NAME
from expertmesh_controller.gateway.openai.answers import AnswerPieces, Echoed, Usage
from expertmesh_controller.gateway.openai.shapes import COMPLETION, Chunks, Head, Whole, whole_body
from rigs.openai_door import PROMPT, door_house

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 5, "extra_body": {"ignore_eos": True}}
CHAT = [{"role": "user", "content": "the rain"}]
HEAD = Head("cmpl-1", 0, "tiny", "em_0123456789ab_fp32_exact")


def expected(bundle, numerics: str = "exact") -> str:
    return f"em_{file_digest(bundle.folder / MANIFEST_NAME)[:12]}_fp32_{numerics}"


async def fingerprints(client) -> set[str]:
    """Of whole answers, and of every chunk of streamed ones, in both shapes."""
    more = {"stream": True, "stream_options": {"include_usage": True}}
    wholes = [
        await client.completions.create(prompt=PROMPT, **GREEDY),
        await client.completions.create(prompt=PROMPT, echo=True, logprobs=1, **{**GREEDY, "max_tokens": 0}),
        await client.chat.completions.create(messages=CHAT, n=2, **GREEDY),
    ]
    chunks = [chunk async for chunk in await client.completions.create(prompt=PROMPT, n=2, **more, **GREEDY)]
    chunks += [chunk async for chunk in await client.chat.completions.create(messages=CHAT, **more, **GREEDY)]
    assert len(chunks) > 10
    return {answer.system_fingerprint for answer in (*wholes, *chunks)}


async def test_every_answer_and_every_chunk_says_with_what_it_was_made(client, bundle) -> None:
    assert await fingerprints(client) == {expected(bundle)}


async def test_gateways_that_serve_the_same_say_the_same_and_other_numerics_say_so(client, bundle) -> None:
    async with door_house(bundle) as second, second.client() as other:
        assert await fingerprints(other) == await fingerprints(client)
    layers = frozenset(layer.index for layer in bundle.manifest.layers)
    async with door_house(bundle, held=layers) as fused, fused.client() as other:
        assert await fingerprints(other) == {expected(bundle, "fast")}


@pytest.mark.parametrize("lossy", [[], ["links"]])
def test_what_something_lossy_touched_says_so_as_soon_as_it_is_known(lossy) -> None:
    token = inference_pb2.GenerateResponse(token=inference_pb2.Token(text="a"))
    end = inference_pb2.GenerateResponse(finished=inference_pb2.Finished(reason=1, lossy=lossy))
    pieces, whole, chunks = AnswerPieces(None), Whole(), Chunks(COMPLETION, HEAD, usage=True)
    first, last = pieces.take(token), pieces.take(end)
    whole.add(first), whole.add(last)
    last_one = f"{HEAD.fingerprint}_lossy" if lossy else HEAD.fingerprint

    body = whole_body(COMPLETION, HEAD, [Whole(), whole], Usage(), with_logprobs=False)
    said = [chunks.of(0, first), chunks.of(0, last), chunks.usage(Usage())]

    assert body["system_fingerprint"] == last_one
    streamed = [json.loads(event.removeprefix(b"data: "))["system_fingerprint"] for event in said]
    assert streamed == [HEAD.fingerprint, last_one, last_one]
    assert Echoed("the", lossy=bool(lossy)).piece().lossy == bool(lossy)
