"""Keeps a link to every worker of the table, opening and reopening them in the background."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from expertmesh_common.channel.host import ExpertHost
from expertmesh_common.errors import MeshError
from expertmesh_controller.cluster.routes import WorkerRoute
from expertmesh_controller.gateway.dispatch.bell import Bell
from expertmesh_controller.gateway.dispatch.links.base import Link
from expertmesh_controller.gateway.dispatch.links.ledger import Ledger, LinkTotals
from expertmesh_controller.gateway.dispatch.links.local import LocalLink
from expertmesh_controller.gateway.dispatch.links.opening import Caller, open_link
from expertmesh_controller.gateway.dispatch.links.watchdog import Watchdog

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 0.5  # a network that is healed, or a worker that is back, is in use again within a second
OVERDUE_S = 2.0  # a link that is still not up after this is told to the control loop


class LinkPool:
    """Links by worker and generation. `bell` rings whenever a link comes up or is dropped.

    `follow` may be called from any thread; `link`, `drop` and `sweep` belong to the thread that uses the links.
    """

    def __init__(self, caller: Caller, local: Mapping[str, ExpertHost] | None = None) -> None:
        self.bell = Bell()
        self._caller = caller
        self._local = {worker_id: LocalLink(worker_id, host) for worker_id, host in (local or {}).items()}
        self._watchdog = Watchdog()
        self._lock = threading.Lock()
        self._keepers: dict[tuple[str, str], Keeper] = {}
        self._retired: list[Keeper] = []
        self._ledger = Ledger()

    def follow(self, workers: Iterable[WorkerRoute]) -> None:
        """Keep links to exactly these workers. A worker that left keeps its link until `sweep`: it may be in use."""
        wanted = {(w.worker_id, w.generation): w for w in workers if w.worker_id not in self._local}
        with self._lock:
            for key in [k for k in self._keepers if k not in wanted or self._keepers[k].worker != wanted[k]]:
                self._retired.append(self._keepers.pop(key))
            for key in wanted.keys() - self._keepers.keys():
                self._keepers[key] = Keeper(wanted[key], self._open, self.bell)

    def link(self, worker: WorkerRoute) -> Link | None:
        """The worker's link if it is up."""
        if worker.worker_id in self._local:
            return self._local[worker.worker_id]
        keeper = self._keepers.get((worker.worker_id, worker.generation))
        return None if keeper is None else keeper.link

    def overdue(self, after_s: float = OVERDUE_S) -> frozenset[str]:
        """Workers of the table whose link has been down for `after_s` seconds or more. For any thread."""
        before = time.monotonic() - after_s
        with self._lock:
            keepers = list(self._keepers.values())
        return frozenset(k.worker.worker_id for k in keepers if k.down_since is not None and k.down_since <= before)

    def drop(self, link: Link) -> None:
        """Close a link that failed; its keeper opens another."""
        with self._lock:
            keepers = [*self._keepers.values(), *self._retired]
        for keeper in keepers:
            if keeper.link is link:
                self._ledger.closed(link, failed=True)
                keeper.drop()

    def sweep(self) -> None:
        """Close the links of workers that left the table."""
        with self._lock:
            retired, self._retired = self._retired, []
        for keeper in retired:
            if keeper.link is not None:
                self._ledger.closed(keeper.link, failed=False)
            keeper.close()

    def bytes_moved(self) -> tuple[int, int]:
        """Bytes sent and received over all links since the start."""
        totals = self.totals()
        return sum(link.bytes_sent for link in totals), sum(link.bytes_received for link in totals)

    def totals(self) -> tuple[LinkTotals, ...]:
        """What the links to each worker have moved since the start. For any thread."""
        with self._lock:
            links = [k.link for k in (*self._keepers.values(), *self._retired)]
        return self._ledger.totals([*self._local.values(), *(link for link in links if link is not None)])

    def close(self) -> None:
        """Close every link and end every thread."""
        self.follow(())
        with self._lock:
            retired = list(self._retired)
        self.sweep()
        for keeper in retired:
            keeper.join()
        self._watchdog.close()

    def _open(self, worker: WorkerRoute) -> Link:
        return open_link(worker, self._caller, self._watchdog)


class Keeper:
    """One thread that opens a worker's link, and again after every drop, with growing pauses between failures.

    `down_since` is None while the link is up, else when it went or was first wanted, in monotonic seconds.
    """

    def __init__(self, worker: WorkerRoute, opening: Callable[[WorkerRoute], Link], bell: Bell) -> None:
        self.worker = worker
        self.link: Link | None = None
        self.down_since: float | None = time.monotonic()
        self._opening, self._bell = opening, bell
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._keep, name=f"link-{worker.worker_id}", daemon=True)
        self._thread.start()

    def drop(self) -> None:
        """Close the link and have another opened."""
        with self._changed:
            link, self.link = self.link, None
            if self.down_since is None:
                self.down_since = time.monotonic()
            self._changed.notify()
        if link is not None:
            link.close()
            self._bell.ring()

    def close(self) -> None:
        with self._changed:
            self._closed = True
        self.drop()

    def join(self) -> None:
        self._thread.join()

    def _keep(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._closed:
            link = self._try_open()
            if link is None:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            else:
                backoff_s = FIRST_BACKOFF_S
                self._hold(link)

    def _try_open(self) -> Link | None:
        try:
            return self._opening(self.worker)
        except (MeshError, OSError) as error:
            log.warning("no link to worker %s yet: %s", self.worker.worker_id, error)
            return None
        except Exception:  # whatever a worker sent: this thread must live to try again
            log.exception("no link to worker %s yet, for a reason that was not foreseen", self.worker.worker_id)
            return None

    def _hold(self, link: Link) -> None:
        """Offer the link until it is dropped."""
        with self._changed:
            if self._closed:
                link.close()
                return
            self.link, self.down_since = link, None
        log.info("link to worker %s is up over %s", link.worker_id, link.transport)
        self._bell.ring()
        with self._changed:
            self._changed.wait_for(lambda: self.link is not link)
