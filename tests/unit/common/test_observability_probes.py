"""Status pages: what is wrong is named, whoever is broken, and looking never hangs with what is looked at."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from expertmesh_common.errors import InvalidInput
from expertmesh_common.observability.checks import Check, judge
from expertmesh_common.observability.pulse import Pulse, stalled
from expertmesh_common.observability.status_server import MAX_CONNECTIONS, Page, listen_status
from expertmesh_common.observability.watching import Shown, shown
from expertmesh_common.security import Security
from expertmesh_common.serving import Serving


def fetch(address: str, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@contextmanager
def serving_pages(pages, listen="127.0.0.1:0"):
    server = listen_status(pages, listen)
    try:
        yield server
    finally:
        server.stop()


def test_a_pulse_that_is_not_given_ages_and_its_probe_says_what_stands_still():
    now = [100.0]
    pulse = Pulse(lambda: now[0])
    probe = stalled(pulse, 5.0, "the engine thread")
    now[0] = 105.0
    assert probe() is None
    now[0] = 105.5
    assert probe() == "the engine thread has not turned for 5.5 s (limit 5 s)"
    pulse.beat()
    assert probe() is None


def test_a_verdict_names_every_check_and_fails_with_one():
    verdict = judge([Check("store", lambda: None), Check("experts", lambda: "3 of 8 experts have no live instance")])
    assert not verdict.ok
    assert json.loads(verdict.to_json()) == {
        "status": "failing",
        "checks": {"store": {"ok": True}, "experts": {"ok": False, "reason": "3 of 8 experts have no live instance"}},
    }


def test_a_check_that_raises_counts_as_failing_and_the_others_are_still_told():
    def broken() -> str | None:
        raise RuntimeError("secret detail")

    verdict = judge([Check("broken", broken), Check("well", lambda: None)])
    assert verdict.found == {"broken": "the check itself failed: RuntimeError", "well": None}


def test_unknown_paths_say_what_there_is_and_a_page_that_raises_is_an_error():
    def raising(accept: str) -> Page:
        raise RuntimeError("secret detail")

    with serving_pages({"/livez": lambda accept: Page(200, b"{}"), "/metrics": raising}) as server:
        assert fetch(server.address, "/livez?verbose") == (200, b"{}")
        assert fetch(server.address, "/livez", "HEAD") == (200, b"")
        assert fetch(server.address, "/") == (404, b"there are: /livez /metrics\n")
        status, body = fetch(server.address, "/metrics")
        assert status == 500
        assert b"secret" not in body
        assert fetch(server.address, "/livez", "POST")[0] == 501


def test_callers_that_say_nothing_take_a_bounded_number_of_places_and_give_them_back():
    with serving_pages({"/livez": lambda accept: Page(200, b"{}")}) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(MAX_CONNECTIONS)]
        until(lambda: threading.active_count() >= MAX_CONNECTIONS)
        with pytest.raises((http.client.HTTPException, OSError)):
            fetch(server.address, "/livez")
        for connection in silent:
            connection.close()
        until(lambda: _answers(server.address))


def _answers(address: str) -> bool:
    try:
        return fetch(address, "/livez")[0] == 200
    except (http.client.HTTPException, OSError):
        return False


def until(holds) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_an_address_that_is_taken_is_an_error_when_it_was_named_and_passed_over_when_it_was_not():
    pages = {"/livez": lambda accept: Page(200, b"{}")}
    with serving_pages(pages) as first:
        with pytest.raises(InvalidInput, match=f"cannot listen on 127.0.0.1:{first.port}"):
            listen_status(pages, f"127.0.0.1:{first.port}")
        second = listen_status(pages, "auto", first.port)
        try:
            assert second.port != first.port
            assert fetch(second.address, "/livez")[0] == 200
        finally:
            second.stop()


@pytest.mark.parametrize("listen", ["7090", ":7090", "host:", "host:x", "host:70900", ""])
def test_an_address_that_is_none_is_refused_with_the_flag_named(listen):
    with pytest.raises(InvalidInput, match="--metrics-listen"):
        listen_status({}, listen)


def test_off_listens_nowhere():
    assert listen_status({}, "off") is None


async def test_a_stuck_event_loop_is_told_by_the_page_that_does_not_need_it(monkeypatch):
    monkeypatch.setattr("expertmesh_common.observability.watching.LOOP_STALL_S", 0.2)
    serving = Serving(Security())
    await serving.start("127.0.0.1:0")
    found: list[tuple[int, bytes]] = []
    async with shown(Shown("worker", (), (), ()), serving, "127.0.0.1:0") as address:
        await asyncio.sleep(0)  # the first beat
        assert (await asyncio.to_thread(fetch, address, "/livez"))[0] == 200
        looking = threading.Thread(target=_look_after, args=(0.6, address, found))
        looking.start()
        time.sleep(1.0)  # noqa: ASYNC251 - the stall itself
        await asyncio.to_thread(looking.join)
        assert (await asyncio.to_thread(fetch, address, "/livez"))[0] == 200
    await serving.stop(0)
    status, body = found[0]
    assert status == 503
    assert "the event loop has not turned" in json.loads(body)["checks"]["event_loop"]["reason"]


def _look_after(pause_s: float, address: str, found: list[tuple[int, bytes]]) -> None:
    time.sleep(pause_s)
    found.append(fetch(address, "/livez"))
