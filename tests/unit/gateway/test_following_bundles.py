"""A gateway of its own: it serves what the list says, fetches what it lacks, and believes no blob before its digest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from expertmesh_api.v1 import blobs_pb2, blobs_pb2_grpc, routes_pb2_grpc
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import MANIFEST_NAME
from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import CorruptData, InvalidInput, NotHere, Unavailable
from expertmesh_common.security import Security, dial
from expertmesh_common.serving import Serving
from expertmesh_controller.cluster.bundles import LeavingModel, ServedBundle
from expertmesh_controller.cluster.remote_bundles import RemoteBundles
from expertmesh_controller.control.bundles_hub import BundleBlobs, BundlesHub, offered
from expertmesh_controller.control.catalogue import ServedModel
from expertmesh_controller.control.routes_hub import RoutesHub
from expertmesh_controller.control.routes_service import RoutesService
from expertmesh_controller.gateway.bundle_following import BundleFollower, changes
from expertmesh_controller.gateway.fetching import BundleCache, gateway_blobs
from models import tiny_bundle as tiny

A, B = ServedBundle("a", "fp32", "0" * 64, 1), ServedBundle("b", "fp32", "1" * 64, 1)
DRAINS = 123.5  # seconds; a host of this test drains for ever then
NEWER = ServedBundle("a", "fp32", "2" * 64, 1)


@pytest.mark.parametrize(
    ("running", "wanted", "end", "load"),
    [
        ([], [A, B], (), (A, B)),
        ([A], [A, B], (), (B,)),
        ([A, B], [B], ("a",), ()),
        ([A], [NEWER], ("a",), (NEWER,)),
        ([A], [A], (), ()),
    ],
)
def test_what_runs_becomes_what_is_wanted(running, wanted, end, load):
    found = changes({b.model: b for b in running}, {b.model: b for b in wanted})
    assert (found.end, found.load) == (end, load)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


class Origin(blobs_pb2_grpc.BlobsServicer):
    """A controller's blobs over a real connection, cut or spoilt as told."""

    def __init__(self, bundle: Bundle) -> None:
        self.blobs = BundleBlobs(bundle)
        self.offer = offered(ServedModel("tiny", bundle, "fp32"))
        self.asked: list[tuple[str, int]] = []
        self.cut_at: dict[str, int] = {}
        self.spoilt = ""

    async def Fetch(self, request, context) -> AsyncIterator[blobs_pb2.FetchResponse]:
        self.asked.append((request.digest, request.offset))
        path = self.blobs.path(request.digest)
        if not path.is_file():
            raise NotHere(f"blob {request.digest} is not here")
        data = path.read_bytes()
        if request.digest == self.spoilt:
            data = b"\0" + data[1:]
        cut = self.cut_at.pop(request.digest, None)
        yield blobs_pb2.FetchResponse(data=data[request.offset : cut], total_bytes=len(data))
        if cut is not None:
            raise Unavailable("cut")


@pytest.fixture
async def origin(bundle: Bundle) -> AsyncIterator[Origin]:
    origin, serving = Origin(bundle), Serving(Security())
    blobs_pb2_grpc.add_BlobsServicer_to_server(origin, serving.server)
    port = await serving.start("127.0.0.1:0")
    async with dial(f"127.0.0.1:{port}", Security()) as channel:
        origin.channel = channel
        yield origin
    await serving.stop(0)


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def largest(bundle: Bundle) -> str:
    return max(gateway_blobs(bundle.manifest, "fp32"), key=lambda blob: blob.size_bytes).digest


async def test_a_fetched_bundle_is_the_same_bundle_without_its_experts(origin: Origin, bundle: Bundle, tmp_path: Path):
    cache = BundleCache(origin.channel, tmp_path)
    fetched = await cache.bundle(origin.offer)
    assert (fetched.folder / MANIFEST_NAME).read_bytes() == (bundle.folder / MANIFEST_NAME).read_bytes()
    wanted = {blob.digest for blob in gateway_blobs(bundle.manifest, "fp32")}
    assert {path.name for path in fetched.blobs.folder.iterdir()} == wanted
    asked = len(origin.asked)
    await cache.bundle(origin.offer)
    assert len(origin.asked) == asked + 1  # the manifest alone


async def test_a_model_that_is_held_whole_comes_with_its_experts(origin: Origin, bundle: Bundle, tmp_path: Path):
    fetched = await BundleCache(origin.channel, tmp_path).bundle(replace(origin.offer, numerics="fast"))
    experts = {expert.blobs["fp32"].digest for layer in bundle.manifest.layers for expert in layer.experts}
    assert experts <= {path.name for path in fetched.blobs.folder.iterdir()}


async def test_a_disk_that_takes_nothing_is_no_end_of_the_gateway(origin: Origin, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"tiny cannot be kept in .*file: Not a directory; make room"):
        await BundleCache(origin.channel, tmp_path / "file").bundle(origin.offer)


async def test_a_blob_that_breaks_off_is_continued(origin: Origin, bundle: Bundle, tmp_path: Path):
    digest = largest(bundle)
    origin.cut_at = {digest: 1000}
    fetched = await BundleCache(origin.channel, tmp_path).bundle(origin.offer)
    assert [offset for asked, offset in origin.asked if asked == digest] == [0, 1000]
    assert fetched.blobs.verified(digest)


async def test_other_bytes_are_refused_by_name_and_fetched_again_later(origin: Origin, bundle: Bundle, tmp_path: Path):
    origin.spoilt = largest(bundle)
    cache = BundleCache(origin.channel, tmp_path)
    with pytest.raises(CorruptData, match=origin.spoilt):
        await cache.bundle(origin.offer)
    left = files_of(tmp_path)
    assert MANIFEST_NAME not in left
    assert not any("partial" in name for name in left)
    origin.spoilt = ""
    await cache.bundle(origin.offer)


async def test_a_blob_spoilt_on_disk_is_fetched_again(origin: Origin, bundle: Bundle, tmp_path: Path):
    cache, digest = BundleCache(origin.channel, tmp_path), largest(bundle)
    path = (await cache.bundle(origin.offer)).blobs.path(digest)
    path.write_bytes(b"spoilt")
    fetched = await cache.bundle(origin.offer)
    assert fetched.blobs.verified(digest)


async def test_a_local_folder_is_used_if_it_is_the_served_bundle(origin: Origin, bundle: Bundle, tmp_path: Path):
    other = tiny.make_tiny_bundle(tmp_path / "other", seed=5)
    cache = BundleCache(origin.channel, tmp_path / "cache", (other, bundle.folder))
    assert (await cache.bundle(origin.offer)).folder == bundle.folder
    assert origin.asked == []
    with pytest.raises(NotHere, match=str(tmp_path)):
        BundleCache(origin.channel, tmp_path / "cache", (tmp_path,))


async def test_a_precision_that_the_bundle_lacks_or_nobody_knows_is_refused(origin: Origin, tmp_path: Path):
    odd = ServedBundle("tiny", "fp8", origin.offer.manifest_digest, origin.offer.manifest_bytes)
    with pytest.raises(InvalidInput, match="fp8"):
        await BundleCache(origin.channel, tmp_path).bundle(odd)


class Shelf:
    """Bundles that are or are not to be had."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.away: list[Exception] = []

    async def bundle(self, wanted: ServedBundle) -> Bundle:
        if self.away:
            raise self.away.pop()
        return self._bundle


class Host:
    """Remembers what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.drains_s: dict[str, float] = {}
        self.news = asyncio.Event()

    async def load(self, spec, bundle):
        return spec

    async def start(self, spec):
        self._note(f"+{spec.name}")

    async def end(self, name, drain_s):
        self.drains_s[name] = drain_s
        if drain_s == DRAINS:
            await asyncio.Event().wait()
        self._note(f"-{name}")

    def _note(self, text: str) -> None:
        self.told.append(text)
        self.news.set()

    async def until(self, told: list[str]) -> None:
        async with asyncio.timeout(10):
            while self.told != told:
                self.news.clear()
                await self.news.wait()


async def test_models_come_and_go_with_the_list_and_what_cannot_be_had_is_tried_again(bundle: Bundle):
    hub, host, shelf = BundlesHub(), Host(), Shelf(bundle)
    shelf.away = [MemoryError("too large for this machine"), Unavailable("the control loop is away")]
    follower = BundleFollower(hub, shelf, host, SystemClock(), slots=2, drain_s=1)
    running = asyncio.create_task(follower.run())
    hub.publish([A])
    await host.until(["+a"])
    await asyncio.wait_for(follower.loaded.wait(), 5)
    hub.publish([A, B])
    await host.until(["+a", "+b"])
    hub.publish([NEWER, B])
    await host.until(["+a", "+b", "-a", "+a"])
    hub.publish([])
    await host.until(["+a", "+b", "-a", "+a", "-b", "-a"])
    assert host.drains_s == {"a": 1, "b": 1}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("remote", [False, True], ids=["in process", "grpc"])
async def test_a_model_ends_as_long_as_its_call_said_and_others_come_meanwhile(bundle: Bundle, remote: bool):
    hub, host, serving = BundlesHub(), Host(), Serving(Security())
    routes_pb2_grpc.add_RoutesServicer_to_server(RoutesService(RoutesHub(print, print), hub), serving.server)
    port = await serving.start("127.0.0.1:0")
    async with dial(f"127.0.0.1:{port}", Security()) as channel:
        bundles = RemoteBundles(channel, "gw", SystemClock()) if remote else hub
        follower = BundleFollower(bundles, Shelf(bundle), host, SystemClock(), slots=2, drain_s=1)
        running = asyncio.create_task(follower.run())
        hub.publish([A])
        await host.until(["+a"])
        hub.publish([B], [LeavingModel("a", DRAINS)])
        await host.until(["+a", "+b"])
        assert host.drains_s == {"a": DRAINS}
        hub.publish([NEWER], [LeavingModel("b", 0.25)])
        await host.until(["+a", "+b", "-b"])  # the newer one of that name waits for the older one's end
        assert host.drains_s == {"a": DRAINS, "b": 0.25}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await serving.stop(0)
