"""What the OpenAI door refuses: OpenAI's own client raises its own error classes, and bodies name the parameter."""

from __future__ import annotations

import openai
import pytest

from expertmesh_common.security import Security
from rigs.openai_door import door_house

CHAT = [{"role": "user", "content": "hi"}]

COMPLETIONS = [
    ({"prompt": None}, "prompt", "prompt is missing"),
    ({"prompt": []}, "prompt", "prompt must be a string, a list of strings"),
    ({"prompt": [1, "a"]}, "prompt", "prompt must be a string, a list of strings"),
    ({"prompt": [[1], []]}, "prompt", "prompt has no tokens"),
    ({"prompt": [True]}, "prompt", "prompt must be a string"),
    ({"prompt": [-1]}, "prompt", "prompt must be a string"),
    ({"prompt": ""}, "prompt", "prompt has no tokens"),
    ({"prompt": [5, 300]}, "prompt", "prompt[1] is 300: token ids go from 0 to 299"),
    ({"prompt": "x " * 50_000}, "prompt", "prompt has 100000 characters"),
    ({"prompt": [1] * 400}, "prompt", "prompt has 400 tokens"),
    ({"prompt": [5, 300], "echo": True, "logprobs": 1}, "prompt", "prompt[1] is 300"),
    ({"prompt": ["a"] * 100, "n": 2}, "n", "n is 2 for 100 prompts: at most 128 answers"),
    ({"max_tokens": 0}, "max_tokens", "max_tokens is 0: only with echo"),
    ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
    ({"max_tokens": 400}, "max_tokens", "max_tokens is 400"),
    ({"max_tokens": "5"}, "max_tokens", "valid integer (got '5')"),
    ({"max_tokens": True}, "max_tokens", "valid integer (got True)"),
    ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
    ({"logprobs": True}, "logprobs", "valid integer"),
    ({"best_of": 3}, "best_of", "best_of is not supported"),
    ({"best_of": 1, "n": 2}, "best_of", "best_of is 1 and n is 2"),
    ({"suffix": "end"}, "suffix", "suffix is not supported"),
    ({"stop": ""}, "stop", "stop[0] has 0 characters"),
    ({"stop": ["a"] * 17}, "stop", "stop has 17 strings"),
    ({"stop": [1]}, "stop[0]", "valid string"),
    ({"messages": CHAT}, "messages", "unknown parameter messages"),
]
BOTH = [
    ({"model": None}, "model", "model is missing"),
    ({"model": ""}, "model", "at least 1 character"),
    ({"model": 5}, "model", "valid string"),
    ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
    ({"temperature": "hot"}, "temperature", "valid number"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 129}, "n", "less than or equal to 128"),
    ({"seed": 2**64}, "seed", "less than or equal to"),
    ({"seed": 0.5}, "seed", "valid integer"),
    ({"top_k": 301}, "top_k", "top_k is 301: it must be from 0 to 300"),
    ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty is not supported"),
    ({"frequency_penalty": -1}, "frequency_penalty", "frequency_penalty is not supported"),
    ({"logit_bias": {"5": 100}}, "logit_bias", "logit_bias is not supported"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed when stream is true"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown parameter"),
    ({"stream": "yes"}, "stream", "valid boolean"),
    ({"temprature": 0.5}, "temprature", "unknown parameter temprature"),
]
CHATS = [
    ({"messages": None}, "messages", "messages is missing"),
    ({"messages": []}, "messages", "messages is empty"),
    ({"messages": "hi"}, "messages", "valid tuple"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "is missing"),
    ({"messages": [*CHAT, {"role": "tool", "content": "4", "tool_call_id": "x"}]}, "messages[1].role", "'user'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "must be a string or a list of text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content",
        "part 0 is no text",
    ),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "send one of them"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "greater than or equal to 1"),
    ({"max_completion_tokens": 500}, "max_completion_tokens", "max_completion_tokens is 500"),
    ({"max_tokens": 500}, "max_tokens", "max_tokens is 500"),
    ({"top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs"),
    ({"logprobs": 2}, "logprobs", "valid boolean"),
    ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format", "response_format is not supported"),
    ({"modalities": ["audio"]}, "modalities", "modalities is not supported"),
    ({"prompt": "hi"}, "prompt", "unknown parameter prompt"),
]
CASES = [
    *(("/completions", {"model": "tiny", "prompt": "a", **change}, *rest) for change, *rest in [*COMPLETIONS, *BOTH]),
    *(("/chat/completions", {"model": "tiny", "messages": CHAT, **c}, *rest) for c, *rest in [*CHATS, *BOTH]),
]


async def test_wrong_parameters_are_refused_by_name(house, raw) -> None:
    wrong = []
    for path, body, param, words in CASES:
        answer = await raw.post(path, json=body)
        error = answer.json().get("error", {"message": "", "type": "", "param": ""})
        seen = (answer.status_code, error["type"], error["param"])
        if seen != (400, "invalid_request_error", param) or words not in error["message"]:
            wrong.append((path, {k: v for k, v in body.items() if len(str(v)) < 100}, seen, error["message"]))
    assert wrong == []
    assert house.gateway.engine.outstanding == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is not JSON"),
        (b'{"model": "tiny", "prompt": "a"', "the body is not JSON"),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', "the body is not JSON"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "the body is not JSON"),
        (b'{"model": "tiny", "prompt": "\xff"}', "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'["a"]', "must be a JSON object"),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(raw, body: bytes, words: str) -> None:
    answer = await raw.post("/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "fields", "answered"),
    [
        (
            "POST",
            "/completions",
            {"content": b"{}", "headers": {"Content-Type": "text/plain"}},
            (415, "unsupported_media"),
        ),
        ("POST", "/completions", {"data": {"model": "tiny"}}, (415, "unsupported_media")),
        ("POST", "/completions", {"content": b"{}"}, (415, "unsupported_media")),
        (
            "POST",
            "/completions",
            {"content": b"x", "headers": {"Content-Type": "application/json", "Content-Encoding": "gzip"}},
            (415, "unsupported_media"),
        ),
        (
            "POST",
            "/completions",
            {"content": b" " * (8 * 2**20 + 1), "headers": {"Content-Type": "application/json"}},
            (413, "body_too_large"),
        ),
        ("GET", "/completions", {}, (405, "method_not_allowed")),
        ("POST", "/embeddings", {"json": {}}, (404, "unknown_url")),
        ("GET", "/models/other", {}, (404, "model_not_found")),
        ("POST", "/completions", {"json": {}, "headers": {"X-Deadline-Ms": "soon"}}, (400, None)),
    ],
)
async def test_wrong_requests_are_refused_in_openais_form(raw, method, path, fields, answered) -> None:
    answer = await raw.request(method, path, **fields)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (answer.status_code, error["code"]) == answered
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"].startswith("req-")


async def test_a_base_url_without_its_version_is_told_what_is_missing(house) -> None:
    async with house.client(base_url=house.url.removesuffix("/v1")) as client:
        with pytest.raises(openai.NotFoundError, match="a base URL ends in /v1"):
            await client.models.list()


async def test_another_model_raises_not_found(client) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.completions.create(model="gpt-4o", prompt="a")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "this gateway serves tiny" in str(caught.value)
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="gpt-4o", messages=CHAT, stream=True)
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-4o")


async def test_a_wrong_parameter_raises_bad_request_also_when_streaming(client) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="tiny", messages=CHAT, presence_penalty=1, stream=True)
    assert (caught.value.param, caught.value.code) == ("presence_penalty", "unsupported_parameter")
    assert caught.value.request_id.startswith("req-")


async def test_a_token_is_demanded_of_everybody_and_told_from_a_wrong_one(bundle) -> None:
    async with door_house(bundle, Security(token="right")) as house:
        async with house.client(api_key="wrong") as client:
            for call in (
                client.models.list,
                lambda: client.completions.create(model="tiny", prompt="a"),
                lambda: client.chat.completions.create(model="tiny", messages=CHAT, stream=True),
            ):
                with pytest.raises(openai.AuthenticationError) as caught:
                    await call()
                assert caught.value.code == "invalid_api_key"
        async with house.raw() as raw:
            for headers in (
                {},
                {"Authorization": "Basic right"},
                {"Authorization": "Bearer"},
                {b"Authorization": b"Bearer \xff"},
            ):
                assert (await raw.get("/models", headers=headers)).status_code == 401
            assert (await raw.get("/nothing")).status_code == 401  # nobody learns what there is
        async with house.client(api_key="right") as client:
            assert [model.id async for model in client.models.list()] == ["tiny"]
