"""One suite for every transport of the expert channel, in plain text and under mTLS with a token.

Streams wait asleep, and polling: with TLS, where nobody polls, the option must do no harm.
"""

import contextlib
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from expertmesh_common.certificates import mint_development_ca
from expertmesh_common.channel.frame import MAX_EXPERTS, Reply, Request, Status, model_key
from expertmesh_common.channel.handshake import present
from expertmesh_common.errors import MeshError, Unauthenticated, Unavailable
from expertmesh_common.security import Security
from expertmesh_controller.gateway.dispatch.links.base import LinkDown, LinkTimeout
from expertmesh_controller.gateway.dispatch.links.opening import Caller, open_link
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.links.watchdog import Watchdog
from rigs.expert_hosts import IdentityHost, TinyHost, expert_weights, swiglu
from rigs.expert_worker import ExpertWorker

HIDDEN, WIDTH, EXPERTS = 16, 8, 4
WEIGHTS = expert_weights(1, EXPERTS, HIDDEN, WIDTH)
SPIN_US = 20_000


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return mint_development_ca(tmp_path_factory.mktemp("tls"), ["127.0.0.1", "localhost"])


@pytest.fixture(params=["plain", "mtls+token"])
def security(request, certificates):
    return Security() if request.param == "plain" else Security(certificates, "s3cret")


CARRIAGES = {"grpc": 0, "unix": 0, "tcp": 0, "unix-spinning": SPIN_US, "tcp-spinning": SPIN_US}
STREAMS = [name for name in CARRIAGES if name != "grpc"]


@pytest.fixture(params=CARRIAGES)
def carriage(request):
    """(transport, microseconds that both ends poll)."""
    return request.param.partition("-")[0], CARRIAGES[request.param]


@pytest.fixture
def transport(carriage):
    return carriage[0]


@pytest.fixture
def serve(request, security):
    """Starts workers; they end with the test."""
    workers = []
    spin_us = request.getfixturevalue("carriage")[1] if "carriage" in request.fixturenames else 0

    def start(host, **options):
        workers.append(ExpertWorker(host, security=security, spin_us=spin_us, **options))
        return workers[-1]

    yield start
    for worker in workers:
        if worker.thread.is_alive():
            worker.stop(0.1)


@pytest.fixture
def connect(security, carriage):
    """Opens links; they end with the test."""
    watchdog, links = Watchdog(), []
    transport, spin_us = carriage

    def start(worker, security=security):
        links.append(open_link(worker.route, Caller("g", security, transport, spin_us=spin_us), watchdog))
        return links[-1]

    yield start
    for link in links:
        link.close()
    watchdog.close()


def ask(rows, pairs, seq=1, deadline_ms=5000):
    row, expert, weight = (np.array([p[i] for p in pairs]) for i in range(3))
    return Request(
        seq, (1, 1), model_key("m"), 0, deadline_ms, {"rows": rows},
        row.astype(np.uint32), expert.astype(np.uint16), weight.astype(np.float32),
    )  # fmt: skip


def trade(link, request, within_s=10.0):
    expires_at = time.monotonic() + within_s
    link.post(request, expires_at)
    return link.take(expires_at)


def random_rows(count, hidden=HIDDEN):
    return np.random.default_rng(count).standard_normal((count, hidden)).astype(np.float32)


def test_identity_experts_return_every_row_of_many_requests(serve, connect, transport):
    link = connect(serve(IdentityHost()))
    assert link.transport == transport
    for seq in range(1, 40):
        rows = random_rows(seq % 7 + 1)
        reply = trade(link, ask(rows, [(t, 0, 1) for t in range(len(rows))], seq))
        assert (reply.seq, reply.status) == (seq, Status.OK)
        np.testing.assert_array_equal(reply.rows, rows)
    assert link.bytes_sent > 39 * 64
    assert link.bytes_received > 39 * 64


def test_weighted_experts_are_summed_into_one_row_per_input_row(serve, connect):
    link = connect(serve(TinyHost(WEIGHTS, set(WEIGHTS))))
    rows, pairs = random_rows(3), [(0, 1, 0.5), (0, 3, 2.0), (2, 1, -1.0)]
    expected = np.zeros_like(rows)
    for row, expert, weight in pairs:
        expected[row] += np.float32(weight) * swiglu(rows[row], WEIGHTS[0, expert])
    np.testing.assert_allclose(trade(link, ask(rows, pairs)).rows, expected, atol=1e-6)


def test_a_request_for_absent_experts_is_stale_and_names_them(serve, connect):
    link = connect(serve(TinyHost(WEIGHTS, {(0, 1)})))
    reply = trade(link, ask(random_rows(1), [(0, 0, 1), (0, 1, 1), (0, 3, 1)]))
    assert (reply.status, reply.missing) == (Status.STALE, (0, 3))
    assert trade(link, ask(random_rows(1), [(0, 1, 1)], seq=2)).status is Status.OK


def test_frames_of_four_megabytes_pass_both_ways(serve, connect):
    rows = random_rows(1024, 1024)
    link = connect(serve(IdentityHost()))
    for seq in (1, 2):
        np.testing.assert_array_equal(trade(link, ask(rows, [(t, 0, 1) for t in range(1024)], seq)).rows, rows)


def test_an_answer_that_does_not_come_in_time_is_a_timeout(serve, connect):
    host = TinyHost(WEIGHTS, set(WEIGHTS))
    link = connect(serve(host))
    host.pause.set()
    start = time.monotonic()
    with pytest.raises(LinkTimeout, match="w0 did not answer"):
        trade(link, ask(random_rows(1), [(0, 0, 1)]), within_s=0.2)
    host.resume.set()
    assert 0.15 < time.monotonic() - start < 2


def test_an_error_in_the_host_is_a_failed_reply_without_detail_and_the_link_lives(serve, connect, caplog):
    class Broken(IdentityHost):
        def execute(self, request):
            if request.seq == 1:
                raise RuntimeError("private detail")
            return super().execute(request)

    link = connect(serve(Broken()))
    reply = trade(link, ask(random_rows(1), [(0, 0, 1)]))
    assert reply.status is Status.FAILED
    assert "private detail" not in reply.message
    assert "private detail" in caplog.text
    assert trade(link, ask(random_rows(1), [(0, 0, 1)], seq=2)).status is Status.OK


def test_a_malformed_frame_is_answered_as_invalid_and_ends_the_link(serve, connect):
    link = connect(serve(IdentityHost()))
    reply = trade(link, ask(random_rows(1), [(0, MAX_EXPERTS, 1)]))
    assert (reply.seq, reply.status) == (0, Status.INVALID)
    assert "expert 4096" in reply.message
    with pytest.raises(LinkDown):
        trade(link, ask(random_rows(1), [(0, 0, 1)], seq=2))


def test_draining_finishes_the_frame_in_flight_and_refuses_new_links(serve, connect):
    host = TinyHost(WEIGHTS, set(WEIGHTS))
    worker = serve(host)
    link, idle = connect(worker), connect(worker)
    assert trade(idle, ask(random_rows(1), [(0, 0, 1)])).status is Status.OK
    host.pause.set()
    many = random_rows(2000)  # large enough for a thread on every transport, so that only this request is held up
    link.post(ask(many, [(0, 0, 1)]), time.monotonic() + 10)
    assert host.entered.wait(5)
    stopping = threading.Thread(target=worker.stop, args=(20,))
    stopping.start()
    with pytest.raises(LinkDown) as ended:
        idle.take(time.monotonic() + 10)
    assert not isinstance(ended.value, LinkTimeout)
    host.resume.set()
    assert link.take(time.monotonic() + 10).status is Status.OK
    stopping.join(10)
    assert not stopping.is_alive()
    with pytest.raises(MeshError):
        connect(worker)


def test_a_pool_reopens_the_link_when_the_worker_comes_back(serve, security, carriage):
    pool = LinkPool(Caller("g", security, carriage[0], spin_us=carriage[1]))
    try:
        worker = serve(IdentityHost())
        pool.follow([worker.route])
        count = pool.bell.count
        assert pool.link(worker.route) or pool.bell.wait_beyond(count, 10)
        link = pool.link(worker.route)
        assert trade(link, ask(random_rows(1), [(0, 0, 1)])).status is Status.OK
        worker.stop(0.1)
        with pytest.raises(LinkDown):
            trade(link, ask(random_rows(1), [(0, 0, 1)], seq=2))
        pool.drop(link)
        assert pool.link(worker.route) is None
        count = pool.bell.count
        serve(IdentityHost(), port=worker.port)
        assert pool.bell.wait_beyond(count, 15)
        assert trade(pool.link(worker.route), ask(random_rows(1), [(0, 0, 1)])).status is Status.OK
    finally:
        pool.close()


@pytest.mark.parametrize("security", ["mtls+token"], indirect=True)
def test_a_wrong_or_missing_token_is_refused(serve, connect, security):
    worker = serve(IdentityHost())
    for token in (None, "wrong"):
        with pytest.raises(Unavailable, match="UNAUTHENTICATED"):
            connect(worker, security=replace(security, token=token))


@pytest.mark.parametrize("security", ["mtls+token"], indirect=True)
def test_a_caller_without_a_certificate_is_refused(serve, connect, security):
    with pytest.raises(Unavailable, match="UNAVAILABLE"):
        connect(serve(IdentityHost()), security=replace(security, tls=None))


def test_a_worker_of_another_generation_is_refused(serve, connect):
    worker = serve(IdentityHost(), generation="ghost")
    ghost = replace(worker.route, generation="g1")
    worker_like = type("Route", (), {"route": ghost})
    with pytest.raises(MeshError, match="answers as generation ghost"):
        connect(worker_like)


@pytest.mark.parametrize("carriage", STREAMS, indirect=True)  # gRPC bounds messages itself
def test_frames_that_announce_too_many_bytes_are_refused_before_they_are_read(serve, connect):
    worker = serve(IdentityHost())
    worker.streams._limit = 4096
    reply = trade(connect(worker), ask(random_rows(100), [(0, 0, 1)]))
    assert reply.status is Status.INVALID
    assert "exceeds the limit of 4096" in reply.message


def raw_connection(worker, security):
    host, port = worker.tcp.address.split(":")
    raw = socket.create_connection((host, int(port)), 5)
    context = security.ssl_client_context()
    return raw if context is None else context.wrap_socket(raw, server_hostname=host)


def test_a_ticket_admits_one_connection_only(serve, security):
    worker = serve(IdentityHost())
    ticket = worker.tickets.issue()
    with raw_connection(worker, security) as first, raw_connection(worker, security) as second:
        present(first, ticket)
        with pytest.raises(Unauthenticated, match="refused the stream ticket"):
            present(second, ticket)
        with raw_connection(worker, security) as third, pytest.raises(Unauthenticated):
            present(third, bytes(32))


def test_a_connection_that_says_nothing_is_closed(serve, security):
    with raw_connection(serve(IdentityHost()), security) as silent:  # its handshake may take 0.5 s
        silent.settimeout(5)
        assert silent.recv(1) == b""


def test_a_connection_that_speaks_another_protocol_is_closed(serve, security):
    with raw_connection(serve(IdentityHost()), security) as stranger:
        stranger.settimeout(5)
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):  # how a close with our bytes unread may look
            assert stranger.recv(1) == b""


@pytest.mark.parametrize("security", ["mtls+token"], indirect=True)
def test_a_caller_without_tls_cannot_use_the_tls_port(serve, security):
    worker = serve(IdentityHost())
    with raw_connection(worker, Security()) as bare, pytest.raises((MeshError, OSError)):
        present(bare, worker.tickets.issue())


def test_auto_prefers_unix_on_one_host_and_tcp_between_hosts(serve, security):
    watchdog = Watchdog()
    for same_host, expected in ((True, "unix"), (False, "tcp")):
        link = open_link(serve(IdentityHost(), same_host=same_host).route, Caller("g", security), watchdog)
        assert link.transport == expected
        link.close()
    watchdog.close()


def test_auto_falls_back_when_the_unix_socket_cannot_be_reached(serve, security):
    watchdog = Watchdog()
    worker = serve(IdentityHost())
    worker.unix.address = "/nowhere/experts.sock"
    worker.experts._identity = replace(worker.identity, streams=(worker.unix, worker.tcp))
    link = open_link(worker.route, Caller("g", security), watchdog)
    assert link.transport == "tcp"
    link.close()
    watchdog.close()


def test_replies_of_the_host_are_what_the_caller_sees():
    """The rig itself: identity experts weigh rows."""
    reply = IdentityHost().execute(ask(np.ones((2, 3), np.float32), [(0, 0, 2), (0, 1, 3)]))
    assert isinstance(reply, Reply)
    assert reply.rows.tolist() == [[5, 5, 5], [0, 0, 0]]
