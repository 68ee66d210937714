"""A worker under mutual TLS: it joins, loads from its peers and serves only those who have a certificate."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import grpc
import pytest

from expertmesh_api.v1 import experts_pb2, experts_pb2_grpc
from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.certificates import mint_development_ca
from expertmesh_common.security import Security, dial
from models.made_experts import SMALL, store_expert
from models.scripted_control import ScriptedControl


async def stat(address, security):
    async with dial(address, security) as channel:
        return await experts_pb2_grpc.ExpertsStub(channel).Stat(experts_pb2.StatRequest(), timeout=3)


async def test_everything_between_worker_and_controller_is_mutual_tls(tmp_path):
    files = mint_development_ca(tmp_path / "tls", ["127.0.0.1", "localhost"])
    security = Security(files, "secret")
    control = ScriptedControl(BlobStore(tmp_path / "origin"), security)
    await control.start()
    _, blob = store_expert(tmp_path / "origin", SMALL, 0)
    command = [
        sys.executable, "-m", "expertmesh.cli.main", "worker", "--join", control.address, "--id", "w1",
        "--cache", str(tmp_path / "cache"), "--listen", "127.0.0.1:0", "--budget", "1MB",
        "--tls", str(tmp_path / "tls"),
    ]  # fmt: skip
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "EXPERTMESH_TOKEN": "secret", "PYTHONPATH": path}
    child = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL, env=environment)
    try:
        worker = await control.next_worker()
        address = worker.hello.endpoints[0].address
        result = await worker.order(control.load(0, SMALL, blob))

        assert result.ok, result.error
        assert len((await stat(address, security)).experts) == 1
        stranger = mint_development_ca(tmp_path / "other", ["127.0.0.1"])
        for wrong in (Security(token="secret"), Security(stranger, "secret"), Security(files, "other")):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stat(address, wrong)
            assert error.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED}
    finally:
        child.kill()
        await child.wait()
        await control.stop()
