"""Two machines as network namespaces with a cable between them that can be cut, slowed and made lossy."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

NEAR_ADDRESS, FAR_ADDRESS, SPARE_ADDRESS = "10.78.0.1", "10.78.0.2", "10.78.0.9"


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def why_not() -> str | None:
    """What keeps this machine from making namespaces, or None."""
    missing = [program for program in ("ip", "tc", "iptables") if shutil.which(program) is None]
    if sys.platform != "linux" or missing:
        return f"needs Linux with {', '.join(missing)}: deploy/install-test-servers.sh installs them"
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    return None


@dataclass(frozen=True)
class Cable:
    """`near` and `far` are namespaces; `near` is the controller's machine."""

    near: str
    far: str
    near_link: str
    far_link: str

    @property
    def on_near(self) -> tuple[str, ...]:
        """Goes before a command that runs on the near machine."""
        return ("ip", "netns", "exec", self.near)

    @property
    def on_far(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.far)

    def cut(self) -> None:
        """Packets vanish and nobody is told, as with a pulled cable behind a switch."""
        run(*self.on_far, "iptables", "-I", "INPUT", "-i", self.far_link, "-j", "DROP")
        run(*self.on_far, "iptables", "-I", "OUTPUT", "-o", self.far_link, "-j", "DROP")

    def heal(self) -> None:
        run(*self.on_far, "iptables", "-F")

    def unplug(self) -> None:
        """The link itself goes down, and both ends know."""
        run("ip", "-n", self.far, "link", "set", self.far_link, "down")

    def plug(self) -> None:
        run("ip", "-n", self.far, "link", "set", self.far_link, "up")

    def lose(self, share: float) -> None:
        """Drop this share of packets in each direction, by chance."""
        for machine, link in ((self.on_near, self.near_link), (self.on_far, self.far_link)):
            match = ("-m", "statistic", "--mode", "random", "--probability", str(share))
            run(*machine, "iptables", "-A", "INPUT", "-i", link, *match, "-j", "DROP")

    def slow(self, kbit_per_s: int) -> None:
        """Let so much through in each direction; what is more waits up to half a second."""
        for name, link in ((self.near, self.near_link), (self.far, self.far_link)):
            run("tc", "-n", name, "qdisc", "add", "dev", link, "root", "tbf",
                "rate", f"{kbit_per_s}kbit", "burst", "4k", "latency", "500ms")  # fmt: skip

    def let_in(self) -> None:
        """Make the address that the far machine advertises in vain one that it has."""
        run("ip", "-n", self.far, "address", "add", f"{SPARE_ADDRESS}/24", "dev", self.far_link)


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    mark = f"{os.getpid() % 10**6}"
    cable = Cable(f"emn{mark}", f"emf{mark}", f"vn{mark}", f"vf{mark}")
    with contextlib.ExitStack() as stack:
        for name in (cable.near, cable.far):
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "del", name)
        run("ip", "link", "add", cable.near_link, "netns", cable.near, "type", "veth",
            "peer", "name", cable.far_link, "netns", cable.far)  # fmt: skip
        ends = ((cable.near, cable.near_link, NEAR_ADDRESS), (cable.far, cable.far_link, FAR_ADDRESS))
        for name, link, address in ends:
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", link)
            run("ip", "-n", name, "link", "set", link, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield cable
