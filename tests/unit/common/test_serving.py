"""Every server: the token, the certificates, the error mapping."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from expertmesh_api.v1 import blobs_pb2, blobs_pb2_grpc
from expertmesh_common.certificates import development_ca, mint_development_ca
from expertmesh_common.errors import Exhausted, InvalidInput, NotHere
from expertmesh_common.security import Security, TlsFiles, dial
from expertmesh_common.serving import RETRY_AFTER_KEY, Serving


class Failing(blobs_pb2_grpc.BlobsServicer):
    def __init__(self, error):
        self.error = error

    async def Fetch(self, request, context):
        if self.error is not None:
            raise self.error
        yield blobs_pb2.FetchResponse(data=b"x", total_bytes=1)


async def serve(security, error=None):
    serving = Serving(security)
    blobs_pb2_grpc.add_BlobsServicer_to_server(Failing(error), serving.server)
    port = await serving.start("127.0.0.1:0")
    return serving, f"127.0.0.1:{port}"


async def fetch(address, security):
    async with dial(address, security) as channel:
        call = blobs_pb2_grpc.BlobsStub(channel).Fetch(blobs_pb2.FetchRequest(), timeout=5)
        return [m.data async for m in call]


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return mint_development_ca(tmp_path_factory.mktemp("ca"), ["127.0.0.1", "localhost"])


@pytest.mark.parametrize("with_tls", [False, True])
async def test_the_right_token_gets_through_and_a_wrong_one_does_not(tls, with_tls):
    files = tls if with_tls else None
    serving, address = await serve(Security(files, "secret"))

    assert await fetch(address, Security(files, "secret")) == [b"x"]
    for wrong in ("other", None):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fetch(address, Security(files, wrong))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    await serving.stop(0)


async def test_a_certificate_of_another_authority_is_refused(tls, tmp_path):
    serving, address = await serve(Security(tls))
    foreign = mint_development_ca(tmp_path / "other", ["127.0.0.1"])
    mixed = TlsFiles(tls.ca, foreign.certificate, foreign.key)

    for files in (foreign, mixed, None):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fetch(address, Security(files))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await serving.stop(0)


async def test_our_errors_keep_their_status_and_message():
    serving, address = await serve(Security(), NotHere("no blob 17"))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await fetch(address, Security())
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "no blob 17")
    await serving.stop(0)


async def test_a_full_server_says_when_to_come_back():
    serving, address = await serve(Security(), Exhausted("queue full", retry_after_ms=250))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await fetch(address, Security())
    assert dict(caught.value.trailing_metadata())[RETRY_AFTER_KEY] == "250"
    await serving.stop(0)


async def test_an_unforeseen_error_leaks_nothing(caplog):
    serving, address = await serve(Security(), RuntimeError("the password is hunter2"))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await fetch(address, Security())
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "hunter2" not in caught.value.details()
    mark = caught.value.details().split()[2].rstrip(";")
    assert mark in caplog.text
    await serving.stop(0)


async def test_health_needs_no_token():
    serving, address = await serve(Security(token="secret"))

    async with dial(address, Security()) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await serving.stop(0)


def test_a_good_authority_is_kept_and_a_broken_one_replaced(tmp_path):
    first = development_ca(tmp_path, ["localhost"]).certificate.read_bytes()
    assert development_ca(tmp_path, ["localhost"]).certificate.read_bytes() == first
    (tmp_path / "cert.pem").write_bytes(b"nonsense")
    assert development_ca(tmp_path, ["localhost"]).certificate.read_bytes() not in {first, b"nonsense"}


async def test_a_certificate_that_is_not_of_the_mesh_by_name_is_refused(tls, tmp_path, monkeypatch):
    monkeypatch.setattr("expertmesh_common.certificates.MESH_NAME", "other")
    nameless = mint_development_ca(tmp_path, ["127.0.0.1"])
    with pytest.raises(InvalidInput, match="not valid for 'expertmesh'"):
        await serve(Security(nameless))
    monkeypatch.setattr("expertmesh_common.serving.own_problem", lambda files: None)
    serving, address = await serve(Security(nameless))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await fetch(address, Security(nameless))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await serving.stop(0)
