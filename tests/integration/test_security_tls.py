"""Mutual TLS: certificates change while everything runs, bad ones are refused in words, idle callers are cut off."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from expertmesh.tls_diagnosis import own_problem, refusal
from expertmesh_api.v1 import blobs_pb2, blobs_pb2_grpc
from expertmesh_common.certificates import authority_folder, issue, mint_development_ca, read_certificate, renew
from expertmesh_common.errors import InvalidInput
from expertmesh_common.security import MAX_MESSAGE_BYTES, Security, dial
from expertmesh_common.serving import SERVER_OPTIONS, Serving
from expertmesh_common.tls import MESH_NAME, RenewingContext, TlsFiles
from expertmesh_controller.local.reaching import free_port

HOSTS = ["127.0.0.1", "localhost"]


class Endless(blobs_pb2_grpc.BlobsServicer):
    async def Fetch(self, request, context):
        while True:
            yield blobs_pb2.FetchResponse(data=b"x")
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def server(security):
    serving = Serving(security)
    blobs_pb2_grpc.add_BlobsServicer_to_server(Endless(), serving.server)
    try:
        yield f"127.0.0.1:{await serving.start('127.0.0.1:0')}"
    finally:
        await serving.stop(0)


def stream(channel):
    return blobs_pb2_grpc.BlobsStub(channel).Fetch(blobs_pb2.FetchRequest(), timeout=60)


async def healthy(address, security):
    """One call on a connection of its own."""
    async with dial(address, security, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)


def serial_of(address, files):
    """The serial number of the certificate that a server shows."""
    context = files.context(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 5) as raw,
        context.wrap_socket(raw, server_hostname=MESH_NAME) as t,
    ):
        return int(t.getpeercert()["serialNumber"], 16)


@pytest.fixture
def files(tmp_path):
    return mint_development_ca(tmp_path / "tls", HOSTS)


async def test_certificates_are_renewed_under_a_running_stream_without_any_error(files):
    async with server(Security(files)) as address, dial(address, Security(files)) as channel:
        running = stream(channel)
        assert (await running.read()).data == b"x"
        seen = [await asyncio.to_thread(serial_of, address, files)]
        for _ in range(5):
            renew(files.ca.parent)
            for _ in range(4):
                assert (await healthy(address, Security(files))).status == health_pb2.HealthCheckResponse.SERVING
                assert (await running.read()).data == b"x"
            seen.append(await asyncio.to_thread(serial_of, address, files))
            assert seen[-1] == read_certificate(files.certificate).serial_number
        assert len(set(seen)) == 6
        assert (await running.read()).data == b"x"
        running.cancel()


async def test_a_server_whose_authority_was_replaced_refuses_those_of_the_old_one_and_keeps_its_streams(
    files, tmp_path
):
    old = issue(authority_folder(tmp_path / "tls"), tmp_path / "old", HOSTS)
    async with server(Security(files)) as address, dial(address, Security(old)) as channel:
        running = stream(channel)
        await running.read()
        mint_development_ca(tmp_path / "tls", HOSTS)

        assert (await healthy(address, Security(files))).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await healthy(address, Security(old))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await running.read()).data == b"x"
        running.cancel()


async def test_files_that_do_not_fit_together_change_nothing_until_they_do(files, tmp_path, caplog):
    before = read_certificate(files.certificate).serial_number
    async with server(Security(files)) as address:
        good = issue(authority_folder(tmp_path / "tls"), tmp_path / "good", HOSTS)
        files.key.write_bytes(good.key.read_bytes())  # the key of another certificate
        assert await asyncio.to_thread(serial_of, address, good) == before
        assert "cannot be used yet" in caplog.text
        files.certificate.write_bytes(good.certificate.read_bytes())
        assert await asyncio.to_thread(serial_of, address, good) == read_certificate(good.certificate).serial_number


def test_expert_streams_use_renewed_certificates_for_new_connections(files):
    """The context as the stream server and the links use it: one object, many handshakes."""
    server_side, client_side = (
        RenewingContext(files, protocol) for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
    )
    first = connected(server_side, client_side)
    renew(files.ca.parent)
    second = connected(server_side, client_side)

    shown = [int(theirs.getpeercert()["serialNumber"], 16) for _, theirs in (first, second)]
    assert shown[0] != shown[1] == read_certificate(files.certificate).serial_number
    for ours, theirs in (first, second):
        ours.sendall(b"row")
        assert theirs.recv(3) == b"row"
        assert ours.version() == "TLSv1.3"
        ours.close()
        theirs.close()


def connected(server_side, client_side):
    left, right = socket.socketpair()
    accepted = []
    thread = threading.Thread(target=lambda: accepted.append(server_side.wrap_socket(left, server_side=True)))
    thread.start()
    theirs = client_side.wrap_socket(right, server_hostname=MESH_NAME)
    thread.join()
    return accepted[0], theirs


async def test_a_server_with_a_bad_certificate_does_not_start_and_says_why(files, tmp_path):
    expired = mint_development_ca(tmp_path / "expired", HOSTS, days=-1)
    foreign = mint_development_ca(tmp_path / "foreign", HOSTS)
    cases = {
        "certificate has expired": expired,
        "unable to get local issuer": TlsFiles(files.ca, foreign.certificate, foreign.key),
        "key values mismatch": TlsFiles(files.ca, files.certificate, foreign.key),
    }
    for words, bad in cases.items():
        with pytest.raises(InvalidInput, match=words):
            async with server(Security(bad)):
                pass


async def test_a_caller_learns_why_certificates_do_not_come_together(files, tmp_path, monkeypatch):
    expired = issue(authority_folder(tmp_path / "tls"), tmp_path / "expired", HOSTS, days=-1)
    foreign = mint_development_ca(tmp_path / "foreign", HOSTS)
    mixed = TlsFiles(files.ca, foreign.certificate, foreign.key)
    async with server(Security(files)) as address:
        why = functools.partial(asyncio.to_thread, refusal, address)
        assert await why(files) is None
        assert "certificate has expired" in await why(expired)
        assert "unable to get local issuer" in await why(foreign)
        assert "unable to get local issuer" in await why(mixed)
        assert "demands certificates" in await why(None)
        other = issue(authority_folder(tmp_path / "foreign"), tmp_path / "other", HOSTS)
        other.ca.write_bytes(files.ca.read_bytes() + other.ca.read_bytes())  # trusts both, is of one
        assert "of another authority than the server trusts" in await why(other)
    async with server(Security()) as address:
        assert "does not speak TLS" in await asyncio.to_thread(refusal, address, files)
    monkeypatch.setattr("expertmesh_common.serving.own_problem", lambda files: None)
    async with server(Security(expired)) as address:
        assert "is not accepted here: certificate has expired" in await asyncio.to_thread(refusal, address, files)


def test_the_diagnosis_is_silent_where_tls_is_not_the_reason(files):
    assert refusal(f"127.0.0.1:{free_port('127.0.0.1')}", files) is None
    assert refusal("unix:/tmp/x", files) is None
    assert own_problem(files) is None


@pytest.mark.parametrize("secure", [False, True])
async def test_who_connects_and_says_nothing_is_cut_off_while_others_are_served(files, monkeypatch, secure):
    options = tuple((k, 400 if k == "grpc.server_handshake_timeout_ms" else v) for k, v in SERVER_OPTIONS)
    assert options != SERVER_OPTIONS
    monkeypatch.setattr("expertmesh_common.serving.SERVER_OPTIONS", options)
    security = Security(files if secure else None)
    async with server(security) as address:
        host, _, port = address.rpartition(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
        await healthy(address, security)
        async with asyncio.timeout(10):
            for reader, _ in silent:
                while await reader.read(1024):  # the server's greeting, then its hanging up
                    pass
        for _, writer in silent:
            writer.close()
        await healthy(address, security)


async def test_a_message_beyond_the_limit_is_refused_and_the_server_lives():
    async with server(Security()) as address:
        async with dial(address, Security(), [("grpc.max_send_message_length", -1)]) as channel:
            request = blobs_pb2.FetchRequest(digest="a" * (MAX_MESSAGE_BYTES + 1))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await blobs_pb2_grpc.BlobsStub(channel).Fetch(request, timeout=20).read()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await healthy(address, Security())


async def test_calls_beyond_what_a_connection_may_have_wait_their_turn(monkeypatch):
    options = tuple((k, 2 if k == "grpc.max_concurrent_streams" else v) for k, v in SERVER_OPTIONS)
    monkeypatch.setattr("expertmesh_common.serving.SERVER_OPTIONS", options)
    async with server(Security()) as address, dial(address, Security()) as channel:
        held = [stream(channel) for _ in range(2)]
        for call in held:
            await call.read()
        waiting = asyncio.ensure_future(stream(channel).read())
        await healthy(address, Security())  # another connection has its own allowance
        assert not waiting.done()
        held[0].cancel()
        async with asyncio.timeout(5):
            assert (await waiting).data == b"x"
        held[1].cancel()


def test_private_files_are_readable_by_their_user_only(files):
    folder = authority_folder(files.ca.parent)
    for path in (files.key, files.certificate, folder / "ca-key.pem"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not (files.ca.parent / "ca-key.pem").exists()


def test_renewing_keeps_names_and_key_and_adds_hosts(files, tmp_path):
    key, before = files.key.read_bytes(), read_certificate(files.certificate)
    renewed = read_certificate(renew(files.ca.parent, ["edge.example"]).certificate)
    assert files.key.read_bytes() == key
    assert renewed.not_valid_before_utc >= before.not_valid_before_utc
    assert [str(name.value) for name in renewed.extensions.get_extension_for_oid(
        before.extensions[1].oid).value] == ["expertmesh", *HOSTS, "edge.example"]  # fmt: skip
    (authority_folder(files.ca.parent) / "ca-key.pem").unlink()
    with pytest.raises(InvalidInput, match="certs init"):
        renew(files.ca.parent)
