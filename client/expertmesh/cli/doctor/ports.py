"""The ports that a controller here would take: free, ours, or somebody else's."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping

from expertmesh.cli.doctor.findings import Asked, Finding

AREA = "ports"
PORTS: Mapping[int, tuple[str, str]] = {
    7070: ("gRPC", "--port"),
    7080: ("OpenAI over HTTP", "--http-port"),
    7090: ("probes and metrics", "--metrics-listen"),
}

Holder = Callable[[int], str]


def check(asked: Asked) -> Iterator[Finding]:  # noqa: ARG001 - every check has this form
    """A line per port."""
    return ports(_is_free, _holder)


def ports(is_free: Callable[[int], bool], holder: Holder) -> Iterator[Finding]:
    """Judge the ports; `holder` says who has one."""
    for port, (use, flag) in PORTS.items():
        if is_free(port):
            yield Finding(AREA, str(port), "ok", f"free ({use})")
            continue
        who = holder(port)
        ours = "expertmesh" in who
        advice = "" if ours else f"a mesh on this machine needs another one: {flag}"
        yield Finding(AREA, str(port), "ok" if ours else "warn", f"taken by {who} ({use})", advice)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do it: what lingers from a closed connection is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    try:
        import psutil  # noqa: PLC0415 - comes with the serving packages
    except ModuleNotFoundError:
        return "a program that cannot be named (psutil is not installed)"
    unknown = "a program of another user"
    try:
        listening = (c for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr[1:] == (port,))
        pid = next((c.pid for c in listening if c.pid), None)
        if pid is None:
            return unknown
        process = psutil.Process(pid)
        name = "expertmesh" if any("expertmesh" in part for part in process.cmdline()) else process.name()
    except psutil.Error:
        return unknown
    return f"{name} (process {process.pid})"
