"""How worker processes end: told to, refused, or started wrongly."""

from __future__ import annotations

import asyncio
import signal

import pytest

from expertmesh_common.errors import Precondition
from models.made_experts import SMALL
from rigs.worker_processes import TOKEN, end_of


async def test_a_worker_that_is_told_to_stop_leaves_first_and_ends_well(control, start_worker, experts):
    child = await start_worker()
    worker = await control.next_worker()
    await worker.order(control.load(0, SMALL, experts[0]))

    child.send_signal(signal.SIGTERM)
    await asyncio.wait_for(worker.left.wait(), 5)
    code, text = await end_of(child)

    assert code == 0, text
    assert "worker w1 stopped" in text
    assert "Traceback" not in text


async def test_a_worker_whose_controller_is_away_can_be_stopped(control, start_worker):
    child = await start_worker()
    await control.next_worker()
    await control.stop()

    child.send_signal(signal.SIGTERM)
    code, text = await end_of(child)
    await control.start(control.address)

    assert code == 0, text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("refusal", "token", "message"),
    [
        (None, "wrong", "refused this worker: the token is missing or wrong"),
        (Precondition("version 0.1.0 does not work with 9.0.0"), TOKEN, "version 0.1.0 does not work with 9.0.0"),
        (Precondition("generation abc of w1 was replaced"), TOKEN, "generation abc of w1 was replaced"),
    ],
)
async def test_a_refused_worker_says_why_and_ends(control, start_worker, refusal, token, message):
    control.refusal = refusal

    code, text = await end_of(await start_worker(token=token))

    assert code == 4
    assert message in text.splitlines()[-1]
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "much"), "size 'much' is not valid"),
        (("--provider", "tpu"), "provider 'tpu' is unknown: supported are cpu, cuda"),
        (("--listen", "nowhere"), "address 'nowhere' is not valid: write host:port"),
        (("--tls", "/nonexistent"), "ca.pem is missing"),
    ],
)
async def test_wrong_flags_end_at_once_with_one_line(start_worker, options, message):
    code, text = await end_of(await start_worker(*options))

    assert code == 2
    assert message in text.splitlines()[-1]
    assert "Traceback" not in text
