"""Blobs that are wrong or cannot be kept: the thing is named, the process lives, and what was good stays good."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from chaos.mounts import tmpfs
from chaos.parts import PROMPT, SHORT, answer, parts, until_live
from e2e.running import until
from expertmesh_api.v1 import blobs_pb2_grpc
from expertmesh_common.bundle.blob_service import BlobService
from expertmesh_common.bundle.blobs import BlobStore, Bundle
from expertmesh_common.bundle.manifest import SCHEMA_VERSION
from expertmesh_common.errors import Exhausted, Unavailable
from expertmesh_common.security import Security
from expertmesh_common.serving import Serving
from expertmesh_worker.artifacts.cache import ArtifactCache, Wanted
from expertmesh_worker.artifacts.sources import Sources
from models.tiny_bundle import greedy_ids, make_tiny_bundle

LARGE = np.random.default_rng(0).bytes(3 * 2**20)
SMALL = np.random.default_rng(1).bytes(100_000)


class Fetching:
    """A blob service with a large and a small blob, and caches that fetch from it."""

    def __init__(self, folder: Path) -> None:
        self.origin = BlobStore(folder / "origin")
        for data in (LARGE, SMALL):
            self.origin.put(data)
        self.serving, self._sources = Serving(Security()), Sources(Security())

    async def open(self) -> None:
        blobs_pb2_grpc.add_BlobsServicer_to_server(BlobService(lambda: (self.origin,)), self.serving.server)
        self.address = f"127.0.0.1:{await self.serving.start('127.0.0.1:0')}"

    async def close(self) -> None:
        await self._sources.close()
        await self.serving.stop(0)

    def cache(self, root: Path) -> ArtifactCache:
        return ArtifactCache(root, self._sources)

    def wanted(self, data: bytes) -> Wanted:
        return Wanted(hashlib.sha256(data).hexdigest(), len(data), (self.address,))


@pytest.fixture
async def fetching(tmp_path: Path) -> AsyncIterator[Fetching]:
    found = Fetching(tmp_path)
    await found.open()
    yield found
    await found.close()


async def test_a_full_disk_is_named_and_what_was_cached_stays_good(fetching: Fetching, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=1m") as disk:
        cache = fetching.cache(disk.path / "cache")
        small = await cache.fetch(fetching.wanted(SMALL))
        wanted = fetching.wanted(LARGE)

        for _ in range(2):
            with pytest.raises(
                Exhausted, match=f"no room for blob {wanted.digest} of {len(LARGE)} bytes in {disk.path}"
            ):
                await cache.fetch(wanted)

        assert not cache.store.has(wanted.digest)
        assert small.read_bytes() == SMALL == (await cache.fetch(fetching.wanted(SMALL))).read_bytes()
        disk.remount("size=16m")
        assert (await cache.fetch(wanted)).read_bytes() == LARGE


async def test_a_cache_that_cannot_be_written_is_named_and_still_read(fetching: Fetching, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=16m") as disk:
        cache = fetching.cache(disk.path / "cache")
        small = await cache.fetch(fetching.wanted(SMALL))
        disk.remount("ro")
        wanted = fetching.wanted(LARGE)

        with pytest.raises(
            Unavailable, match=f"blob {wanted.digest} cannot be kept in {disk.path}.*Read-only.*--cache"
        ):
            await cache.fetch(wanted)

        async with cache.held(fetching.wanted(SMALL)) as path:
            assert path == small
        disk.remount("rw")
        assert (await cache.fetch(wanted)).read_bytes() == LARGE


async def test_a_cache_in_the_place_of_a_file_is_named(fetching: Fetching, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(Unavailable, match=f"cannot be kept in {tmp_path}.*--cache"):
        await fetching.cache(tmp_path / "cache").fetch(fetching.wanted(SMALL))


def expert_blob(bundle: Path, layer: int = 1, index: int = 2) -> Path:
    found = Bundle(bundle)
    return found.path(found.manifest.layers[layer].experts[index].blobs["fp32"])


def trunk_blob(bundle: Path) -> Path:
    found = Bundle(bundle)
    return found.path(found.manifest.trunk.segments[0].graphs["fp32"].weights)


def corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = pytest.mark.parametrize("damage", [corrupt, truncate, remove])


@pytest.fixture
def bundle(folder: Path) -> Path:
    return make_tiny_bundle(folder / "tiny")


@pytest.mark.parametrize(
    ("blob", "damage"),
    [
        (trunk_blob, corrupt),
        (trunk_blob, truncate),
        (trunk_blob, remove),
        (expert_blob, truncate),
        (expert_blob, remove),
    ],
)
def test_a_controller_does_not_begin_to_serve_a_bundle_that_is_damaged(
    bundle: Path, folder: Path, blob: Callable[[Path], Path], damage: Callable[[Path], None]
) -> None:
    path = blob(bundle)
    damage(path)
    with parts(bundle, folder) as mesh:
        controller = mesh.controller()
        assert controller.process.wait(60) not in {0, None}
        assert path.name in controller.said
        assert "Traceback" not in controller.said


def test_a_bundle_of_a_newer_release_is_refused_with_both_versions(bundle: Path) -> None:
    manifest = bundle / "manifest.json"
    newer = json.loads(manifest.read_text()) | {"schema_version": 7, "unheard_of": True}
    manifest.write_text(json.dumps(newer))
    done = subprocess.run(
        [sys.executable, "-m", "expertmesh.cli.main", "up", "--model", str(bundle), "--listen", "127.0.0.1:0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"schema version 7, this program reads up to {SCHEMA_VERSION}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@DAMAGES
def test_an_expert_that_is_damaged_at_the_origin_is_named_and_loaded_once_it_is_whole(
    bundle: Path, folder: Path, damage: Callable[[Path], None]
) -> None:
    path = expert_blob(bundle)
    whole = path.read_bytes()
    expected = greedy_ids(Bundle(bundle), PROMPT, SHORT)
    with parts(bundle, folder) as mesh, mesh.client() as client:
        controller = mesh.controller()
        until(lambda: "serving tiny" in controller.said, 60, mesh.story)
        damage(path)
        worker = mesh.worker("one")
        until(lambda: path.name in worker.said and "could not be fetched" in worker.said, 60, mesh.story)
        until(lambda: sum(bool(e.worker_ids) for e in client.experts()) == 11, 30, mesh.story)  # all but that one
        path.write_bytes(whole)
        client.wait_ready(deadline_s=60)
        assert answer(client) == expected
        assert controller.process.poll() is None
        assert worker.process.poll() is None
        assert "Traceback" not in controller.said + worker.said


@pytest.mark.slow
def test_workers_whose_disk_is_full_or_cannot_be_written_live_and_load_once_it_can(bundle: Path, folder: Path) -> None:
    expected = greedy_ids(Bundle(bundle), PROMPT, SHORT)
    with (
        tmpfs(folder / "full", "size=64k") as full,
        tmpfs(folder / "fixed", "size=16m,ro") as fixed,
        parts(bundle, folder) as mesh,
    ):
        mesh.controller()
        # Only both together have room for all experts.
        one = mesh.worker("one", "--cache", str(full.path), "--cache-limit", "20GB", budget=700_000)
        two = mesh.worker("two", "--cache", str(fixed.path), budget=700_000)
        until(lambda: "no room for blob" in one.said, 60, mesh.story)
        until(lambda: "cannot be kept in" in two.said, 60, mesh.story)
        full.remount("size=16m")
        fixed.remount("rw")
        with mesh.client() as client:
            until_live(mesh, client, "one", "two")
            client.wait_ready(deadline_s=60)
            assert answer(client) == expected
        assert "Traceback" not in one.said + two.said


@pytest.mark.slow
def test_two_workers_on_one_cache_keep_every_blob_whole(bundle: Path, folder: Path) -> None:
    expected = greedy_ids(Bundle(bundle), PROMPT, SHORT)
    with parts(bundle, folder) as mesh:
        mesh.controller()
        workers = [mesh.worker(name, "--cache", str(folder / "shared")) for name in ("one", "two")]
        with mesh.client() as client:
            until_live(mesh, client, "one", "two")
            assert answer(client) == expected
        store = BlobStore(folder / "shared")
        blobs = [path.name for path in store.folder.iterdir() if len(path.name) == 64]
        assert len(blobs) == 12
        for digest in blobs:
            store.verified(digest)
        assert "Traceback" not in "".join(worker.said for worker in workers)
