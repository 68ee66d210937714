"""Frames over a socket pair, with polling before the sleep and without: bytes, ends and timeouts are the same."""

from __future__ import annotations

import socket
import time

import numpy as np
import pytest

from expertmesh_common.channel.frame import Reply, encode_reply
from expertmesh_common.channel.framing import FrameSocket
from expertmesh_common.errors import CorruptData

LONG_US = 1_000_000
FRAME = b"".join(bytes(chunk) for chunk in encode_reply(Reply.of_rows(7, np.ones((3, 5), np.float32))))


class Watched(socket.socket):
    """Counts tries that do not sleep and calls that do; `at_try[n]` and `at_sleep` are called just before one.

    Who waits for something to happen at a try must not sleep.
    """

    tries = sleeps = 0

    def watch(self, at_try=None, at_sleep=None):
        self.at_try = at_try or {}
        self.at_sleep = at_sleep or (self.must_not_sleep if at_try else lambda: None)

    def must_not_sleep(self):
        pytest.fail("it slept")

    def recv_into(self, buffer, nbytes=0, flags=0):
        if flags & socket.MSG_DONTWAIT:
            self.tries += 1
            self.at_try.get(self.tries, lambda: None)()
        else:
            self.sleeps += 1
            self.at_sleep()
        return super().recv_into(buffer, nbytes, flags)


@pytest.fixture(params=["unix", "tcp"])
def ends(request):
    """A watched end, and its peer."""
    if request.param == "unix":
        here, peer = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            here = socket.create_connection(listener.getsockname())
            peer, _ = listener.accept()
    watched = Watched(fileno=here.detach())
    watched.watch()
    with watched, peer:
        yield watched, peer


@pytest.fixture(params=[0, LONG_US], ids=["sleeping", "spinning"])
def frames(request, ends):
    return FrameSocket(ends[0], spin_us=request.param)


def test_a_frame_that_is_there_is_received(ends, frames):
    ends[1].sendall(FRAME)
    assert frames.receive() == FRAME
    assert ends[0].sleeps + ends[0].tries >= 1


def test_a_frame_that_comes_while_spinning_is_received_without_sleep(ends):
    watched, peer = ends
    watched.watch(at_try={40: lambda: peer.sendall(FRAME)})
    assert FrameSocket(watched, spin_us=LONG_US).receive() == FRAME
    assert watched.tries >= 40
    assert watched.sleeps == 0


def test_a_frame_that_comes_after_spinning_has_ended_is_received(ends):
    watched, peer = ends
    watched.watch(at_sleep=lambda: peer.sendall(FRAME))
    assert FrameSocket(watched, spin_us=200).receive() == FRAME
    assert watched.tries >= 1
    assert watched.sleeps == 1


def test_without_spinning_every_wait_sleeps(ends):
    watched, peer = ends
    watched.watch(at_sleep=lambda: peer.sendall(FRAME))
    assert FrameSocket(watched).receive() == FRAME
    assert watched.tries == 0


def test_the_pieces_of_one_frame_share_the_time_for_spinning(ends):
    watched, peer = ends
    pieces, tries = [FRAME[:10], FRAME[10:70], FRAME[70:]], []

    def next_piece():
        tries.append(watched.tries)
        peer.sendall(pieces.pop(0))

    watched.watch(at_sleep=next_piece)
    assert FrameSocket(watched, spin_us=200).receive() == FRAME
    assert tries == [watched.tries] * 3
    assert watched.tries >= 1


def test_a_frame_in_pieces_is_put_together_while_spinning(ends):
    watched, peer = ends
    pieces = {3: FRAME[:10], 9: FRAME[10:70], 20: FRAME[70:]}
    watched.watch(at_try={n: lambda piece=piece: peer.sendall(piece) for n, piece in pieces.items()})
    assert FrameSocket(watched, spin_us=LONG_US).receive() == FRAME
    assert watched.sleeps == 0


def test_a_peer_that_closes_between_frames_is_an_end(ends, frames):
    ends[1].sendall(FRAME)
    assert frames.receive() == FRAME
    ends[1].close()
    assert frames.receive() is None


def test_a_peer_that_closes_while_spinning_is_an_end(ends):
    watched, peer = ends
    watched.watch(at_try={5: peer.close})
    assert FrameSocket(watched, spin_us=LONG_US).receive() is None
    assert watched.sleeps == 0


def test_a_peer_that_closes_in_the_middle_of_a_frame_is_corrupt_data(ends, frames):
    ends[1].sendall(FRAME[:-1])
    ends[1].close()
    with pytest.raises(CorruptData, match=f"ended after {len(FRAME) - 1} of {len(FRAME)} bytes"):
        frames.receive()


def test_a_connection_that_is_shut_here_while_spinning_is_an_end(ends):
    watched, _ = ends
    watched.watch(at_try={5: lambda: watched.shutdown(socket.SHUT_RD)})
    assert FrameSocket(watched, spin_us=LONG_US).receive() is None


def test_a_connection_that_fails_while_spinning_is_an_error_as_ever(ends):
    watched, _ = ends
    watched.watch(at_try={5: watched.close})
    with pytest.raises(OSError, match="Bad file descriptor"):
        FrameSocket(watched, spin_us=LONG_US).receive()


def test_nothing_in_time_is_a_timeout_however_long_it_may_spin(frames):
    began = time.monotonic()
    frames.expire_at(began + 0.1)
    with pytest.raises(TimeoutError):
        frames.receive()
    assert 0.09 < time.monotonic() - began < 0.9  # well before it would have spun enough


def test_a_frame_that_stops_in_the_middle_is_a_timeout(ends, frames):
    ends[1].sendall(FRAME[:-1])
    frames.expire_at(time.monotonic() + 0.1)
    with pytest.raises(TimeoutError):
        frames.receive()


def test_time_spent_spinning_is_taken_off_the_time_to_sleep(ends):
    watched, _ = ends
    frames = FrameSocket(watched, spin_us=300_000)
    frames.expire_at(time.monotonic() + 0.4)
    kernel_s = []
    watched.watch(at_sleep=lambda: kernel_s.append(frames._timeout_s))
    with pytest.raises(TimeoutError):
        frames.receive()
    assert len(kernel_s) == 1
    assert kernel_s[0] <= 0.1 * 1.25


def test_a_connection_can_be_used_after_a_timeout_as_after_any_wait(ends, frames):
    frames.expire_at(time.monotonic() + 0.02)
    with pytest.raises(TimeoutError):
        frames.receive()
    ends[1].sendall(FRAME)
    frames.expire_at(time.monotonic() + 5)
    assert frames.receive() == FRAME
