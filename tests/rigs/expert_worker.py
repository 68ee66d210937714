"""A worker's expert channel without its agent: in this process, or as a child that can be killed.

As a program: `python -m rigs.expert_worker '{"kind": "identity", ...}'` prints one JSON line with its endpoint.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

from expertmesh_api.v1 import experts_pb2
from expertmesh_common.channel.host import host_id
from expertmesh_common.clock import SystemClock
from expertmesh_common.security import Security, TlsFiles
from expertmesh_common.serving import Serving
from expertmesh_controller.cluster.routes import EndpointAddress, WorkerRoute
from expertmesh_worker.channel.experts_service import ExpertsService, Identity
from expertmesh_worker.channel.stream_server import StreamServer
from expertmesh_worker.channel.tickets import Tickets
from rigs.expert_hosts import IdentityHost, TinyHost, expert_weights


class ExpertWorker:
    """Runs the servers of one host on a loop in a thread of its own."""

    def __init__(
        self, host, worker_id="w0", *, generation="g1", security=None, port=0, same_host=True, clock=None, spin_us=0
    ):
        self.security = security or Security()
        self.tickets = Tickets(clock or SystemClock())
        shortcut = getattr(host, "recurring", None)  # a real runtime has one
        self.streams = StreamServer(
            host, self.tickets, self.security.ssl_server_context(), handshake_timeout_s=0.5, shortcut=shortcut,
            spin_us=spin_us,
        )  # fmt: skip
        self.unix, self.tcp = self.streams.listen_unix(), self.streams.listen_tcp("127.0.0.1")
        identity = Identity(worker_id, generation, host_id() if same_host else "elsewhere")
        self.identity = replace(identity, streams=(self.unix, self.tcp))
        self.experts = ExpertsService(
            host, self.tickets, self.identity, lambda: experts_pb2.StatResponse(worker_id=worker_id), shortcut
        )
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.port = self.call(self._start(port))

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    async def _start(self, port):
        self.serving = Serving(self.security)
        self.experts.add_to(self.serving.server)
        return await self.serving.start(f"127.0.0.1:{port}")

    @property
    def route(self):
        endpoint = EndpointAddress("grpc", f"127.0.0.1:{self.port}")
        return WorkerRoute(self.identity.worker_id, self.identity.generation, (endpoint,), self.identity.host_id, 1.0)

    def stop(self, grace_s=2.0):
        self.call(self.experts.drain())
        self.streams.stop(grace_s)
        self.call(self.serving.stop(grace_s))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class ChildWorker:
    """The same in a child process. `kill`, `freeze` and `thaw` are what happens to workers."""

    def __init__(self, **settings):
        settings = {"worker_id": "w0", "generation": "g1", **settings}
        tests = Path(__file__).parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rigs.expert_worker", json.dumps(settings)],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            cwd=tests,
            env=_environment(tests),
        )
        line = self.process.stdout.readline()
        assert line, "the worker process ended before it listened"
        said = json.loads(line)
        endpoint = EndpointAddress("grpc", f"127.0.0.1:{said['port']}")
        self.port = said["port"]
        self.route = WorkerRoute(settings["worker_id"], settings["generation"], (endpoint,), host_id(), 1.0)

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)  # until every thread has stopped

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        if self.process.poll() is None:
            self.thaw()
            self.kill()
        self.process.stdout.close()
        self.process.stdin.close()


def _environment(tests):
    root = tests.parent
    folders = [tests, *(root / n for n in ("client", "common", "controller", "worker", "protos/generated"))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}


def make_host(settings):
    if settings.get("kind", "identity") == "identity":
        return IdentityHost()
    weights = expert_weights(*settings["sizes"])
    return TinyHost(weights, {tuple(at) for at in settings["resident"]})


def main():
    settings = json.loads(sys.argv[1])
    tls = TlsFiles.in_folder(Path(settings["tls"])) if settings.get("tls") else None
    security = Security(tls, settings.get("token"))
    worker = ExpertWorker(
        make_host(settings), settings["worker_id"], generation=settings["generation"], security=security,
        spin_us=settings.get("spin_us", 0),
    )  # fmt: skip
    print(json.dumps({"port": worker.port}), flush=True)
    sys.stdin.read()  # until the parent closes it or ends
    worker.stop()


if __name__ == "__main__":
    main()
