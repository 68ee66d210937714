"""Who may start jobs, and where it is written down who did."""

from __future__ import annotations

import asyncio

import pytest

from expertmesh import AsyncClient, PermissionDenied, Unauthenticated
from expertmesh.calls import CREATE_TOKEN, LIST_AUDIT
from expertmesh_api.v1 import access_pb2
from expertmesh_common.access.tokens import new_token
from expertmesh_controller.process import serve
from expertmesh_controller.settings import read_settings
from models.small_mesh import eventually


@pytest.fixture
async def guarded(tmp_path, served):
    """Address and bootstrap token of a controller that demands tokens."""
    address, token, stop = f"unix:{tmp_path / 'c.sock'}", new_token(), asyncio.Event()
    flags = {
        "model": [str(served)], "listen": address, "token": token, "http_listen": "off", "metrics_listen": "off",
        "data": tmp_path / "data", "drain_s": 0.5,
    }  # fmt: skip
    serving = asyncio.create_task(serve(read_settings(flags, {}, None), stop))
    await eventually(lambda: _there(tmp_path / "c.sock", serving))
    yield address, token
    stop.set()
    await serving


async def _there(path, serving) -> bool:
    assert not serving.done()
    return path.exists()


async def test_jobs_need_the_scope_operate_and_remember_whose_token_started_them(guarded, tmp_path):
    address, bootstrap = guarded
    async with AsyncClient(address, token=bootstrap) as admin:
        infer, operate = await _token(admin, "app", "infer"), await _token(admin, "ops", "operate")
        async with AsyncClient(address, token=infer) as client:
            for refused in (client.jobs.start_import("/x"), client.jobs.list(), client.jobs.cancel("1")):
                with pytest.raises(PermissionDenied, match="needs operate"):
                    await refused
            with pytest.raises(PermissionDenied, match="needs operate"):
                _ = [job async for job in client.jobs.watch("1")]
        async with AsyncClient(address, token="wrong") as client:
            with pytest.raises(Unauthenticated):
                await client.jobs.list()
        async with AsyncClient(address, token=operate) as client:
            job = await client.jobs.start_import("/nowhere")
            assert job.started_by == "ops"
            assert [seen.state async for seen in client.jobs.watch(job.id)][-1] == "failed"
            await client.jobs.cancel(job.id)
        audit = await admin._unary(LIST_AUDIT, access_pb2.ListAuditRequest())
        noted = [(entry.method, entry.token_name) for entry in audit.entries if entry.method.startswith("Jobs/")]
        assert noted == [("Jobs/Start", "ops"), ("Jobs/Cancel", "ops")]


async def _token(admin: AsyncClient, name: str, scope: str) -> str:
    return (await admin._unary(CREATE_TOKEN, access_pb2.CreateTokenRequest(name=name, scopes=[scope]))).token
