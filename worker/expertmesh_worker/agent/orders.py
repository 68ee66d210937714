"""Carrying out the control loop's orders: load and unload experts, one after the other for one expert."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from expertmesh_api.v1 import common_pb2, membership_pb2
from expertmesh_common.errors import InvalidInput, MeshError, Precondition
from expertmesh_common.graphs.expert import ExpertShape
from expertmesh_worker.agent.fetched import FetchedExperts
from expertmesh_worker.artifacts.cache import ArtifactCache, Wanted
from expertmesh_worker.runtime.residents import ExpertName, Residents

log = logging.getLogger(__name__)


class Terms:
    """The newest leader's term that was seen; it only grows, whatever stream brings it.

    Terms of another store begin anew: one that was in memory only, and died with its controller.
    """

    def __init__(self) -> None:
        self.newest = 0
        self._incarnation = ""

    def count_for(self, incarnation: str) -> None:
        """Whoever leads now has its terms from this store; empty is not known."""
        if incarnation and incarnation != self._incarnation:
            if self._incarnation:
                self.newest = 0
            self._incarnation = incarnation

    def see(self, epoch: common_pb2.Epoch) -> None:
        """Accept the leader of `epoch`; term 0 is nobody yet.

        Raises:
            Precondition: a newer leader was seen.

        """
        if epoch.term == 0:
            return  # a controller that has not led yet: it gives no orders
        if epoch.term < self.newest:
            raise Precondition(f"refused: it comes from the leader of term {epoch.term}, term {self.newest} was seen")
        self.newest = epoch.term


class Orders:
    """Turns orders into results. Fetching happens in the loop, creating sessions in `loaders`.

    `origin` stands in for a source without an address: the controller does not know by which one a worker reaches it.
    `loaded` is called in the loop whenever an expert has come.
    """

    def __init__(
        self,
        residents: Residents,
        cache: ArtifactCache,
        terms: Terms,
        loaders: Executor,
        *,
        origin: str,
        loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self._origin, self._loaded = origin, loaded
        self._residents = residents
        self._cache = cache
        self._terms = terms
        self._loaders = loaders
        self.fetched = FetchedExperts(cache.store)
        self._turns: defaultdict[ExpertName, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def carry_out(self, order: membership_pb2.Order) -> membership_pb2.OrderResult:
        """The result of an order; errors are in it, not raised. Cancelled, it changes nothing after its end."""
        result = membership_pb2.OrderResult(order_id=order.order_id)
        try:
            self._terms.see(order.epoch)
            await self._act(order)
            result.ok = True
        except MeshError as error:
            result.error = str(error)
        except Exception as error:  # the agent and its other orders must live; the control loop plans anew
            log.exception("order failed id=%d", order.order_id)
            result.error = f"unforeseen {type(error).__name__}: {error}"
        result.resident_bytes = self._residents.used_bytes
        log.log(logging.INFO if result.ok else logging.WARNING, "%s", summary(order, result))
        return result

    async def _act(self, order: membership_pb2.Order) -> None:
        match order.WhichOneof("action"):
            case "load":
                await self._load(order.load)
            case "unload":
                name = expert_name(order.unload.expert)
                async with self._turns[name]:
                    await self._in_loader(partial(self._residents.unload, name, order.unload.precision))
            case unknown:
                raise InvalidInput(f"order {order.order_id} has the unknown action {unknown}: upgrade this worker")

    async def _load(self, order: membership_pb2.Load) -> None:
        spec, name = order.spec, expert_name(order.spec.expert)
        how = spec.activation or "swiglu", spec.numerics or "exact"
        shape = ExpertShape(spec.hidden, spec.width, spec.precision, *how)
        sources = tuple(source.address or self._origin for source in order.sources if source.transport == "grpc")
        async with self._turns[name], self._cache.held(Wanted(spec.digest, spec.blob_bytes, sources)) as path:
            self.fetched.note(name, spec.precision, spec.digest)
            load = partial(self._residents.load, name, shape, path, spec.digest, spec.resident_bytes)
            await self._in_loader(load)
        self._loaded()

    async def _in_loader(self, work: Callable[[], object]) -> None:
        """Cancelled, it drops what has not begun and waits for what has: a thread cannot be stopped in the middle."""
        begun = self._loaders.submit(work)
        done = asyncio.wrap_future(begun)
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            if not begun.cancel():
                await asyncio.wait((done,))
            raise


def expert_name(ref: common_pb2.ExpertRef) -> ExpertName:
    return ExpertName(ref.model, ref.layer, ref.index)


def summary(order: membership_pb2.Order, result: membership_pb2.OrderResult) -> str:
    """One line for the log."""
    action = order.WhichOneof("action") or "nothing"
    body = order.load.spec if action == "load" else order.unload
    numerics = f"/{order.load.spec.numerics}" if order.load.spec.numerics else ""
    outcome = "done" if result.ok else f"failed: {result.error}"
    what = f"{action} {expert_name(body.expert)} at {body.precision}{numerics}"
    return f"{what} {outcome} resident_bytes={result.resident_bytes}"
