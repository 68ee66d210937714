"""Input that is wrong, as bytes and as values, over real sockets: refused at the edge with the field named."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest

from expertmesh_api.v1 import common_pb2, experts_pb2, experts_pb2_grpc, gating_pb2
from expertmesh_api.v1 import inference_pb2 as pb
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.channel.frame import Request, Status, decode_reply, encode_request, model_key
from expertmesh_common.channel.handshake import present
from expertmesh_common.security import MAX_MESSAGE_BYTES
from models import tiny_bundle as tiny
from rigs.expert_hosts import IdentityHost
from rigs.expert_worker import ExpertWorker
from rigs.served_gateway import ServedGateway, asking

Code = grpc.StatusCode
BAD = Code.INVALID_ARGUMENT
CONTEXT = 200
NAN, INFINITE = float("nan"), float("inf")
INFERENCE, GATING = "/expertmesh_api.v1.Inference", "/expertmesh_api.v1.Gating"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
async def served(bundle: Bundle) -> AsyncIterator[ServedGateway]:
    async with ServedGateway(bundle, slots=4, context_tokens=CONTEXT) as found:
        yield found
        # Whatever came, the same processes answer the next one.
        events = [event async for event in found.one.Generate(asking(1, 3))]
        assert events[-1].finished.completion_tokens == 3


async def refusal(served: ServedGateway, path: str, data: bytes) -> tuple[grpc.StatusCode, str]:
    """How a call with these bytes ends."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}", served.limits) as channel:
        streams = path.endswith("/Generate")
        call = (channel.unary_stream if streams else channel.unary_unary)(path)(data, timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (call.read() if streams else call)
    return caught.value.code(), caught.value.details() or ""


def generate(**fields) -> tuple[str, bytes]:
    return f"{INFERENCE}/Generate", pb.GenerateRequest(**fields).SerializeToString()


def sampled(**options) -> tuple[str, bytes]:
    return generate(prompt="a", sampling=pb.SamplingOptions(**options))


def tokenize(**fields) -> tuple[str, bytes]:
    return f"{INFERENCE}/Tokenize", pb.TokenizeRequest(**fields).SerializeToString()


def score(**fields) -> tuple[str, bytes]:
    return f"{INFERENCE}/Score", pb.ScoreRequest(**fields).SerializeToString()


def route(values: object = (), *, shape: tuple[int, ...] | None = None, dtype="float32", **rest) -> tuple[str, bytes]:
    data = np.asarray(values, "<f4")
    rows = common_pb2.Tensor(name="rows", dtype=dtype, shape=shape or data.shape, data=data.tobytes())
    return f"{GATING}/Route", gating_pb2.RouteRequest(**{"model": "tiny", "rows": rows} | rest).SerializeToString()


def spoilt(call: tuple[str, bytes], sound: bytes, bad: bytes) -> tuple[str, bytes]:
    assert sound in call[1]
    return call[0], call[1].replace(sound, bad)


def with_field(call: tuple[str, bytes], number: int) -> tuple[str, bytes]:
    """A varint field that nobody knows."""
    key = number << 3
    return call[0], call[1] + bytes((key & 0x7F | 0x80, key >> 7, 1))


ROW = np.ones((1, tiny.HIDDEN))
CHAT = pb.Chat(messages=[pb.ChatMessage(role="user", content="hello")])

WRONG = {
    "no such model": (generate(model="other", prompt="a"), Code.NOT_FOUND, "model 'other'"),
    "no input": (generate(), BAD, "input is missing"),
    "empty prompt": (generate(prompt=""), BAD, "prompt has no tokens"),
    "too long prompt": (generate(prompt="x " * 9000), BAD, "prompt has 18000 characters"),
    "too many tokens": (generate(prompt_ids=pb.TokenIds(ids=[1] * 201)), BAD, "prompt_ids has 201"),
    "unknown token": (generate(prompt_ids=pb.TokenIds(ids=[5, 4000])), BAD, "prompt_ids.ids[1]"),
    "max_tokens": (generate(prompt="a", max_tokens=10**6), BAD, "max_tokens is 1000000"),
    "resumed beyond": (
        generate(prompt="a", max_tokens=1, resume_token_ids=[1, 2]), BAD, "resume_token_ids has 2"
    ),
    "empty chat": (generate(chat=pb.Chat()), BAD, "chat.messages is empty"),
    "chat without role": (
        generate(chat=pb.Chat(messages=[pb.ChatMessage(content="x")])), BAD, "chat.messages[0].role"
    ),
    "negative temperature": (sampled(temperature=-1), BAD, "sampling.temperature is -1"),
    "temperature nan": (sampled(temperature=NAN), BAD, "sampling.temperature is nan"),
    "temperature inf": (sampled(temperature=INFINITE), BAD, "sampling.temperature is inf"),
    "top_p zero": (sampled(top_p=0.0), BAD, "sampling.top_p is 0"),
    "top_p nan": (sampled(top_p=NAN), BAD, "sampling.top_p is nan"),
    "min_p above one": (sampled(min_p=1.5), BAD, "sampling.min_p is 1.5"),
    "penalty zero": (sampled(repetition_penalty=0.0), BAD, "sampling.repetition_penalty is 0"),
    "penalty -inf": (sampled(repetition_penalty=-INFINITE), BAD, "sampling.repetition_penalty is -inf"),
    "top_k": (sampled(top_k=4000), BAD, "sampling.top_k is 4000"),
    "alternatives": (sampled(top_logprobs=21), BAD, "sampling.top_logprobs is 21"),
    "contradiction": (sampled(top_logprobs=2), BAD, "top_logprobs is 2 but logprobs is false"),
    "empty stop": (sampled(stop=["ok", ""]), BAD, "sampling.stop[1]"),
    "many stops": (sampled(stop=["x"] * 17), BAD, "sampling.stop has 17"),
    "unknown field": (with_field(generate(prompt="a"), 99), BAD, "field 99 of GenerateRequest"),
    "unknown nested field": (
        (f"{INFERENCE}/Generate", b"\x2a\x03\x98\x06\x01"), BAD, "sampling.field 99 of SamplingOptions"
    ),
    "prompt not utf-8": (
        spoilt(generate(prompt="hello"), b"hello", b"he\xffl\xfe"), BAD, "prompt is not valid UTF-8"
    ),
    "chat not utf-8": (
        spoilt(generate(chat=CHAT), b"hello", b"he\xffl\xfe"), BAD, "chat.messages.content is not valid"
    ),
    "no message": ((f"{INFERENCE}/Generate", b"\xff" * 9), BAD, "GenerateRequest: its 9 bytes"),
    "tokenize nothing": (tokenize(), BAD, "input is missing"),
    "tokenize too long": (tokenize(text="x" * 20000), BAD, "text has 20000 characters"),
    "tokenize unknown field": (with_field(tokenize(text="a"), 99), BAD, "field 99 of TokenizeRequest"),
    "score nothing": (score(), BAD, "input is missing"),
    "score unknown token": (score(ids=pb.TokenIds(ids=[1, 300])), BAD, "ids.ids[1]"),
    "score unknown field": (with_field(score(text="ab"), 99), BAD, "field 99 of ScoreRequest"),
    "rows nan": (route(ROW * NAN), BAD, "rows"),
    "rows inf": (route(ROW * INFINITE), BAD, "rows"),
    "rows too narrow": (route(ROW[:, :5]), BAD, "rows"),
    "rows of another type": (route(ROW, dtype="object"), BAD, "rows"),
    "rows that lie about their shape": (route(ROW, shape=(2**31, 2**31)), BAD, "rows"),
    "no such layer": (route(ROW, layer=77), BAD, "layer 77 does not exist"),
    "gate of no such model": (route(ROW, model="other"), Code.NOT_FOUND, "'other'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_input_is_refused_with_the_field_named(served: ServedGateway, name: str) -> None:
    (path, data), code, words = WRONG[name]
    found, details = await refusal(served, path, data)
    assert found is code, details
    assert words in details


async def test_a_message_beyond_the_limit_is_refused_before_it_is_read(served: ServedGateway) -> None:
    code, details = await refusal(served, f"{INFERENCE}/Tokenize", bytes(MAX_MESSAGE_BYTES + 1))
    assert code is Code.RESOURCE_EXHAUSTED
    assert str(MAX_MESSAGE_BYTES) in details


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\xff" * 5000])
async def test_connections_that_say_nothing_or_nonsense_are_nobodys_problem(served: ServedGateway, sent: bytes) -> None:
    strangers = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(50)]
    for stranger in strangers:
        stranger.sendall(sent)
    events = [event async for event in served.other.Generate(asking(1, 5), timeout=20)]
    assert events[-1].finished.completion_tokens == 5
    for stranger in strangers:
        stranger.close()


async def test_a_caller_that_vanishes_in_its_answer_frees_its_slot(served: ServedGateway) -> None:
    served.plane.delay_s = 0.01
    channel = grpc.aio.insecure_channel(f"[::1]:{served.port}")
    call = channel.unary_stream(f"{INFERENCE}/Generate")(asking(1, 150).SerializeToString())
    await anext(aiter(call))
    await channel.close()
    await served.until(lambda: served.gateway.engine.outstanding == 0)
    served.plane.delay_s = 0.0


async def test_many_slow_readers_hold_up_nobody(served: ServedGateway) -> None:
    asked = asking(1, 150, logprobs=True)
    asked.sampling.top_logprobs = 20
    slow = [served.one.Generate(asked) for _ in range(20)]
    for call in slow:
        await anext(aiter(call))
    events = [event async for event in served.other.Generate(asking(1, 5), timeout=20)]
    assert events[-1].finished.completion_tokens == 5
    rest = await asyncio.gather(*(_count(call) for call in slow))
    assert rest == [150] * 20


async def _count(call) -> int:
    return len([event async for event in call])


def frame(**changes) -> bytes:
    fields = {"seq": 1, "epoch": (1, 1), "model": model_key("tiny"), "layer": 0, "deadline_ms": 0}
    pairs = {"row": np.zeros(1, np.uint32), "expert": np.zeros(1, np.uint16), "weight": np.ones(1, np.float32)}
    return b"".join(
        encode_request(Request(**fields | {"tensors": {"rows": np.ones((1, 4), np.float32)}} | pairs | changes))
    )


@pytest.fixture
def worker():
    found = ExpertWorker(IdentityHost())
    yield found
    found.stop(0.2)


def admitted(worker: ExpertWorker) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(worker.tcp.address.rpartition(":")[2])), timeout=10)
    present(connection, worker.tickets.issue())
    return connection


def answered(connection: socket.socket) -> bytes:
    """Everything until the worker ends the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (frame()[:4] + b"\2" + frame()[5:], "version 2"),
        (b"HTTP" + frame()[4:], "magic"),
        (frame()[:52] + b"\xff\xff\xff\x7f" + frame()[56:], "exceeds the limit"),
        (frame(row=np.full(1, 9, np.uint32)), "row 9 of 1"),
    ],
    ids=["version", "magic", "huge", "row"],
)
def test_a_broken_frame_is_answered_with_why_and_ends_its_connection_only(worker, sent: bytes, words: str) -> None:
    other = admitted(worker)
    with admitted(worker) as connection:
        connection.sendall(sent)
        reply = decode_reply(answered(connection))
    assert reply.status is Status.INVALID
    assert words in reply.message
    with other:
        other.sendall(frame())
        head = other.recv(65536)
        assert decode_reply(head).status is Status.OK


def test_half_open_streams_end_with_the_time_for_their_handshake(worker) -> None:
    address = ("127.0.0.1", int(worker.tcp.address.rpartition(":")[2]))
    silent = [socket.create_connection(address, timeout=10) for _ in range(20)]
    began = time.monotonic()
    for connection in silent:  # all of them at once: one that was ended before it sent anything is reset
        connection.sendall(b"EXMT")  # and no more
    try:
        assert [connection.recv(1) for connection in silent] == [b""] * len(silent)
    finally:
        for connection in silent:
            connection.close()
    assert time.monotonic() - began < 3 * 0.5 + 5  # the rig's time for a handshake is 0.5 s
    with admitted(worker) as connection:
        connection.sendall(frame())
        assert decode_reply(connection.recv(65536)).status is Status.OK


def test_a_gateway_of_another_frame_version_is_told_to_upgrade(worker) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{worker.port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            experts_pb2_grpc.ExpertsStub(channel).Open(
                experts_pb2.OpenRequest(transports=["tcp"], frame_versions=[7]), timeout=10
            )
        assert caught.value.code() is Code.FAILED_PRECONDITION
        assert "frame version 1, the gateway [7]" in caught.value.details()
