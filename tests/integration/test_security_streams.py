"""Expert streams of a worker end with the token that opened them, whatever they run over."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from expertmesh_api.v1 import experts_pb2
from expertmesh_common.access.scopes import Scope
from expertmesh_common.access.tokens import accepted, new_token
from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.channel.frame import Request, Status, model_key
from expertmesh_common.channel.host import host_id
from expertmesh_common.clock import ManualClock
from expertmesh_common.errors import MeshError
from expertmesh_common.security import Security
from expertmesh_controller.cluster.routes import EndpointAddress, WorkerRoute
from expertmesh_controller.gateway.dispatch.links.base import LinkDown
from expertmesh_controller.gateway.dispatch.links.opening import Caller, open_link
from expertmesh_controller.gateway.dispatch.links.watchdog import Watchdog
from expertmesh_worker.channel.experts_service import Identity
from expertmesh_worker.channel.tickets import Tickets
from expertmesh_worker.serving_experts import Behind, open_doors
from rigs.expert_hosts import IdentityHost

ROWS = np.ones((1, 16), np.float32)


class NoShortcut:
    busy = False

    def answer(self, data):
        return None

    def learn(self, data):
        pass


def trade(link):
    request = Request(
        1, (1, 1), model_key("m"), 0, 5000, {"rows": ROWS}, np.zeros(1, np.uint32), np.zeros(1, np.uint16),
        np.ones(1, np.float32),
    )  # fmt: skip
    expires_at = time.monotonic() + 5
    link.post(request, expires_at)
    return link.take(expires_at).status


@pytest.mark.parametrize("transport", ["grpc", "unix", "tcp"])
async def test_a_revoked_token_loses_its_expert_streams_and_nobody_else_does(tmp_path, transport):
    bad, good = (new_token() for _ in range(2))
    entries = {token: accepted(token, "gateway", [Scope.PEER]) for token in (bad, good)}
    security = Security(token="of the worker")
    security.doorkeeper.publish(entries.values())
    behind = Behind(IdentityHost(), NoShortcut(), experts_pb2.StatResponse, BlobStore(tmp_path))
    identity = Identity("w0", "g1", host_id())
    doors = await open_doors(behind, identity, security, listen="127.0.0.1:0", advertise="127.0.0.1")
    route = WorkerRoute("w0", "g1", (EndpointAddress("grpc", doors.endpoint.address),), host_id(), 1.0)
    watchdog = Watchdog()

    def open_as(token):
        return asyncio.to_thread(open_link, route, Caller("g", Security(token=token), transport), watchdog)

    links = {token: await open_as(token) for token in (bad, good)}
    try:
        for link in links.values():
            assert link.transport == transport
            assert await asyncio.to_thread(trade, link) is Status.OK
        security.doorkeeper.publish([entries[good]])

        with pytest.raises(LinkDown):
            await asyncio.to_thread(trade, links[bad])
        assert await asyncio.to_thread(trade, links[good]) is Status.OK
        with pytest.raises(MeshError, match="token"):
            await open_as(bad)
    finally:
        for link in links.values():
            await asyncio.to_thread(link.close)
        await asyncio.to_thread(watchdog.close)
        await doors.close(0.1)


async def test_a_ticket_of_a_token_that_was_revoked_meanwhile_opens_nothing(tmp_path):
    tickets = Tickets(ManualClock())
    mine, theirs = tickets.issue("a1"), tickets.issue("b2")
    tickets.end(frozenset({"a1"}))
    assert tickets.redeem(mine) is None
    assert tickets.redeem(theirs) == "b2"
