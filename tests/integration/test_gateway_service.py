"""The gateway behind a real gRPC server, with a tiny model and in-process experts."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from expertmesh_api.v1 import inference_pb2 as pb
from expertmesh_api.v1 import inference_pb2_grpc
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.errors import InvalidInput, Unavailable
from expertmesh_common.security import Security, dial
from expertmesh_common.serving import Serving
from expertmesh_controller.cluster.reports import GatewayReport
from expertmesh_controller.cluster.routes import Epoch, InstanceRoute, RouteTable, WorkerRoute
from expertmesh_controller.gateway.gateway import Gateway
from expertmesh_controller.gateway.settings import GatewaySettings
from models import tiny_bundle as tiny
from models.numpy_plane import NumpyPlane

CONTEXT = 200


class TestRoutes:
    """A control loop that says what it is told to, and remembers what it hears."""

    __test__ = False

    def __init__(self) -> None:
        self.tables: asyncio.Queue[RouteTable | Exception] = asyncio.Queue()
        self.reports: asyncio.Queue[GatewayReport] = asyncio.Queue()

    async def watch(self) -> AsyncIterator[RouteTable]:
        while True:
            table = await self.tables.get()
            if isinstance(table, Exception):
                raise table
            yield table

    async def report(self, report: GatewayReport) -> None:
        await self.reports.put(report)


class House:
    """A served gateway and a client's stub."""

    def __init__(self, bundle: Bundle, held: frozenset[int] | None = None) -> None:
        self.plane, self.routes = NumpyPlane(bundle), TestRoutes()
        settings = GatewaySettings(
            slots=4, context_tokens=CONTEXT, prefill_chunk_tokens=32, queue_limit=2, report_interval_s=0.05
        )
        self.gateway = Gateway(bundle, "fp32", self.routes, self.plane, settings, gateway_id="g1", held=held)
        self.serving = Serving(Security())

    async def open(self) -> None:
        names = self.gateway.add_to(self.serving.server)
        port = await self.serving.start("127.0.0.1:0", names)
        await self.gateway.start()
        self.channel = dial(f"127.0.0.1:{port}", Security())
        self.stub = inference_pb2_grpc.InferenceStub(self.channel)

    async def close(self) -> None:
        await self.channel.close()
        await self.serving.stop(0)
        await self.gateway.stop()

    async def generate(self, within_s: float = 60, **fields) -> tuple[list[pb.Token], pb.Finished]:
        call = self.stub.Generate(pb.GenerateRequest(**fields), timeout=within_s)
        events = [event async for event in call]
        assert all(e.WhichOneof("event") == "token" for e in events[:-1])
        return [e.token for e in events[:-1]], events[-1].finished

    async def emptied(self) -> None:
        await eventually(lambda: not self.gateway.engine.outstanding)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - seen from outside: nothing signals it
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
async def house(bundle: Bundle):
    house = House(bundle)
    await house.open()
    yield house
    await house.close()


def ids_of(tokens: list[pb.Token]) -> list[int]:
    return [token.id for token in tokens]


ENDLESS = pb.SamplingOptions(ignore_eos=True)
PROMPT = {"prompt_ids": pb.TokenIds(ids=[5, 6, 7])}


async def test_an_answer_is_the_references_tokens_then_what_was_measured(house: House, bundle: Bundle) -> None:
    tokens, finished = await house.generate(**PROMPT, max_tokens=12)
    assert ids_of(tokens) == tiny.greedy_ids(bundle, [5, 6, 7], 12)
    assert [token.position for token in tokens] == list(range(12))
    assert not tokens[0].HasField("logprob")
    assert finished.reason == pb.FINISH_REASON_LENGTH
    assert (finished.prompt_tokens, finished.completion_tokens) == (3, 12)
    assert 0 <= finished.queue_ms <= finished.ttft_ms <= finished.total_ms
    assert (finished.precision, finished.numerics, list(finished.lossy)) == ("fp32", "exact", [])
    assert 1 / 3 < finished.active_share < 1


async def test_text_is_what_the_tokens_spell(house: House, bundle: Bundle) -> None:
    tokens, finished = await house.generate(prompt="the rain", max_tokens=20)
    text = "".join(token.text for token in tokens) + finished.text_tail
    assert text == house.gateway._codec.decode(ids_of(tokens))


async def test_a_chat_goes_through_the_models_template(house: House, bundle: Bundle) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])
    _, finished = await house.generate(chat=chat, max_tokens=1)
    tokenized = await house.stub.Tokenize(pb.TokenizeRequest(chat=chat))
    assert tokenized.pieces[0] == "<|im_start|>"
    assert tokenized.ids[0] == tiny.IM_START
    assert finished.prompt_tokens == len(tokenized.ids)


async def test_a_stop_string_ends_the_answer_before_it_and_frees_the_slot(house: House) -> None:
    tokens, _ = await house.generate(**PROMPT, max_tokens=60)
    text = "".join(token.text for token in tokens)
    stop = next(text[i : i + 3] for i in range(8, len(text)) if text[i : i + 3].isascii())
    stopped, finished = await house.generate(**PROMPT, max_tokens=60, sampling=pb.SamplingOptions(stop=[stop]))
    shown = "".join(token.text for token in stopped) + finished.text_tail
    assert shown == text[: text.index(stop)]
    assert finished.reason == pb.FINISH_REASON_STOP
    assert finished.completion_tokens == len(stopped) < 60
    await house.emptied()


async def test_a_resumed_stream_goes_on_with_tokens_text_and_stop_strings(house: House) -> None:
    options = {"sampling": pb.SamplingOptions(temperature=1.0, seed=9, stop=["zzzz"]), "max_tokens": 24}
    tokens, finished = await house.generate(**PROMPT, **options)
    for cut in (1, 10, 24):
        rest, end = await house.generate(**PROMPT, **options, resume_token_ids=ids_of(tokens)[:cut])
        assert [(t.position, t.id, t.text) for t in rest] == [(t.position, t.id, t.text) for t in tokens[cut:]]
        assert (end.reason, end.text_tail) == (finished.reason, finished.text_tail)
        assert end.completion_tokens == finished.completion_tokens


async def test_resuming_behind_a_stop_string_ends_at_once(house: House) -> None:
    tokens, _ = await house.generate(**PROMPT, max_tokens=30)
    text = "".join(token.text for token in tokens[:20])
    place = next(i for i in range(3, len(text) - 3) if text[i : i + 2].isascii())
    options = {"sampling": pb.SamplingOptions(stop=[text[place : place + 2]]), "max_tokens": 30}
    rest, finished = await house.generate(**PROMPT, **options, resume_token_ids=ids_of(tokens)[:20])
    assert (rest, finished.reason) == ([], pb.FINISH_REASON_STOP)


async def test_log_probabilities_come_when_asked_for(house: House) -> None:
    tokens, _ = await house.generate(**PROMPT, max_tokens=3, logprobs=True, sampling=pb.SamplingOptions(top_logprobs=2))
    for token in tokens:
        best, second = token.top_logprobs
        assert token.id == best.id
        assert token.logprob == best.logprob >= second.logprob


async def test_a_cancelled_call_gives_its_slot_back(house: House) -> None:
    house.plane.delay_s = 0.005
    call = house.stub.Generate(pb.GenerateRequest(**PROMPT, max_tokens=190, sampling=ENDLESS))
    await anext(aiter(call))
    assert house.gateway.engine.outstanding == 1
    call.cancel()
    await house.emptied()
    assert len(house.plane.calls) < 150 * tiny.LAYERS  # it did not simply run to its end


async def test_a_slow_reader_holds_up_nobody(house: House, bundle: Bundle) -> None:
    slow = house.stub.Generate(pb.GenerateRequest(**PROMPT, max_tokens=150, sampling=ENDLESS))
    await anext(aiter(slow))
    tokens, _ = await house.generate(prompt_ids=pb.TokenIds(ids=[9]), max_tokens=20)
    assert ids_of(tokens) == tiny.greedy_ids(bundle, [9], 20)
    await house.emptied()  # the slow one is generated too, unread
    rest = [event async for event in slow]
    assert rest[-1].finished.completion_tokens == 150


async def failure(house: House, within_s: float = 30, **fields) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.generate(within_s, **fields)
    return caught.value


async def test_a_deadline_ends_a_call_and_frees_its_slot(house: House) -> None:
    house.plane.delay_s = 0.01
    error = await failure(house, 0.4, **PROMPT, max_tokens=190, sampling=ENDLESS)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await house.emptied()


async def test_too_many_calls_are_told_to_come_back(house: House) -> None:
    house.plane.delay_s = 0.003
    calls = [house.stub.Generate(pb.GenerateRequest(**PROMPT, max_tokens=190, sampling=ENDLESS)) for _ in range(6)]
    await eventually(lambda: house.gateway.engine.outstanding == 6)
    error = await failure(house, **PROMPT, max_tokens=5)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata())["retry-after-ms"]) >= 100
    for call in calls:
        call.cancel()
    await house.emptied()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "input is missing"),
        ({"prompt": ""}, "prompt has no tokens"),
        ({"prompt": "x " * 50_000}, "prompt has 100000 characters: at most 12800"),
        ({"prompt_ids": pb.TokenIds(ids=[1, 300])}, r"prompt_ids.ids[1] is 300: token ids go from 0 to 299"),
        ({"prompt_ids": pb.TokenIds(ids=[1] * 200)}, "prompt_ids has 200 tokens"),
        ({"prompt": "abc", "max_tokens": 198}, "max_tokens is 198"),
        ({"prompt": "abc", "max_tokens": 2, "resume_token_ids": [1, 2, 3]}, "resume_token_ids has 3 tokens"),
        ({"prompt": "abc", "resume_token_ids": [900]}, "resume_token_ids[0] is 900"),
        ({"chat": pb.Chat()}, "chat.messages is empty"),
        ({"chat": pb.Chat(messages=[pb.ChatMessage(content="hi")])}, "chat.messages[0].role is empty"),
        ({"prompt": "a", "sampling": pb.SamplingOptions(top_p=0.0)}, "sampling.top_p is 0"),
    ],
)
async def test_wrong_requests_name_the_field(house: House, fields, message: str) -> None:
    error = await failure(house, **fields)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert message in error.details()


async def test_another_model_is_not_here(house: House) -> None:
    error = await failure(house, model="other", prompt="a")
    assert (error.code(), error.details()) == (
        grpc.StatusCode.NOT_FOUND,
        "model 'other' is not served here; this gateway serves tiny",
    )


async def test_a_model_is_ready_when_every_expert_has_an_instance(house: House) -> None:
    (model,) = (await house.stub.ListModels(pb.ListModelsRequest())).models
    assert (model.name, model.precision, model.context_tokens, model.ready) == ("tiny", "fp32", CONTEXT, False)
    assert len(model.bundle_digest) == 64
    worker = WorkerRoute("w1", "g", (), "h", 1.0)
    places = [(layer, index) for layer in range(tiny.LAYERS) for index in range(tiny.EXPERTS)]
    instances = tuple(InstanceRoute("tiny", layer, index, "w1", "fp32") for layer, index in places)
    await house.routes.tables.put(RouteTable(Epoch(1, 1), (worker,), instances[:-1]))
    await house.routes.tables.put(Unavailable("the control loop restarts"))
    await house.routes.tables.put(RouteTable(Epoch(1, 2), (worker,), instances))
    await eventually(lambda: house.gateway.ready)
    assert [table.epoch.n for table in house.plane.tables] == [1, 2]
    (model,) = (await house.stub.ListModels(pb.ListModelsRequest())).models
    assert model.ready


async def test_an_exact_model_is_not_ready_with_copies_that_are_not_exact(house: House) -> None:
    worker = WorkerRoute("w1", "g", (), "h", 1.0)
    places = [(layer, index) for layer in range(tiny.LAYERS) for index in range(tiny.EXPERTS)]
    for n, numerics in enumerate(("fast", "exact"), start=1):
        instances = tuple(InstanceRoute("tiny", layer, index, "w1", "fp32", numerics) for layer, index in places)
        await house.routes.tables.put(RouteTable(Epoch(1, n), (worker,), instances))
    await eventually(lambda: house.gateway.ready)
    assert [len(table.instances) for table in house.plane.tables] == [0, len(places)]


async def test_a_fast_model_whose_experts_are_all_on_workers_takes_what_they_hold(bundle: Bundle) -> None:
    house = House(bundle, held=frozenset())
    await house.open()
    worker = WorkerRoute("w1", "g", (), "h", 1.0)
    places = [(layer, index) for layer in range(tiny.LAYERS) for index in range(tiny.EXPERTS)]
    numerics = ("fast", "exact")
    instances = tuple(InstanceRoute("tiny", *at, "w1", "fp32", numerics[at[1] % 2]) for at in places)
    await house.routes.tables.put(RouteTable(Epoch(1, 1), (worker,), instances))
    await eventually(lambda: house.gateway.ready)
    _, finished = await house.generate(**PROMPT, max_tokens=2)
    assert finished.numerics == "fast"
    await house.close()


async def test_the_load_is_reported_once(house: House) -> None:
    await house.generate(**PROMPT, max_tokens=5)
    house.plane.suspects = ("w3",)
    reports = [await house.routes.reports.get() for _ in range(3)]
    assert sum(report.arrivals for report in reports) == 1
    assert sum(sum(report.token_ms_histogram) for report in reports) == 4
    rows = [row for report in reports for row in report.rows]
    assert sum(row.rows for row in rows if row.layer == 2) == 7
    assert {(report.gateway_id) for report in reports} == {"g1"}
    assert [w for report in reports for w in report.suspect_worker_ids] == ["w3"]


def test_a_precision_the_bundle_lacks_is_refused(bundle: Bundle, monkeypatch) -> None:
    trunk = bundle.manifest.trunk
    segments = tuple(s.model_copy(update={"graphs": {"fp32": s.graphs["fp32"]}}) for s in trunk.segments)
    poorer = Bundle(bundle.folder)
    poorer.manifest = bundle.manifest.model_copy(update={"trunk": trunk.model_copy(update={"segments": segments})})
    with pytest.raises(InvalidInput, match="no trunk at precision int4; it has fp32"):
        Gateway(poorer, "int4", TestRoutes(), NumpyPlane(bundle))
