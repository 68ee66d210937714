"""Logs: one line an event, in the shape and from the level that the operator chose, with the id of its request."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from expertmesh_common.errors import InvalidInput
from expertmesh_common.logs import setup_logs
from expertmesh_common.observability.request_context import enter_request


@pytest.fixture(autouse=True)
def _logging_as_before():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


async def test_lines_of_a_request_carry_its_id_and_lines_beside_it_do_not(capsys):
    setup_logs(environment={})
    log = logging.getLogger("gateway")

    async def serve(name: str) -> None:
        enter_request(name)
        await asyncio.sleep(0)
        log.info("answered tokens=%d", 3)
        await asyncio.to_thread(log.warning, "from a thread")

    await asyncio.gather(asyncio.create_task(serve("r1")), asyncio.create_task(serve("r2")))
    log.info("beside")
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert sorted(lines) == [
        "I gateway answered tokens=3 request_id=r1",
        "I gateway answered tokens=3 request_id=r2",
        "I gateway beside",
        "W gateway from a thread request_id=r1",
        "W gateway from a thread request_id=r2",
    ]


def test_json_lines_are_one_object_each_and_errors_stay_on_their_line(capsys):
    setup_logs(environment={"EXPERTMESH_LOG_FORMAT": "json"})
    log = logging.getLogger("worker")
    log.info("two\nlines é")
    try:
        raise ValueError("what went wrong")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("INFO", "worker", "two\nlines é")
    assert first["time"].endswith("+00:00")
    assert "request_id" not in first
    assert "ValueError: what went wrong" in second["error"]


def test_the_level_comes_from_the_environment_and_an_argument_goes_before_it(capsys):
    setup_logs(environment={"EXPERTMESH_LOG_LEVEL": "warning"})
    logging.getLogger("a").info("quiet")
    setup_logs("debug", environment={"EXPERTMESH_LOG_LEVEL": "warning"})
    logging.getLogger("a").debug("loud")
    said = capsys.readouterr().err
    assert "quiet" not in said
    assert "loud" in said


@pytest.mark.parametrize(
    ("variable", "allowed"), [("EXPERTMESH_LOG_LEVEL", "DEBUG, INFO"), ("EXPERTMESH_LOG_FORMAT", "text, json")]
)
def test_a_setting_that_is_none_is_refused_with_its_name_and_what_is_allowed(variable, allowed):
    with pytest.raises(InvalidInput, match=f"{variable}.*{allowed}"):
        setup_logs(environment={variable: "loudly"})
