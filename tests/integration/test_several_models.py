"""Several models in one mesh: each request finds its own, and models come and go at run time."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from expertmesh import (
    AsyncClient,
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    SlaTarget,
    Unavailable,
)
from expertmesh_common.bundle.blobs import Bundle, file_digest
from expertmesh_common.bundle.manifest import MANIFEST_NAME
from models.small_mesh import eventually, small_mesh
from models.tiny_bundle import greedy_ids, make_tiny_bundle

PROMPT = [5, 6, 7]
COUNT = 16
LONG = 300


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Two bundles that compute different things; both are named tiny in their manifests."""
    root = tmp_path_factory.mktemp("bundles")
    return {name: make_tiny_bundle(root / name, seed) for seed, name in enumerate(("one", "two"))}


@pytest.fixture(scope="module")
def expected(folders) -> dict[str, list[int]]:
    return {name: greedy_ids(Bundle(folder), PROMPT, COUNT) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def one_copy(folders) -> int:
    """Bytes of every expert of one model."""
    return Bundle(folders["one"]).manifest.expert_bytes("fp32")


@pytest.fixture
async def mesh(folders, tmp_path_factory, one_copy):
    """Serves model one; two workers that have room for three models between them."""
    arguments = [f"one={folders['one']}"]
    async with small_mesh(tmp_path_factory.mktemp("m"), arguments, budget_bytes=3 * one_copy // 2) as client:
        yield client


async def answer(client: AsyncClient, model: str) -> list[int]:
    return list((await client.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True, model=model)).token_ids)


async def served_two(client: AsyncClient, folders, **options) -> None:
    await client.serve_model(folders["two"], name="two", **options)
    await client.wait_ready(model="two", deadline_s=20)


async def test_each_request_is_answered_by_the_model_that_it_names(folders, tmp_path_factory, one_copy, expected):
    arguments = [f"{name}={folder}" for name, folder in folders.items()]
    async with small_mesh(tmp_path_factory.mktemp("m"), arguments, budget_bytes=one_copy) as client:
        await client.wait_ready(deadline_s=20)
        both = await asyncio.gather(*(answer(client, name) for name in ("one", "two", "one", "two")))
        assert both == [expected["one"], expected["two"]] * 2
        assert expected["one"] != expected["two"]
        assert [(m.name, m.ready) for m in await client.models()] == [("one", True), ("two", True)]


async def test_a_request_that_names_no_model_or_a_wrong_one_is_told_which_there_are(mesh, folders):
    await mesh.wait_ready(deadline_s=20)
    assert await answer(mesh, "") == await answer(mesh, "one")
    await served_two(mesh, folders)
    with pytest.raises(InvalidRequest, match="model is missing; this gateway serves one, two"):
        await answer(mesh, "")
    with pytest.raises(NotFound, match="'three' is not served here; this gateway serves one, two"):
        await mesh.tokenize("x", model="three")


async def test_a_model_served_at_run_time_answers_and_is_listed_with_all_that_was_asked(mesh, folders, expected):
    target = SlaTarget(ttft_p95_ms=500, token_p95_ms=50, window_s=30, max_instances=1, cost_weight=2)
    first = await mesh.serve_model(folders["two"], name="two", sla=target, budget_share=0.5, slots=3)
    assert (first.name, first.state, first.experts, first.slots) == ("two", "loading", 12, 3)
    await mesh.wait_ready(deadline_s=20)
    assert await answer(mesh, "two") == expected["two"]
    one, two = await mesh.served_models()
    assert (one.name, one.state, one.budget_share, one.sla) == ("one", "ready", 1.0, SlaTarget())
    assert (two.name, two.state, two.path, two.sla, two.budget_share) == (
        "two", "ready", str(folders["two"]), target, 0.5
    )  # fmt: skip
    assert two.bundle_digest == file_digest(folders["two"] / MANIFEST_NAME)
    assert (two.instances, two.missing_bytes, two.requests) == (12, 0, 0)  # one copy of each expert, as its target says
    assert two.ttft_p95_ms > 0
    assert two.token_p95_ms > 0
    promised = {"ttft_p95_ms": (500, two.ttft_p95_ms), "token_p95_ms": (50, two.token_p95_ms)}
    assert {t.name: (t.promised_ms, t.seen_ms) for t in two.targets} == promised
    assert [t.state for t in two.targets] == ["met" if s <= p else "missed" for p, s in promised.values()]
    assert one.targets == ()


async def test_serving_the_same_again_changes_nothing_and_another_needs_another_name(mesh, folders):
    await served_two(mesh, folders)
    before = (await mesh.served_models())[1]
    assert (await mesh.serve_model(folders["two"], name="two")).bundle_digest == before.bundle_digest
    with pytest.raises(InvalidRequest, match="'two' is serving already"):
        await mesh.serve_model(folders["one"], name="two")
    assert len(await mesh.served_models()) == 2


async def test_a_model_without_a_name_takes_its_bundles_own(mesh, folders):
    assert (await mesh.serve_model(folders["two"])).name == "tiny"


async def test_what_is_wrong_with_a_bundle_is_said_to_who_asked_and_nothing_changes(mesh, folders, tmp_path, expected):
    broken = tmp_path / "broken"
    shutil.copytree(folders["two"], broken)
    manifest = Bundle(broken).manifest
    expert = manifest.layers[1].experts[2].blobs["fp32"].digest
    trunk = manifest.trunk.segments[0].graphs["fp32"].weights.digest
    with pytest.raises(NotFound, match=r"no model bundle in .*/nothing"):
        await mesh.serve_model(tmp_path / "nothing")
    with pytest.raises(InvalidRequest, match="'fp64'"):
        await mesh.serve_model(broken, precision="fp64")
    with pytest.raises(InvalidRequest, match="must be absolute"):
        await mesh.serve_model("broken")
    with pytest.raises(InvalidRequest, match=r"budget_share is 1\.5"):
        await mesh.serve_model(broken, budget_share=1.5)
    path = broken / "blobs" / "sha256" / trunk
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DataLoss, match=trunk):
        await mesh.serve_model(broken, name="two")
    (broken / "blobs" / "sha256" / expert).write_bytes(b"short")
    with pytest.raises(DataLoss, match="expert 2 of layer 1 has 5 bytes"):
        await mesh.serve_model(broken, name="two")
    (broken / "blobs" / "sha256" / expert).unlink()
    with pytest.raises(NotFound, match=f"{expert} of expert 2 of layer 1 is missing"):
        await mesh.serve_model(broken, name="two")
    await mesh.wait_ready(deadline_s=20)
    assert [m.name for m in await mesh.served_models()] == ["one"]
    assert await answer(mesh, "one") == expected["one"]


async def test_a_share_that_cannot_hold_one_copy_is_refused_with_what_is_missing(mesh, folders, one_copy):
    await mesh.wait_ready(deadline_s=20)
    with pytest.raises(FailedPrecondition, match=f"{one_copy - int(3 * one_copy * 0.25)} bytes are missing"):
        await mesh.serve_model(folders["two"], name="two", budget_share=0.25)


async def test_replicas_stay_inside_a_models_share(mesh, folders, one_copy):
    await served_two(mesh, folders, budget_share=0.4)
    await mesh.wait_ready(deadline_s=20)
    one, two = await mesh.served_models()
    assert one_copy <= two.resident_bytes <= 0.4 * 3 * one_copy
    assert one.resident_bytes > one_copy


async def test_an_unserved_model_is_refused_and_its_experts_leave_the_workers(mesh, folders, expected, one_copy):
    await served_two(mesh, folders)
    assert await mesh.unserve_model("two") == 0
    with pytest.raises(NotFound, match="'two' is not served here; this gateway serves one"):
        await answer(mesh, "two")
    with pytest.raises(NotFound, match="'two' is not served here; served: one"):
        await mesh.unserve_model("two")
    await mesh.wait_ready(deadline_s=20)
    assert {p.model for p in await mesh.experts()} == {"one"}
    assert sum(n.resident_bytes for n in await mesh.nodes()) <= 2 * one_copy
    assert await answer(mesh, "one") == expected["one"]
    await served_two(mesh, folders)
    assert await answer(mesh, "two") == expected["two"]


async def is_state(client: AsyncClient, state: str) -> bool:
    """Whether model two is in this state."""
    return any(m.state == state for m in await client.served_models() if m.name == "two")


async def long_answer(client: AsyncClient, started: asyncio.Event) -> int:
    stream = client.generate(prompt_ids=PROMPT, max_tokens=LONG, ignore_eos=True, model="two")
    count = 0
    async for _ in stream:
        count += 1
        started.set()
    return count


async def test_running_answers_end_before_their_model_goes_and_new_ones_are_refused(mesh, folders):
    await served_two(mesh, folders)
    started = asyncio.Event()
    running = asyncio.create_task(long_answer(mesh, started))
    await started.wait()
    going = asyncio.create_task(mesh.unserve_model("two", drain_s=30))
    await eventually(lambda: is_state(mesh, "draining"))
    with pytest.raises(NotFound, match="'two' is being taken away and takes no new requests"):
        await answer(mesh, "two")
    with pytest.raises(FailedPrecondition, match="'two' is draining"):
        await mesh.unserve_model("two")
    assert await running == LONG
    assert await going == 0
    assert [m.name for m in await mesh.served_models()] == ["one"]


async def test_answers_that_the_drain_time_is_too_short_for_are_cut_and_counted(mesh, folders):
    await served_two(mesh, folders)
    started = asyncio.Event()
    running = asyncio.create_task(long_answer(mesh, started))
    await started.wait()
    assert await mesh.unserve_model("two", drain_s=0) == 1
    with pytest.raises((Unavailable, NotFound)):
        await running
    assert [m.name for m in await mesh.served_models()] == ["one"]


async def test_a_change_goes_on_when_whoever_asked_for_it_is_gone(mesh, folders):
    asking = asyncio.create_task(mesh.serve_model(folders["two"], name="two"))
    await eventually(lambda: is_state(mesh, "loading"))
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await eventually(lambda: is_state(mesh, "ready"))
