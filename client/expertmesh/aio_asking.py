"""Asking over asyncio channels."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from expertmesh.attempts import Attempts
from expertmesh.calls import Call, Request, Response
from expertmesh.endpoints import Endpoints, to_error


async def ask_async(
    endpoints: Endpoints[grpc.aio.Channel], attempts: Attempts, call: Call[Request, Response], request: Request
) -> Response:
    """`endpoints.ask` for asyncio."""
    while True:
        place, remaining_s = attempts.next()
        at = endpoints[place]
        try:
            response = await call.bind_async(at.channel)(request, timeout=remaining_s, metadata=at.carried())
        except grpc.RpcError as error:
            wait_s = attempts.failed(to_error(error, at.address), repeatable=call.repeatable)
        else:
            attempts.worked()
            return response
        await asyncio.sleep(wait_s)
